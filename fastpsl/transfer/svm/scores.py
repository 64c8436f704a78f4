"""Average precision as VISSL and the PASCAL devkit after 2009 have it: the area under the interpolated precision-recall curve."""

from collections.abc import Sequence

import numpy as np


def interpolated_ap(targets: np.ndarray, scores: np.ndarray) -> float:
    """In [0, 1]: the precision at a recall is the highest one at that recall or a higher.

    targets: [N], 1 positive, 0 negative, -1 left out. scores: [N], the higher the surer; equal ones come in together, so that their
    order is none (VISSL takes them in the order of a sort). A class without positives has no AP: assert.
    """
    from sklearn.metrics import precision_recall_curve  # takes a second

    counted = targets >= 0
    truth = targets[counted] > 0
    assert truth.any(), "a class without positives"
    precision, recall, _ = precision_recall_curve(truth, scores[counted])
    # From recall 1 down to 0: the highest precision so far, over the recall that each point adds.
    return float(-np.sum(np.diff(recall) * np.maximum.accumulate(precision)[:-1]))


def low_shot_scores(aps: np.ndarray, shots: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Of each number of shots the mean AP (percent) and its standard deviation over the samples, at the best cost.

    aps: float [classes, samples, shots, costs] in [0, 1]. As VISSL has it, the cost is the one with the highest mean over classes and
    samples on the very test set, the same for all classes; of equal ones the first. The deviation is that of the samples, over their number.
    """
    each = 100 * aps.mean(0)
    best = each.mean(0).argmax(1)
    return {
        k: (float(each[:, i, cost].mean()), float(each[:, i, cost].std()))
        for i, (k, cost) in enumerate(zip(shots, best, strict=True))
    }
