"""Terminal tables and the bar chart of a result of bench/throughput.py."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.chart import Bar, Panel, draw, grouped
from bench.peers import TITLES
from bench.program import counted

# Okabe and Ito's colours, which colour-blind readers can tell apart: ours dark, peers light; the same name
# has the same colour in both panels.
COLOURS = {
    "step": "#777777", "turbo": "#0072B2", "ffcv": "#332288", "dali": "#009E73", "resident": "#000000",
    "pillow": "#D55E00", "torchvision": "#D55E00",  # its former name
    "synthetic": "#999999", "ffcv_loader": "#7FB8D8", "dali_reader": "#7FCEB8", "dataloader": "#EAAE7F",
    "webdataset": "#F0E442", "spdl_cv2": "#CC79A7", "spdl_ffmpeg": "#E0B0CB",
}  # fmt: skip
_OTHER = "#56B4E9"
_CUT = 1.5  # times the longest bar of real data, because a synthetic loader is far faster than any other
_LOWER = "both / min(loader, step)"


def launch(row: dict[str, Any]) -> str:
    """Return how a row's steps ran; results from before captured steps have launched ones."""
    return "captured" if row.get("graph") == "on" else "launched"


def row_name(row: dict[str, Any]) -> str:
    """Return the name for people of a row of bench/throughput.py or bench/small.py."""
    step = f"step alone ({launch(row)})"
    names = {"loader": "loader alone", "step": step, "both": "trained"}
    return names.get(row["measured"], row["measured"])


def ratio_name(what: str) -> str:
    """Return the name for people of a ratio of these benches."""
    return what.replace("both", "trained")


def draw_throughput(result: dict[str, Any], path: Path) -> Path:
    """Draw loaders, beside them steps and training, each of the latter with its ratio to the slower part."""
    settings, machine = result["settings"], result["environment"]
    backbone = settings["backbone"] or "the recipes' backbones"
    title = (
        f"{backbone}, precision {settings['precision']}, batch {settings['batch_size']}, "
        f"{result['data']['name']}\n{machine['gpu'] or machine['cpu']}, {machine['num_cores']} cores, "
        f"load average {machine['load_average_before']} before"
    )
    panels = [
        _panel(result, "loader alone", "loader", "peer"),
        _panel(result, "step alone, and trained (× the slower of loader and step)", "step", "both"),
    ]
    return draw(path, panels, title)


def _panel(result: dict[str, Any], title: str, *measured: str) -> Panel:
    ratios = {_key(row): row["median"] for row in result["ratios"] if row["what"] == _LOWER}
    rows = [row for row in result["rows"] if row["measured"] in measured]
    longest = max((row["quartile_3"] for row in rows if row["decoder"] != "synthetic"), default=math.inf)
    headings = {_heading(row): None for row in rows}  # a dict keeps the order of the rows
    rows.sort(key=lambda row: ([*headings].index(_heading(row)), _place(_name(row))))
    bars = []
    for row in rows:
        text = f"{row['median']:,.0f}" if row["median"] >= 100 else f"{row['median']:.1f}"
        if row["measured"] == "both":
            text += f"  (×{ratios[_key(row)]:.2f})"
        bars.append((_heading(row), Bar(_title(row), row, COLOURS.get(_name(row), _OTHER), text)))
    return Panel(title, "samples/s (median, quartiles)", grouped(bars), edge=_CUT * longest)


def _heading(row: dict[str, Any]) -> str:
    """Return the heading of the bars that can be compared."""
    views = counted(row["num_views"], "view")
    if row["stage"] is None:
        return f"{views}, random resized crops"
    return f"{row.get('recipe', 'jigsaw')} {row['stage']}, {views}"


def _place(name: str) -> int:
    """Return the place of a bar in its group; a decoder without a colour of its own comes last."""
    return [*COLOURS].index(name) if name in COLOURS else len(COLOURS)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("recipe"), row["decoder"], row["num_views"], row["stage"]


def _name(row: dict[str, Any]) -> str:
    return "step" if row["measured"] == "step" else str(row["decoder"])


def _title(row: dict[str, Any]) -> str:
    if row["measured"] == "step":
        return row_name(row)
    if row["measured"] == "both":
        return f"trained, {row['decoder']}"
    return TITLES.get(row["decoder"], f"fastpsl, {row['decoder']}")


def show_missing_and_notes(result: dict[str, Any], console: Console) -> None:
    """Print what was not measured, with the reason, and the notes."""
    for missing in result["not_measured"]:
        console.print(f"{missing['what']}: {missing['reason']}")
    for note in result["notes"]:
        console.print(note)


def show_throughput(result: dict[str, Any], console: Console) -> None:
    """Print the stages, loaders alone, what was not measured, the notes and the lowest ratios."""
    rates = {
        (row["measured"], row["decoder"], row.get("recipe"), row["stage"]): row for row in result["rows"]
    }
    table = Table(
        "stage", "decoder", "loader alone", "step alone", "steps", "trained", "trained/step", "trained/min",
        "cores: loader", "trained-step",
        title="samples/s (medians)",
    )  # fmt: skip
    ratios = {(r["what"], r["decoder"], r.get("recipe"), r["stage"]): r["median"] for r in result["ratios"]}
    both_rows = [row for row in result["rows"] if row["measured"] == "both"]
    for row in both_rows:
        decoder, recipe, stage = row["decoder"], row["recipe"], row["stage"]
        loader, step = rates["loader", decoder, recipe, stage], rates["step", None, recipe, stage]
        table.add_row(
            f"{recipe} {stage}", decoder,
            *(f"{each['median']:,.1f}" for each in (loader, step)), launch(step), f"{row['median']:,.1f}",
            *(f"{ratios[what, decoder, recipe, stage]:.3f}" for what in ("both / step", _LOWER)),
            *(f"{cores:.1f}" for cores in (loader["cores_used"], row["cores_beyond_step"])),
        )  # fmt: skip
    if both_rows:
        console.print(table)
    alone = [row for row in result["rows"] if row["measured"] in ("loader", "peer") and row["stage"] is None]
    if alone:
        console.print(loaders_alone(alone, _title))
    show_missing_and_notes(result, console)
    real = [row for row in both_rows if row["decoder"] != "synthetic"]
    for what in ("both / step", _LOWER):
        pairs = [(ratios[what, row["decoder"], row["recipe"], row["stage"]], row) for row in real]
        if pairs:
            worst, row = min(pairs, key=lambda pair: pair[0])
            console.print(
                f"{ratio_name(what)}: {worst:.3f} at the least "
                f"({row['recipe']} {row['stage']}, {row['decoder']})"
            )


def loaders_alone(rows: list[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> Table:
    """Return a table with one row per loader and one column per number of views."""
    views = sorted({row["num_views"] for row in rows})
    titles = [counted(num, "view") for num in views]
    table = Table(
        "loader alone", *titles, "cores", "first batch after", title="samples/s (medians), equal crops"
    )
    loaders: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        loaders.setdefault(name(row), {})[row["num_views"]] = row
    for text, by_views in loaders.items():
        first = by_views[min(by_views)]
        # Older results have none for peers with worker processes.
        cores = "" if first["cores_used"] is None else f"{first['cores_used']:.1f}"
        rates = (f"{by_views[num]['median']:,.0f}" for num in views)
        table.add_row(text, *rates, cores, f"{first['first_batch_s']:.1f} s")
    return table
