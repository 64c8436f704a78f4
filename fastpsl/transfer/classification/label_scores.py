"""Compute the average precision of each class over images with any number of classes, as for PASCAL VOC."""

from collections.abc import Mapping, Sequence

import numpy as np


def label_scores(
    predictions: Mapping[str, np.ndarray], targets: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """Score multi-label predictions.

    AP is scikit-learn's, the area under the curve by steps; images of equal score enter together.
    DeepCluster's script subtracts 1e-5 from the scores of positives, so that these come last among equal
    ones. Sums of ten crops are hardly ever equal.

    Args:
        predictions: "image", int64 [n], the rows of `targets` that were predicted (others do not count), and
            "scores", float [n, C], higher for surer.
        targets: int8 [N, C]: 1 if the class is in the image, 0 if not, -1 if only difficult objects are,
            which are not counted.
        class_names: Names of the C classes.

    Returns:
        Percent: "AP_<class>" of each class, and "mAP", their mean. A class without positives has no AP and is
        left out of the mean.

    Raises:
        ValueError: If no class has any positives, or a score is not finite.
    """
    from sklearn.metrics import average_precision_score  # here, because the import takes a second

    image, scores = predictions["image"], predictions["scores"]
    truths = targets[image]
    assert scores.shape == truths.shape == (len(image), len(class_names)), (scores.shape, truths.shape)
    if not np.isfinite(scores).all():
        raise ValueError("the scores are not numbers: the training has diverged; lower --lr")
    each = {}
    for number, name in enumerate(class_names):
        counted = truths[:, number] >= 0
        if (truths[:, number] > 0).any():
            truth = truths[counted, number]
            each[f"AP_{name}"] = 100 * float(average_precision_score(truth, scores[counted, number]))
    if not each:
        raise ValueError(
            "no image of the test set has any class that is not difficult: nothing can be scored"
        )
    return {"mAP": sum(each.values()) / len(each)} | each
