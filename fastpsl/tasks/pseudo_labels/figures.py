"""Pseudo-labels over the epochs: figures of each, a warning when they collapse, and their curves."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastpsl.pipelines.files.json_lines import read_lines
from fastpsl.plots.label_figures import draw_label_figures
from fastpsl.tasks.pseudo_labels.scores import nmi

LINES, PICTURE = "epochs.jsonl", "labels.png"
# Even classes have an entropy share of 1, classes of sizes 1, 1/2, 1/3, … still more than 0.7; 0.5 is that of √K even classes, such
# as 55 of 3,000.
MIN_ENTROPY_SHARE = 0.5
# Of few classes each holds a tenth, of many one of 20 times its share may be a class like others: only both together tell.
MAX_BIGGEST, MAX_TIMES_EVEN = 0.1, 20


def label_figures(
    labels: np.ndarray, previous: np.ndarray | None, true: np.ndarray | None, num_classes: int, seed: int
) -> dict[str, float | None]:
    """Figures of an epoch's `labels` (integers [N], 0 to num_classes - 1), as the network gave them: before empty classes are split, which hides a collapse.

    non_empty: classes; entropy of the classes' sizes, in nats, and entropy_share of its maximum log num_classes; biggest: share of the images in the biggest
    class. nmi_previous, nmi_true: NMI with the epoch before and with the true labels (negative: none), None without them.
    nmi_true_shuffled: NMI of the same labels, shuffled by `seed`, with the true ones: many classes alone raise it (uic.txt, section 4.1).
    """
    sizes = np.bincount(labels, minlength=num_classes)
    shares = sizes[sizes > 0] / len(labels)
    entropy = abs(float((shares * np.log(shares)).sum()))
    has_true = true is not None and bool((true >= 0).any())
    shuffled = np.random.default_rng(seed).permutation(labels) if has_true else None
    return {
        "non_empty": float(len(shares)),
        "entropy": entropy,
        "entropy_share": entropy / math.log(num_classes) if num_classes > 1 else 1.0,
        "biggest": float(shares.max()),
        "nmi_previous": None if previous is None else nmi(labels, previous),
        "nmi_true": nmi(labels, true) if has_true else None,
        "nmi_true_shuffled": None if shuffled is None else nmi(shuffled, true),
    }


def watched_figures(
    labels: np.ndarray, previous: np.ndarray | None, true: np.ndarray | None, num_classes: int, seed: int
) -> dict[str, float | None]:
    """`label_figures` of labels that are made in training, with a warning where they collapse."""
    figures = label_figures(labels, previous, true, num_classes, seed)
    if (warning := collapse_warning(figures, num_classes)) is not None:
        warnings.warn(warning, stacklevel=2)
    return figures


def collapse_warning(figures: Mapping[str, float | None], num_classes: int) -> str | None:
    """What to say while labels are made, where few classes hold the images; None where nothing is to be said."""
    found = collapse(figures, num_classes)
    advice = "usual at the very beginning alone: where it stays, lower the learning rate"
    return None if found is None else f"{found}; {advice}"


def collapse(figures: Mapping[str, float | None], num_classes: int) -> str | None:
    """In which way few classes hold the images, by `label_figures`; None where they do not."""
    share, biggest, non_empty = figures["entropy_share"], figures["biggest"], figures["non_empty"]
    assert share is not None and biggest is not None and non_empty is not None
    crowded = biggest > MAX_BIGGEST and biggest * num_classes > MAX_TIMES_EVEN
    if not crowded and share >= MIN_ENTROPY_SHARE:
        return None
    return (
        f"collapse: the biggest of {num_classes:,} classes holds {100 * biggest:.1f} % of the images ({biggest * num_classes:,.1f} times "
        f"its even share), {non_empty:,.0f} have any, and the entropy is {100 * share:.0f} % of even classes'"
    )


def draw_label_curves(folder: Path) -> Path | None:
    """Draw labels.png in a run's folder from the label figures in its epochs.jsonl; None where there are none."""
    every = (line.row for line in read_lines(folder / LINES))
    rows = [row for row in every if row.get("entropy_share") is not None]
    if not rows:
        return None
    title = f"{folder.name}: pseudo-labels"
    return draw_label_figures(rows, folder / PICTURE, title, MIN_ENTROPY_SHARE)
