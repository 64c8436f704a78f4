"""Compute average precision as the area under the interpolated precision-recall curve.

VISSL and the PASCAL devkit after 2009 define it so.
"""

from collections.abc import Sequence

import numpy as np


def interpolated_ap(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the average precision in [0, 1].

    The precision of a recall is the highest one at that or a higher recall. Samples of equal score enter
    together, so that their order does not matter. (VISSL orders them as its sort does.) A class without
    positives fails an assertion.

    Args:
        targets: [N]: 1 for positives, 0 for negatives, -1 for samples to leave out.
        scores: [N], higher for surer.
    """
    from sklearn.metrics import precision_recall_curve  # here, because the import takes a second

    counted = targets >= 0
    truth = targets[counted] > 0
    assert truth.any(), "a class without positives"
    precision, recall, _ = precision_recall_curve(truth, scores[counted])
    # The curve goes from recall 1 down to 0. Each point adds a step of recall at the highest precision so
    # far.
    return float(-np.sum(np.diff(recall) * np.maximum.accumulate(precision)[:-1]))


def low_shot_scores(aps: np.ndarray, shots: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Compute mean AP and its standard deviation over the samples at the best cost, for each number of shots.

    As in VISSL, the cost is chosen on the test set itself and is the same for all classes. It has the highest
    mean over classes and samples, and is the first of equal ones. The variance is divided by the number of
    samples (ddof 0).

    Args:
        aps: float [classes, samples, shots, costs] in [0, 1].
        shots: The numbers of shots.

    Returns:
        (mean, deviation) in percent for each number of shots.
    """
    means = 100 * aps.mean(0)
    best = means.mean(0).argmax(1)
    return {
        k: (float(means[:, i, cost].mean()), float(means[:, i, cost].std()))
        for i, (k, cost) in enumerate(zip(shots, best, strict=True))
    }
