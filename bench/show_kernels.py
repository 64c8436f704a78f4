"""The chart and the terminal table of a result of bench/kernels.py, and its comparison with the targets."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.chart import Bar, Panel, draw, grouped

# Okabe and Ito's colours, as in show.py: ours dark, peers light.
COLOURS = {
    "fused": "#0072B2", "kornia": "#009E73", "kornia_modules": "#7FCEB8", "torchvision_batch": "#EAAE7F",
    "torchvision_images": "#F0E442",
}  # fmt: skip
# `kornia` is the value of --augment: our own operations, one after the other.
TITLES = {
    "fused": "fused", "kornia": "unfused", "kornia_modules": "Kornia's modules",
    "torchvision_batch": "torchvision, one draw per batch",
    "torchvision_images": "torchvision, image by image",
}  # fmt: skip
# 256 samples of 224 px to fp16 on one H200: milliseconds of the fused path, and Kornia's modules over it.
TO_REACH = {"SimCLR T3": (0.17, 100.0), "jigsaw": (0.1, None), "rotation, all 8": (0.5, None)}


def draw_kernels(result: dict[str, Any], path: Path) -> Path:
    """Draw the milliseconds of each chain by path, and return the chart's path.

    The axis is logarithmic. A line in each bar marks the time that a copy of the same bytes takes.
    """
    settings, machine = result["settings"], result["environment"]
    (copy,) = (row for row in result["rows"] if row["measured"] == "copy")
    bars = []
    for row in result["rows"]:
        if row["measured"] == "kernel":
            text = f"{_digits(row['median'], 3)} ms, {_digits(row['percent_of_copy'], 2)} % of a copy"
            floor_ms = 1e-6 * row["num_bytes"] / copy["gb_per_s"]
            path_bar = Bar(TITLES[row["path"]], row, COLOURS[row["path"]], text, floor_ms)
            bars.append((row["chain"], path_bar))
    title = (
        f"{settings['batch_size']} samples of {settings['size_px']} px to {settings['precision']}; "
        f"copy {copy['gb_per_s']:,.0f} GB/s\n{machine['gpu'] or machine['cpu']}, "
        f"{machine['num_cores']} cores, load average {machine['load_average_before']} before"
    )
    axis = "ms per batch (median, quartiles; logarithmic)"
    return draw(path, [Panel("black line: at the speed of a copy", axis, grouped(bars), is_log=True)], title)


def _digits(value: float, num: int) -> str:
    """Format a number with `num` significant digits, or as a whole number if it has more."""
    return f"{value:,.0f}" if value >= 10 ** (num - 1) else f"{value:.{num}g}"


def show_kernels(result: dict[str, Any], console: Console) -> None:
    """Print the result as a table, with the targets, what was not measured and the notes."""
    table = Table(
        "chain",
        "path",
        "ms",
        "quartiles",
        "GB/s",
        "% of a copy",
        "x fused",
        title="per batch (medians)",
        caption="x fused: the median over repeats of each repeat's ratio, not the ratio of the medians",
    )
    ratios = {(row["chain"], row["what"]): row["median"] for row in result["ratios"]}
    for row in result["rows"]:
        ratio = ratios.get((row["chain"], f"{row['path']} / fused"))
        table.add_row(
            row["chain"], TITLES.get(row["path"], "a large copy"), f"{row['median']:.3f}",
            f"{row['quartile_1']:.3f} to {row['quartile_3']:.3f}", f"{row['gb_per_s']:,.1f}",
            f"{row['percent_of_copy']:.1f}", "" if ratio is None else f"{ratio:.1f}",
        )  # fmt: skip
    console.print(table)
    for line in to_reach(result):
        console.print(line)
    for line in not_measured(result):
        console.print(line)
    for note in result["notes"]:
        console.print(note)


def not_measured(result: dict[str, Any]) -> list[str]:
    """Return one line per reason, with the titles of the paths and their chains."""
    lines = []
    for reason in dict.fromkeys(missing["reason"] for missing in result["not_measured"]):
        pairs = [m["what"].rsplit(", ", 1) for m in result["not_measured"] if m["reason"] == reason]
        # Paths that lack the same chains share a line.
        chains = {path: tuple(name for name, each in pairs if each == path) for _, path in pairs}
        groups: dict[tuple[str, ...], list[str]] = {}
        for path, names in chains.items():
            groups.setdefault(names, []).append(TITLES[path])
        for names, paths in groups.items():
            lines.append(f"not measured by {' or '.join(paths)}: {'; '.join(names)} ({reason})")
    return lines


def to_reach(result: dict[str, Any]) -> list[str]:
    """Return lines that compare the result with TO_REACH, if it was measured on CUDA at those sizes."""
    settings = result["settings"]
    sizes = (settings["device"], settings["batch_size"], settings["size_px"], settings["precision"])
    if sizes != ("cuda", 256, 224, "fp16"):
        return []
    ratios = {(row["chain"], row["what"]): row["median"] for row in result["ratios"]}
    times = {row["chain"]: row["median"] for row in result["rows"] if row["path"] == "fused"}
    lines = []
    for chain, (ms, factor) in TO_REACH.items():
        if chain in times:
            lines.append(f"{chain}: {times[chain]:.3f} ms; to reach: {ms} ms on an H200")
            ratio = ratios.get((chain, "kornia_modules / fused"))
            if factor is not None and ratio is not None:
                lines.append(
                    f"{chain}: Kornia's modules take {ratio:.0f} times as long; to reach: {factor:.0f}"
                )
    return lines
