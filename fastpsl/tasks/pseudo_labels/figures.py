"""Compute figures of each epoch's pseudo-labels, warn of a collapse and draw the figures' curves."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastpsl.files.paths import read_lines
from fastpsl.plots.label_figures import draw_label_figures
from fastpsl.tasks.pseudo_labels.scores import nmi

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

    Args:
        labels: Integers [N] in 0 … num_classes - 1.
        previous: Labels of the epoch before, or None.
        true: True labels, negative where there is none, or None.
        num_classes: Number of classes.
        seed: Seed of the shuffled labels.

    Returns:
        non_empty: Number of classes with images.
        entropy: Entropy of the classes' sizes, in nats.
        entropy_share: Entropy divided by its maximum, log num_classes.
        biggest: Share of the images in the biggest class.
        nmi_previous, nmi_true: NMI with the epoch before and with the true labels; None without them.
        nmi_previous_shuffled, nmi_true_shuffled: NMI of the shuffled labels with the same, because many
            classes alone raise NMI (UIC, section 4.1).
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

    Attributes:
        shares: The agreement of each epoch so far.
    """

    def __init__(self) -> None:
        self.shares: list[float] = []

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
