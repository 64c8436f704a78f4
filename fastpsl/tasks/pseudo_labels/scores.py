"""Score pseudo-labels with true labels: NMI, adjusted Rand index, and accuracy under the best matching.

Counts of (true label, pseudo-label) are sparse: at most one per sample, whatever the number of classes. For
1.3 million labels of 10,000 × 1,000 classes, NMI takes 0.2 to 0.6 s and each other score 0.1 s (2 cores). For
10,000 × 21,841 classes the matching takes 3.4 s and 0.3 GB; scipy's linear_sum_assignment on the dense table
takes 16 s and 3.5 GB.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastpsl.files.run_folder import read_lines
from fastpsl.plots.charts import draw_label_figures

ABSENT = "true labels absent"


def nmi(labels: np.ndarray, others: np.ndarray | None) -> float:
    """Return the normalised mutual information of two labellings in [0, 1]; 1 means the same partition.

    It is divided by the arithmetic mean of the two entropies, as in scikit-learn from 0.22 on (UIC,
    section 4.1). Older figures, such as DeepCluster's, may use the geometric mean, which gives the same or
    more.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*labelled(labels, others), average_method="arithmetic"))


def ari(labels: np.ndarray, others: np.ndarray | None) -> float:
    """Return the adjusted Rand index: 1 for the same partition, and on average 0 for random labels.

    Arguments and errors are those of `nmi`.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*labelled(labels, others)))


def hungarian_accuracy(labels: np.ndarray, true: np.ndarray | None) -> float:
    """Return the share of samples in matched classes under the best one-to-one matching with true classes.

    A true class is matched with one pseudo-class at most, and the samples of unmatched pseudo-classes count
    as wrong. So K even pseudo-classes of C < K true ones reach about C / K at most. Arguments and errors are
    those of `nmi`.
    """
    from scipy.sparse import eye_array, hstack
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    counts = _contingency(true, labels)
    num_samples = float(counts.sum())
    # A matching of all true classes must exist, so each true class also has an empty pseudo-class to take.
    # That edge has weight 1, because an edge of weight 0 counts as none. The other edges have their count
    # plus 1, which adds the same to every matching.
    counts.data += 1
    weights = hstack([counts, eye_array(counts.shape[0])], format="csr")
    matching = min_weight_full_bipartite_matching(weights, maximize=True)
    return float(weights[matching].sum() - counts.shape[0]) / num_samples


def many_to_one_accuracy(labels: np.ndarray, true: np.ndarray | None) -> float:
    """Return the share of samples of the most frequent true class of their pseudo-class (purity).

    Several pseudo-classes may be matched with one true class. The score never falls if pseudo-classes are
    split, and is 1 if each has one sample. SSL++, section V.E, names the one-to-one matching; with that,
    70 even clusters of 10 classes reach 14.3 % at most, and not its 54.4 %. Arguments and errors are those of
    `nmi`.
    """
    counts = _contingency(labels, true)
    return float(counts.max(axis=1).sum() / counts.sum())


def _contingency(rows: np.ndarray | None, columns: np.ndarray | None) -> Any:
    """Return sparse counts, float64 [classes of rows, classes of columns], of samples with both labels."""
    from sklearn.metrics.cluster import contingency_matrix

    return contingency_matrix(*labelled(rows, columns), sparse=True, dtype=np.float64)


def labelled(labels: np.ndarray | None, others: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the samples that have both."""
    if labels is None or others is None:
        raise ValueError(ABSENT)
    assert labels.shape == others.shape and labels.ndim == 1
    both = (labels >= 0) & (others >= 0)
    if not both.any():
        raise ValueError(ABSENT)
    return labels[both], others[both]


