"""Average precision of each class over images that have any number of classes (PASCAL VOC's classification)."""

from collections.abc import Mapping, Sequence

import numpy as np


def label_scores(
    predictions: Mapping[str, np.ndarray], targets: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """Percent: "mAP", the mean over the classes, and "AP_<class>" of each.

    predictions: "image", int64 [n], and "scores", float [n, C], the higher the surer; images that are not there count for nothing.
    targets: int8 [N, C]: 1 there, 0 not, -1 not counted for this class (there are difficult ones alone). A class without positives
    has no AP and is left out of the mean. ValueError where no class has any, or a score is not finite.

    AP is scikit-learn's, the area below the curve by steps; tied images come in together. DeepCluster's script takes 1e-5 off the scores
    of positives, so that of tied images these come last; sums of ten crops are hardly ever tied.
    """
    from sklearn.metrics import average_precision_score  # takes a second

    image, scores = predictions["image"], predictions["scores"]
    found = targets[image]
    assert scores.shape == found.shape == (len(image), len(class_names)), (scores.shape, found.shape)
    if not np.isfinite(scores).all():
        raise ValueError("scores that are no numbers: the training has diverged; lower --lr")
    each = {}
    for number, name in enumerate(class_names):
        counted = found[:, number] >= 0
        if (found[:, number] > 0).any():
            truth = found[counted, number]
            each[f"AP_{name}"] = 100 * float(average_precision_score(truth, scores[counted, number]))
    if not each:
        raise ValueError("no image of the test set has any class: nothing can be scored")
    return {"mAP": sum(each.values()) / len(each)} | each
