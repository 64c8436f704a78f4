"""Score pseudo-labels with true labels: NMI, adjusted Rand index, and accuracy under the best matching.

Counts of (true label, pseudo-label) are sparse: at most one per sample, whatever the number of classes. For
1.3 million labels of 10,000 × 1,000 classes, NMI takes 0.2 to 0.6 s and each other score 0.1 s (2 cores). For
10,000 × 21,841 classes the matching takes 3.4 s and 0.3 GB; scipy's linear_sum_assignment on the dense table
takes 16 s and 3.5 GB.
"""

from typing import Any

import numpy as np

ABSENT = "true labels absent"


def nmi(labels: np.ndarray, others: np.ndarray | None) -> float:
    """Return the normalised mutual information of two labellings in [0, 1]; 1 means the same partition.

    It is divided by the arithmetic mean of the two entropies, as in scikit-learn from 0.22 on (UIC,
    section 4.1). Older figures, such as DeepCluster's, may use the geometric mean, which gives the same or
    more.

    Args:
        labels: Integers [N]. Samples with a negative label on either side are left out.
        others: Integers [N], or None.

    Raises:
        ValueError: No sample has both labels.
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
    """Return the labels of the samples that have both.

    Raises:
        ValueError: No sample has both labels.
    """
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
