"""Charts: scores by block, class and shots, a training, its monitor and pseudo-labels, and t-SNE."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby, islice, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from fastpsl.files.json_records import is_number
from fastpsl.files.run_folder import METRICS, RESULTS, count_lines, read_lines
from fastpsl.files.system_errors import input_errors
from fastpsl.plots.inline import InlineFigure
from fastpsl.plots.png import class_name, write_png

_DOTTED: dict[str, Any] = {"color": "grey", "linestyle": ":"}


def draw_blocks(numbers: Mapping[str, float], path: Path, title: str, chance: float) -> Path:
    """Write the figure of `block_figure` to the file `path`."""
    return write_png(block_figure(numbers, title, chance), path)


def block_figure(numbers: Mapping[str, float], title: str, chance: float | None) -> InlineFigure:
    """Draw a linear probe's top-1 accuracy, and its top-5 if there is one, for each block."""
    names = [name[5:] for name in numbers if name.startswith("top1_")]
    figure = InlineFigure(figsize=(max(6.4, 1.6 + 1.1 * len(names)), 4), layout="constrained")
    axis = figure.subplots()
    kinds = [kind for kind in ("top1", "top5") if f"{kind}_{names[0]}" in numbers]
    groups = {f"top-{kind[3:]}": [numbers[f"{kind}_{name}"] for name in names] for kind in kinds}
    for bars in _grouped_bars(axis, groups, ("C0", "#c8d8ea")):
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    if chance is not None:
        axis.axhline(chance, label="chance", **_DOTTED)
    axis.set_ylim(0, min(105, 1.1 * max(numbers.values()) + 5))
    _accuracies(figure, axis, names, title)
    return figure


def draw_accuracies(
    accuracies: Mapping[str, tuple[float, float]], path: Path, title: str, chance: float
) -> Path:
    """Draw a few-shot evaluation's accuracies: label of a bar → (mean, half of its interval), in percent.

    A dotted line is the accuracy of chance, in percent.
    """
    names = list(accuracies)
    figure = Figure(figsize=(max(4.8, 1.6 + 1.1 * len(names)), 4), layout="constrained")
    axis = figure.subplots()
    means, intervals = ([accuracy[i] for accuracy in accuracies.values()] for i in range(2))
    axis.bar(range(len(names)), means, 0.7, color="#7ba3cc", yerr=intervals, capsize=5)
    for place, (mean, interval) in enumerate(accuracies.values()):
        label = f"{mean:.2f}\n± {interval:.2f}"
        axis.text(place, mean + interval + 1, label, ha="center", va="bottom", fontsize=8)
    axis.axhline(chance, label=f"chance, {chance:.1f} %", **_DOTTED)
    axis.set_ylim(0, max(max(means) + max(intervals) + 12, chance + 12))
    _accuracies(figure, axis, names, title)
    return write_png(figure, path)


def draw_precisions(
    numbers: Mapping[str, float],
    blocks: Sequence[str],
    classes: Sequence[str],
    chance: float,
    path: Path,
    title: str,
) -> Path:
    """Draw the SVMs' mean average precision for each block, and below it that of each class.

    `numbers` has mAP_<block> and AP_<class>_<block>, in percent. A dotted line is `chance`, the classes' mean
    frequency in percent.
    """
    figure = Figure(figsize=(max(8, 1 + 0.6 * len(classes)), 7), layout="constrained")
    means, each = figure.subplots(2, 1, height_ratios=(1, 1.4))
    colours = [f"C{number}" for number in range(len(blocks))]
    bars = means.bar(blocks, [numbers[f"mAP_{block}"] for block in blocks], 0.6, color=colours)
    means.bar_label(bars, fmt="%.1f", fontsize=8)
    means.set_ylabel("mAP, %")
    groups = {block: [numbers[f"AP_{name}_{block}"] for name in classes] for block in blocks}
    list(_grouped_bars(each, groups, colours))
    each.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 8 else 0)
    each.set_ylabel("AP, %")
    means.axhline(chance, label="classes' frequency", **_DOTTED)
    for axis in (means, each):
        axis.set_ylim(0, 105)
    figure.legend(loc="outside lower center", fontsize=8, ncols=len(blocks) + 1)
    figure.suptitle(title, fontsize=10, wrap=True)
    return write_png(figure, path)


