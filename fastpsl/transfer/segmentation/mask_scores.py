"""Score segmentation in percent by torchmetrics: the intersection over union of each class and their mean."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastpsl.pipelines.datasets.voc.annotations import VOID
from fastpsl.pipelines.datasets.voc.dataset import VOC


def require_torchmetrics() -> None:
    """Raise if torchmetrics is missing, before anything is trained.

    Raises:
        ValueError: If it cannot be imported.
    """
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"segmentation is scored by torchmetrics, and it cannot be imported ({error}): "
            'pip install "fastpsl-vision[transfer]"'
        ) from None


def with_background(data: VOC) -> list[str]:
    """Return the names of the classes in the order of the masks' numbers."""
    assert data.class_names is not None
    return ["background", *data.class_names]


def confusion(found: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of one mask by true and predicted class, without void.

    Args:
        found: Predicted class numbers.
        truth: True class numbers, of the same shape.
        num_classes: Number of classes, with the background.

    Returns:
        int64 [num_classes, num_classes] (truth, prediction).
    """
    from torchmetrics.functional.classification import (
        multiclass_confusion_matrix,
    )  # here, because it takes a second

    return multiclass_confusion_matrix(
        found.long(), truth.long(), num_classes, ignore_index=VOID, validate_args=False
    ).long()


def mask_scores(confusions: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Compute mIoU and IoU_<class> over the pixels of all images together, as VOC scores.

    A class that is neither in the truth nor in the predictions has no IoU and does not count in the mean. One
    that is predicted alone has 0 %. If no pixel counts, there is no class and mIoU is 0.

    Args:
        confusions: int64 [N, C, C] of N images.
        class_names: Names of the C classes, the background first.
    """
    from torchmetrics.classification import MulticlassJaccardIndex

    total = torch.from_numpy(confusions.sum(0))
    metric = MulticlassJaccardIndex(len(class_names), average="none", validate_args=False)
    nothing = torch.zeros(0, dtype=torch.long)
    metric.update(nothing, nothing)  # because it warns of scores without an update
    metric.confmat += total
    has_pixels = (total.sum(0) + total.sum(1) > 0).tolist()
    values = [100 * value for value in metric.compute().tolist()]
    scores = {
        f"IoU_{name}": value
        for name, value, is_scored in zip(class_names, values, has_pixels, strict=True)
        if is_scored
    }
    return {"mIoU": sum(scores.values()) / max(len(scores), 1)} | scores