def class_entropies(labels: np.ndarray, true: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the entropy of the true labels within each pseudo-class, float64 [num_classes], in nats.

    It is 0 if they are all equal, and NaN if there are none.
    """
    numbers, others = labelled(labels, true)
    num_true = int(others.max()) + 1
    pairs, counts = np.unique(numbers.astype(np.int64) * num_true + others, return_counts=True)
    sizes = np.bincount(numbers, minlength=num_classes)
    weighted = np.bincount(pairs // num_true, counts * np.log(counts), num_classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.log(sizes) - weighted / sizes, 0)


LINES, PICTURE = "epochs.jsonl", "labels.png"
# Even classes have an entropy share of 1, and classes of sizes 1, 1/2, 1/3, … more than 0.7. A share of 0.5
# is that of √K even classes, such as 55 of 3,000.
MIN_ENTROPY_SHARE = 0.5
# Both limits must be exceeded: each of few classes holds a tenth of the images, and one of many classes may
# hold 20 times its even share without a collapse.
MAX_BIGGEST, MAX_TIMES_EVEN = 0.1, 20
MIN_SETTLED = 0.5
_WINDOW = 5  # epochs


def label_figures(
    labels: np.ndarray, previous: np.ndarray | None, true: np.ndarray | None, num_classes: int, seed: int
) -> dict[str, float | None]:
    """Compute the figures of an epoch's labels as the network gave them.

    Empty classes must not be split yet, because the split hides a collapse.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    entropy = class_entropy(sizes)
    true = None if true is None or not (true >= 0).any() else true
    shuffled = np.random.default_rng(seed).permutation(labels)
    return {
        "non_empty": float((sizes > 0).sum()),
        "entropy": entropy,
        "entropy_share": entropy / math.log(num_classes) if num_classes > 1 else 1.0,
        "biggest": float(sizes.max() / len(labels)),
        "nmi_previous": None if previous is None else nmi(labels, previous),
        "nmi_previous_shuffled": None if previous is None else nmi(shuffled, previous),
        "nmi_true": None if true is None else nmi(labels, true),
        "nmi_true_shuffled": None if true is None else nmi(shuffled, true),
    }


def class_entropy(sizes: np.ndarray) -> float:
    """Return the entropy of classes of these sizes, in nats: the loss of naming each by its frequency."""
    shares = sizes[sizes > 0] / sizes.sum()
    return abs(float((shares * np.log(shares)).sum()))


def watched_figures(
    labels: np.ndarray, previous: np.ndarray | None, true: np.ndarray | None, num_classes: int, seed: int
) -> dict[str, float | None]:
    """Return `label_figures`, and warn if the labels have collapsed."""
    figures = label_figures(labels, previous, true, num_classes, seed)
    if (warning := collapse_warning(figures, num_classes)) is not None:
        warnings.warn(warning, stacklevel=2)
    return figures


def collapse_warning(figures: Mapping[str, float | None], num_classes: int) -> str | None:
    """Return a warning for training if few classes hold the images, and else None."""
    collapsed = collapse(figures, num_classes)
    advice = "usual at the very beginning alone: where it stays, lower the learning rate"
    return None if collapsed is None else f"{collapsed}; {advice}"


def collapse(figures: Mapping[str, float | None], num_classes: int) -> str | None:
    """Describe how few classes hold the images, by `label_figures`; return None if they do not."""
    share, biggest, non_empty = figures["entropy_share"], figures["biggest"], figures["non_empty"]
    assert share is not None and biggest is not None and non_empty is not None
    crowded = biggest > MAX_BIGGEST and biggest * num_classes > MAX_TIMES_EVEN
    if not crowded and share >= MIN_ENTROPY_SHARE:
        return None
    return (
        f"collapse: the biggest of {num_classes:,} classes holds {100 * biggest:.1f} % of the images "
        f"({biggest * num_classes:,.1f} times its even share); {non_empty:,.0f} classes have images, "
        f"and the entropy is {100 * share:.0f} % of even classes'"
    )


class Settling:
    """A watch over whether labels settle: whether they agree more and more with those of the epoch before.

    Agreement is `nmi_previous` as a share of the way from the NMI of shuffled labels to 1. It can be compared
    between different numbers of classes.
    """

    def __init__(self) -> None:
        self.shares: list[float] = []  # the agreement of each epoch so far

    def see(self, figures: Mapping[str, float | None]) -> str | None:
        """Add the `label_figures` of an epoch, and return a warning every 10 epochs if labels do not settle.

        They do not if the mean of the last 5 shares is below 0.5 and no higher than that of the 5 before.
        """
        value, chance = figures["nmi_previous"], figures["nmi_previous_shuffled"]
        if value is None or chance is None:
            return None
        self.shares.append((value - chance) / (1 - chance) if chance < 1 else 1.0)
        if len(self.shares) % (2 * _WINDOW):
            return None
        before, last = (
            float(np.mean(self.shares[start : start + _WINDOW or None])) for start in (-2 * _WINDOW, -_WINDOW)
        )
        if last >= MIN_SETTLED or last > before:
            return None
        return (
            f"unsettled: labels agree with those of the epoch before by {last:.0%} in the last {_WINDOW} "
            f"epochs and by {before:.0%} in the {_WINDOW} before (shuffled ones: 0 %), so images go on "
            "changing their class: https://fastpsl.github.io/fastpsl/how_to/monitoring.html"
        )


def draw_label_curves(folder: Path) -> Path | None:
    """Draw labels.png in a run's folder from its epochs.jsonl; return None if that has no label figures."""
    lines = (line.row for line in read_lines(folder / LINES))
    rows = [row for row in lines if row.get("entropy_share") is not None]
    if not rows:
        return None
    title = f"{folder.name}: pseudo-labels"
    return draw_label_figures(rows, folder / PICTURE, title, MIN_ENTROPY_SHARE)


def written_lines(labels: Path) -> list[str]:
    """Draw the label curves beside a run's labels; return what to tell of both files."""
    curves = draw_label_curves(labels.parent)
    return [f"labels {labels}", *([f"label curves {curves}"] if curves else [])]