def _grouped_bars(
    axis: Axes, groups: Mapping[str, Sequence[float]], colours: Sequence[str]
) -> Iterator[BarContainer]:
    """Draw the bars of each group side by side at 0, 1, 2, …, and yield them."""
    width = 0.8 / len(groups)
    for number, (label, values) in enumerate(groups.items()):
        places = [i + (number - (len(groups) - 1) / 2) * width for i in range(len(values))]
        yield axis.bar(places, values, width, color=colours[number], label=label)


def _accuracies(figure: Figure, axis: Axes, names: Sequence[str], title: str) -> None:
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("accuracy, %")
    figure.legend(loc="outside lower center", fontsize=8, ncols=3)
    axis.set_title(title, fontsize=10, wrap=True)


def draw_classes(numbers: Mapping[str, float], path: Path, title: str) -> Path:
    """Draw a bar for each AP_<class> (percent), the highest first, and the mean ("mAP") as a line."""
    found = [(value, name[3:]) for name, value in numbers.items() if name.startswith("AP_")]
    classes = sorted(found, reverse=True)
    figure = Figure(figsize=(7, 1.5 + 0.28 * len(classes)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(numbers["mAP"], zorder=0, label=f"mean {numbers['mAP']:.1f}", **_DOTTED)
    bars = axis.barh([name for _, name in classes], [value for value, _ in classes], color="C0")
    for text in axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2):
        text.set_backgroundcolor("white")  # because the line of the mean may cross it
    axis.invert_yaxis()
    axis.set_xlim(0, 108)
    axis.set_xlabel("average precision, %")
    figure.legend(loc="outside lower right", fontsize=8)
    axis.set_title(title, fontsize=10, wrap=True)
    return write_png(figure, path)


Curve = Mapping[int, tuple[float, float]]
"""A mean and a deviation, in percent, by the number of images of each class."""


def draw_shots(
    curves: Mapping[str, Curve],
    chance: float,
    path: Path,
    title: str,
    *,
    untrained: Mapping[str, Curve | None] | None = None,
    words: tuple[str, str, str] = ("accuracy, %", "images of a class", "chance"),
) -> Path:
    """Draw a line for each of `curves` by its name, with the deviations as error bars.

    A dotted line is `chance`, in percent.

    Args:
        curves: The curves by name.
        chance: The score of chance.
        path: The file to write.
        title: Its title.
        untrained: The curve of an untrained network by the name of its own, thin and in the same colour.
        words: The labels of both axes, y first, and that of the dotted line.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis, nums = figure.subplots(), sorted({num for curve in curves.values() for num in curve})
    for place, (name, curve) in enumerate(curves.items()):
        style = run_style(place)
        shots, (means, deviations) = sorted(curve), zip(*(curve[k] for k in sorted(curve)), strict=True)
        axis.errorbar(shots, means, deviations, capsize=3, label=_shown(name), **style)
        if floor := (untrained or {}).get(name):
            floors = [floor[num][0] for num in shots]
            axis.plot(shots, floors, color=style["color"], linewidth=0.8, linestyle="--")
    if any((untrained or {}).values()):
        axis.plot([], [], color="grey", linewidth=0.8, linestyle="--", label="untrained, same colour")
    y_label, x_label, chance_label = words
    axis.axhline(chance, label=chance_label, **_DOTTED)
    axis.set_xscale("log", base=2)
    axis.set_xticks(nums, [str(k) for k in nums])
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.set_ylim(0, 105)
    axis.set_title(title, fontsize=10, wrap=True)
    legend = figure.legend(loc="outside lower center", fontsize=8, ncols=min(len(curves) + 1, 4))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return write_png(figure, path)


def _shown(name: str) -> str:
    return name if len(name) <= 60 else f"…{name[-60:]}"


MAX_POINTS = 20_000


def draw_curve(folder: Path) -> Path:
    """Write the training curve of a run as curve.png into its folder."""
    return write_png(curve(folder), folder / "curve.png")


def curve(folder: Path) -> InlineFigure:
    """Draw each metric of a run's metrics.jsonl over steps, in one colour per stage, with its running mean.

    A diamond marks the validation value at a stage's end, from results.json if it exists. The learning rate
    has no mean, and its axis begins at 0. Of long runs only every n-th step is drawn, MAX_POINTS at most.
    """
    stride = 1 + count_lines(folder / METRICS) // MAX_POINTS
    lines = [line.row for line in islice(read_lines(folder / METRICS), 0, None, stride)]
    counters = ("run_step", "stage", "level", "step", "lr")
    first = {name: value for name, value in lines[0].items() if name not in counters} if lines else {}
    names = [name for name, value in first.items() if value is None or is_number(value)]
    names += ["lr"] * bool(lines)
    num = len(names) or 1
    figure = InlineFigure(figsize=(9, 2.6 * num))
    axes = figure.subplots(num, 1, sharex=True, squeeze=False)
    val = _val(folder)
    for axis, name in zip(axes[:, 0], names, strict=False):
        for number, (stage, group) in enumerate(groupby(lines, key=lambda line: line["stage"])):
            points = [(line["run_step"], line[name]) for line in group if is_number(line.get(name))]
            steps, values = [p[0] for p in points], [p[1] for p in points]
            colour = f"C{number}"
            if name == "lr":
                axis.plot(steps, values, color=colour, drawstyle="steps-mid")
                continue
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(steps, running_mean(values), color=colour, label=stage)
            if is_number(val.get(stage, {}).get(name)):
                point = (val[stage]["run_step"], val[stage][name])
                axis.plot(*point, "D", color=colour, markeredgecolor="black", label=f"{stage}, validation")
        axis.set_ylabel(name)
        if name == "lr":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    if names:
        axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, fontsize="small", frameon=False)
    # Shown verbatim: it must be neither parsed as a formula nor fail if it is not UTF-8.
    figure.suptitle(folder.resolve().name.encode(errors="replace").decode(), parse_math=False)
    figure.tight_layout()
    return figure


def _val(folder: Path) -> dict[str, dict[str, Any]]:
    """Return stage → its validation metrics, with the run's step at its end as "run_step"."""
    path = folder / RESULTS.name
    with input_errors(path):
        summaries = RESULTS.read(path, "stage", "num_steps", "val") if path.exists() else []
    ends = accumulate(summary["num_steps"] for summary in summaries)
    return {s["stage"]: s["val"] | {"run_step": end} for s, end in zip(summaries, ends, strict=True)}


def running_mean(values: list[float]) -> list[float]:
    """Return the mean over a window that ends at each value: 5 % of all values, from 1 to 200.

    A value that is not finite, as of a skipped step, has an effect on its own windows alone.
    """
    if not values:
        return []
    width = min(max(1, len(values) // 20), 200)
    sums = np.convolve(values, np.ones(width))[: len(values)]
    means: list[float] = (sums / np.minimum(np.arange(1, len(values) + 1), width)).tolist()
    return means


def draw_probes(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the lines of probe.jsonl, with a new curve per stage, because its features are another block's.

    Each begins with the untrained network, at the stage's place in the run. Lines with a feature_std of None
    were not finite and are left out.
    """
    scored = any(line["knn_accuracy"] is not None for line in lines)
    names = ["accuracy, %", "std", "effective rank"] if scored else ["std", "effective rank"]
    figure = Figure(figsize=(8, 2.4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)
    begin = 0.0
    for number, stage in enumerate(dict.fromkeys(line["stage"] for line in lines)):
        of_stage = [line for line in lines if line["stage"] == stage]
        shown = ("epoch", "feature_std", "effective_rank")
        rows = [row for row in of_stage if all(row[key] is not None for key in shown)]
        if not rows:
            continue
        epochs = [row["epoch"] if row["run_step"] else begin for row in rows]
        begin = epochs[-1]
        name = f"{stage}, {rows[0]['block']}"
        if scored:
            for kind, style in (("linear", "o-"), ("knn", "s--")):
                found = [row[f"{kind}_accuracy"] for row in rows]
                values = [math.nan if each is None else 100 * each for each in found]
                label = f"{name}: {'kNN' if kind == 'knn' else kind}"
                axes[0, 0].plot(epochs, values, style, color=f"C{number}", label=label)
        for axis, key in ((axes[-2, 0], "feature_std"), (axes[-1, 0], "effective_rank")):
            axis.plot(epochs, [row[key] for row in rows], "o-", color=f"C{number}", label=name)
    if scored:
        chance = 100 / max(1, *(line["num_classes"] for line in lines))
        axes[0, 0].axhline(chance, label="chance", **_DOTTED)
    for axis in axes[-2:, 0]:
        axis.set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("epoch")
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return write_png(figure, path)


# Okabe and Ito's, seen on white and on black. More runs have the same, dashed and dotted.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888")
_RUN_STYLES, _RUN_MARKERS = ("-", "--", ":"), "osD^vPX"
_AXES = {"seconds": "wall clock", "images": "images", "joules": "energy of the GPUs, Wh"}
_TIME_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


def monitor_figure(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, str]]]], has_legend: bool = True
) -> InlineFigure:
    """Draw the kNN accuracy of several runs, in a panel for each of seconds, images and joules.

    Args:
        panels: By the count, and then by the run's name: a point for each look, (count, accuracy in [0, 1],
            stage). All panels have the same runs, some without points.
        has_legend: Whether the figure names the runs.
    """
    num = len(panels)
    names = {
        name.encode(errors="replace").decode(): place
        for place, name in enumerate(next(iter(panels.values()), {}))
        if any(curves[name] for curves in panels.values())
    }  # shown verbatim: neither parsed as a formula, nor refused if it is no UTF-8
    columns = max(1, min(len(names), int(15 * num / max(map(len, names), default=1))))
    legend_rows = -(-len(names) // columns) if has_legend else 0
    height = 3.2 + 0.3 * has_legend + 0.2 * legend_rows
    figure = InlineFigure(figsize=(4.6 * num, height), layout="constrained")
    axes = figure.subplots(1, num, sharey=True, squeeze=False)[0]
    for axis, (count, curves) in zip(axes, panels.items(), strict=True):
        most = max((point[0] for points in curves.values() for point in points), default=0.0)
        unit, scale = next((each for each in _TIME_UNITS if most >= 3 * each[1]), _TIME_UNITS[-1])
        scale = {"seconds": scale, "joules": 3600.0}.get(count, 1.0)
        for number, points in enumerate(curves.values()):
            _draw_run(axis, number, [(at / scale, 100 * accuracy, stage) for at, accuracy, stage in points])
        axis.set_xlabel(_AXES[count] + (f", {unit}" if count == "seconds" else ""))
        if count == "images":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("kNN accuracy, %")
    if has_legend:
        handles = [Line2D([], [], label=_shown(name), **run_style(place)) for name, place in names.items()]
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def run_style(number: int) -> dict[str, Any]:
    """Return the colour, the line and the mark of a run by its place."""
    repeat, place = divmod(number, len(RUN_COLOURS))
    line = _RUN_STYLES[repeat % len(_RUN_STYLES)]
    marker = _RUN_MARKERS[place]
    return {"color": RUN_COLOURS[place], "linestyle": line, "marker": marker, "markersize": 4}


def _draw_run(axis: Axes, number: int, points: Sequence[tuple[float, float, str]]) -> None:
    """Draw a line within each stage, and a thin one to the next, whose features are another block's."""
    style = run_style(number)
    groups = [list(group) for _, group in groupby(points, key=lambda point: point[2])]
    for group in groups:
        places, accuracies, _ = zip(*group, strict=True)
        axis.plot(places, accuracies, linewidth=1.8, clip_on=False, **style)
    for before, after in pairwise(groups):
        (x, y, _), (next_x, next_y, _) = before[-1], after[0]
        axis.plot((x, next_x), (y, next_y), linewidth=0.6, color=style["color"], linestyle=style["linestyle"])


MAX_NAMED = 40  # more classes are coloured, but have no legend
_LONG_IN, _SHORT_IN = 7.0, 3.5  # the map's longer side, and the least length of the shorter one
_NAME_WIDTH_IN, _NAME_HEIGHT_IN = 1.6, 0.2
_GREY = (0.75, 0.75, 0.75)


def draw_map(
    path: Path, points: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, title: str
) -> Path:
    """Write the figure of `map_figure` to the file `path`."""
    return write_png(map_figure(points, labels, class_names, title), path)


def map_figure(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, title: str
) -> InlineFigure:
    """Draw `points`, with a legend of up to MAX_NAMED classes."""
    present = np.unique(labels[labels >= 0])
    colours = _colours(len(present))
    colour_of = {int(label): colour for label, colour in zip(present, colours, strict=True)}
    named = list(colour_of.items()) if len(present) <= MAX_NAMED else []
    entries = [(class_name(class_names, label), colour) for label, colour in named]
    if named and (labels < 0).any():
        entries.append(("no label", _GREY))
    extent = np.ptp(points, 0)
    width, height = np.maximum(_LONG_IN * extent / max(extent.max(), 1e-12), _SHORT_IN)
    num_columns = -(-len(entries) // int(height / _NAME_HEIGHT_IN))
    figure = InlineFigure(figsize=(width + num_columns * _NAME_WIDTH_IN, height + 0.4), layout="constrained")
    axis = figure.subplots()
    size = float(np.clip(16_000 / max(len(points), 1), 3, 30))
    # In the order of the rows, so that no class covers another.
    axis.scatter(
        points[:, 0], points[:, 1], s=size, c=[colour_of.get(int(label), _GREY) for label in labels],
        alpha=0.85, linewidths=0,
    )  # fmt: skip
    if entries:
        dot: dict[str, Any] = {"marker": "o", "linestyle": ""}
        handles = [Line2D([], [], color=colour, label=name, **dot) for name, colour in entries]
        options: dict[str, Any] = {"fontsize": 9, "ncols": num_columns, "frameon": False}
        figure.legend(handles=handles, loc="outside right center", **options)
    axis.set_aspect("equal", adjustable="datalim")
    axis.margins(0.04)
    axis.spines[:].set_color("0.75")
    axis.set_xticks([])  # the map's distances have no unit
    axis.set_yticks([])
    axis.set_title(title, fontsize=11)
    return figure


def _colours(num: int) -> list[tuple[float, float, float]]:
    """Return `num` RGB colours in [0, 1] that differ as much as possible."""
    for name, num_colours in (("tab10", 10), ("tab20", 20)):
        if num <= num_colours:
            return list(matplotlib.colormaps[name].colors[:num])  # type: ignore[attr-defined]
    shades = matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, num))
    return [(float(red), float(green), float(blue)) for red, green, blue, _ in shades]


_MANY_POINTS = 40  # longer curves have no markers


def draw_label_figures(
    rows: Sequence[Mapping[str, Any]], path: Path, title: str, min_entropy_share: float
) -> Path:
    """Draw five panels of figures over the epochs; a figure that is None leaves a gap.

    A row per epoch, at least one, has epoch, non_empty, entropy_share, biggest (in [0, 1]), nmi_previous,
    nmi_true and nmi_true_shuffled. A dotted line is the entropy share below which labels have collapsed.
    """
    figure = Figure(figsize=(8, 10.5), layout="constrained")
    axes = figure.subplots(5, 1, sharex=True)
    panels = {
        "non_empty": "non-empty classes", "entropy_share": "entropy share",
        "biggest": "biggest class, % of images", "nmi_previous": "NMI with the epoch before",
        "nmi_true": "NMI with true labels",
    }  # fmt: skip
    for axis, (name, panel_title) in zip(axes, panels.items(), strict=True):
        label = "as they are" if name == "nmi_true" else None
        _draw(axis, rows, name, 100 if name == "biggest" else 1, label=label)
        axis.set_title(panel_title, fontsize=10, loc="left")
        axis.grid(alpha=0.3)
    _draw(axes[4], rows, "nmi_true_shuffled", label="shuffled", color="C1")
    for axis in axes:
        axis.set_ylim(bottom=0)
    axes[1].axhline(min_entropy_share, label="below: collapse", **_DOTTED)
    axes[2].set_yscale("log")
    shares = [100 * row["biggest"] for row in rows if 0 < (row.get("biggest") or 0) <= 1] or [1]
    low, high = math.floor(math.log10(min(shares))), math.ceil(math.log10(max(shares)))
    axes[2].set_ylim(10**low, 1.1 * 10**high)
    axes[2].yaxis.set_major_formatter("{x:g}")
    axes[2].yaxis.set_minor_formatter("")
    for axis in (axes[1], axes[3]):
        axis.set_ylim(0, 1.05)
    for axis in (axes[1], axes[4]):
        axis.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    axes[4].set_xlabel("epoch")
    axes[4].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.suptitle(title)
    return write_png(figure, path)


def _draw(axis: Axes, rows: Sequence[Mapping[str, Any]], name: str, scale: float = 1, **options: Any) -> None:
    values = [math.nan if row.get(name) is None else scale * row[name] for row in rows]
    marker = "o" if len(rows) <= _MANY_POINTS else None
    epochs: list[Any] = [row.get("epoch") for row in rows]
    axis.plot(epochs, values, marker=marker, markersize=4, clip_on=False, **options)
