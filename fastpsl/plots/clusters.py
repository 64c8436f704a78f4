"""The sizes of pseudo-classes as a chart, and some of their images as a sheet (UIC, figures 3 and 4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastpsl.console.words import number_of
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.plots.neighbours import CELL_PX, FRAME_PX, GAP_PX, GREEN, LINE_PX, RED, SIDE_PX, Sheet, middles
from fastpsl.plots.png import class_name, write_png

NUM_ROWS, NUM_SHOWN = 10, 9
_WIDE = 20  # a class with more than this many times its even share needs logarithmic axes
_HEAD_PX, _GREY = 176, (128, 128, 128)


def draw_sizes(sizes: np.ndarray, path: Path, title: str) -> Path:
    """Draw a histogram of the classes' sizes, integers [K], and the sizes in descending order."""
    even, biggest = sizes.mean(), int(sizes.max())
    wide = biggest > _WIDE * even
    num_bins = int(np.clip(2 * len(sizes) ** 0.5, 10, 50))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins: np.ndarray
    if wide:
        bins = np.geomspace(1, biggest + 1, num_bins + 1)
        left.set_xscale("log")
        right.set_yscale("log")
    else:
        step = max(1, -(-biggest // num_bins))
        bins = np.arange(0, biggest + step + 1, step) - 0.5
    left.hist(sizes, bins, color="C0")  # logarithmic bins leave out empty classes, which the title counts
    left.axvline(even, color="C1", linestyle="--", label=f"even share, {even:,.1f}")
    left.set_xlabel("images in a class")
    left.set_ylabel("classes")
    ordered = np.sort(sizes)[::-1]
    shown = ordered[ordered > 0] if wide else ordered
    right.stairs(shown, np.arange(len(shown) + 1) + 0.5, baseline=None, color="C0", linewidth=1.5)
    right.axhline(even, color="C1", linestyle="--")
    right.set_xlabel("classes, the biggest first")
    right.set_ylabel("images")
    if not wide:
        right.set_ylim(0)
        for axis in (left.yaxis, right.xaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", fontsize=8)
    num_empty = int((sizes == 0).sum())
    of = f"{sizes.sum():,} images, {len(sizes):,} classes, {num_empty:,} of them empty"
    figure.suptitle(f"{title}: {of}", fontsize=10)
    return write_png(figure, path)


def shown_classes(sizes: np.ndarray, entropies: np.ndarray | None) -> np.ndarray:
    """Return up to NUM_ROWS classes that are not empty, int64.

    They are the classes with the lowest entropies, or the largest ones without entropies. The paper does not
    say whether small classes count; a single image always has entropy 0. Here, classes that fill a row come
    first.
    """
    if entropies is None:
        order = np.argsort(-sizes, kind="stable")
    else:
        order = np.lexsort((-sizes, np.nan_to_num(entropies, nan=np.inf), sizes < NUM_SHOWN))
    return order[sizes[order] > 0][:NUM_ROWS]


def draw_contents(
    path: Path,
    data: Dataset,
    labels: np.ndarray,
    classes: Sequence[int],
    entropies: np.ndarray | None,
    seed: int,
) -> Path:
    """Draw a row of images for each of `classes`, with their true classes.

    A green frame marks the most frequent true class of the pseudo-class, a red one any other, and a grey one
    an unknown true class. `labels` are the pseudo-classes, int [N], and `entropies` theirs in nats, [K]; None
    leaves out these and the most frequent true class. The seed draws up to NUM_SHOWN images per row.
    """
    true_labels, random = data.labels(), np.random.default_rng(seed)
    members = [np.flatnonzero(labels == number) for number in classes]
    shown = [np.sort(random.permutation(indices)[:NUM_SHOWN]) for indices in members]
    images = iter(middles(data, np.concatenate(shown), SIDE_PX, {"on_bad_sample": "skip"}))
    step_x, step_y = CELL_PX + GAP_PX, CELL_PX + LINE_PX + GAP_PX
    sheet = Sheet(_HEAD_PX + NUM_SHOWN * step_x, len(shown) * step_y + GAP_PX)
    for row, (number, indices) in enumerate(zip(classes, members, strict=True)):
        top, known_labels = GAP_PX + row * step_y, true_labels[indices][true_labels[indices] >= 0]
        lines = [f"pseudo-class {number}", number_of(len(indices), "image")]
        main_class = -1
        if entropies is not None and len(known_labels):
            counts = np.bincount(known_labels)
            main_class = int(counts.argmax())
            percent = 100 * counts[main_class] / len(known_labels)
            lines.append(f"entropy {entropies[number]:.2f} nats")
            lines.append(f"{percent:.0f} % {class_name(data.class_names, main_class)}")
        for place, line in enumerate(lines):
            sheet.write(2 * GAP_PX, top + FRAME_PX + place * (LINE_PX + 2), line, _HEAD_PX - 3 * GAP_PX)
        for place, sample in enumerate(shown[row]):
            left, label = _HEAD_PX + place * step_x, int(true_labels[sample])
            frame = _GREY if label < 0 else GREEN if label == main_class else RED
            name = f"#{sample}" if label < 0 else class_name(data.class_names, label)
            sheet.place(left, top, next(images), frame, name)
    return write_png(sheet.image, path)
