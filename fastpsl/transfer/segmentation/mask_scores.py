"""Scores of segmentation, in percent, by torchmetrics: the intersection over the union of each class, and their mean."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastpsl.pipelines.voc.dataset import VOC
from fastpsl.pipelines.voc.masks import VOID


def require_torchmetrics() -> None:
    """ValueError where it is not installed: before anything is trained."""
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'segmentation is scored by torchmetrics, and it cannot be imported ({error}): pip install "fastpsl[transfer]"'
        ) from None


def with_background(data: VOC) -> list[str]:
    """The names of the masks' numbers."""
    assert data.class_names is not None
    return ["background", *data.class_names]


def confusion(found: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """int64 [num_classes, num_classes], rows the truth's classes: pixels of one mask. found, truth: class numbers of one shape; void is left out."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # takes a second

    return multiclass_confusion_matrix(
        found.long(), truth.long(), num_classes, ignore_index=VOID, validate_args=False
    ).long()


def mask_scores(confusions: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """mIoU and IoU_<class> of `confusions`, int64 [N, C, C], of N pictures: over all pixels of all of them together, as VOC scores.

    class_names: of the C classes, the background's first. A class that is neither in the truth nor in the predictions has no IoU and does not
    count in the mean; one that is predicted alone has 0 %. Without any pixel that counts there is no class, and mIoU is 0.
    """
    from torchmetrics.classification import MulticlassJaccardIndex

    total = torch.from_numpy(confusions.sum(0))
    metric = MulticlassJaccardIndex(len(class_names), average="none", validate_args=False)
    nothing = torch.zeros(0, dtype=torch.long)
    metric.update(nothing, nothing)  # it warns of scores without one
    metric.confmat += total
    there = (total.sum(0) + total.sum(1) > 0).tolist()
    values = [100 * value for value in metric.compute().tolist()]
    scores = {
        f"IoU_{name}": value
        for name, value, is_there in zip(class_names, values, there, strict=True)
        if is_there
    }
    return {"mIoU": sum(scores.values()) / max(len(scores), 1)} | scores
