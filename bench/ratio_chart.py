"""All results at one look: how many times as fast as others we are, wins and losses, and how much training waits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.peers import TITLES
from bench.schema import spread

_WIN, _LOSS, _PLAIN = "#0072B2", "#D55E00", "#777777"
_BAR_INCHES = 0.24


class Ratio(NamedTuple):
    """median, quartile_1, quartile_3 of ours over another's; file: of the result."""

    text: str
    file: str
    median: float
    quartile_1: float
    quartile_3: float


def against_others(results: Mapping[str, dict[str, Any]]) -> list[Ratio]:
    """Every ratio of ours to another's, above 1 where ours is faster."""
    found = []
    for name, result in results.items():
        for row in result["ratios"]:
            values = row["median"], row["quartile_1"], row["quartile_3"]
            views = f", {row['num_views']} view{'s' * (row['num_views'] > 1)}" if row.get("num_views") else ""
            text = None
            if result["bench"] == "beton_write":
                text = f"{row['what']}, {row['photos']}"
            elif result["bench"] in ("loader", "decode") and row["decoder"] != "ffcv_loader":
                threads = f", {row['num_threads']} threads" if "num_threads" in row else ""
                text = f"ours by {row['decoder']}{threads} / {_other(row['what'])}{views}"
            elif result["bench"] == "kernels":
                text = f"{row['chain']}: {row['what'].split(' / ')[0]} / fused, ms"
            if text:
                found.append(Ratio(text, name, *values))
        if result["bench"] == "throughput":
            found += _loaders(name, result)
    return found


def _other(what: str) -> str:
    """Of "samples/s / ffcv_loader's"."""
    other = what.split(" / ")[-1].removesuffix("'s")
    return TITLES.get(other, other)


def _loaders(name: str, result: dict[str, Any]) -> list[Ratio]:
    """Our fastest decoder over each peer, loaders alone; repeat by repeat."""
    found = []
    rows = [row for row in result["rows"] if row["measured"] in ("loader", "peer") and row["stage"] is None]
    for num in sorted({row["num_views"] for row in rows}):
        ours = [
            row
            for row in rows
            if row["num_views"] == num and row["measured"] == "loader" and row["decoder"] != "synthetic"
        ]
        best = max(ours, key=lambda row: row["median"], default=None)
        for peer in rows:
            if best and peer["measured"] == "peer" and peer["num_views"] == num:
                both = spread([a / b for a, b in zip(best["values"], peer["values"], strict=False)])
                at = both["median"], both["quartile_1"], both["quartile_3"]
                views = f"{num} view{'s' * (num > 1)}"
                found.append(
                    Ratio(f"ours by {best['decoder']} / {TITLES[peer['decoder']]}, {views}", name, *at)
                )
    return found


def waiting(results: Mapping[str, dict[str, Any]]) -> list[Ratio]:
    """Both together over the slower of loader and step; 1: nobody disturbs the other."""
    found = []
    for name, result in results.items():
        for row in result["ratios"] if result["bench"] == "throughput" else ():
            if row["what"] == "both / min(loader, step)" and row["decoder"] != "synthetic":
                views = f"{row['num_views']} view{'s' * (row['num_views'] > 1)}"
                text = f"{row.get('recipe', 'jigsaw')} {row['stage']}, {row['decoder']}, {views}"
                found.append(Ratio(text, name, row["median"], row["quartile_1"], row["quartile_3"]))
    return found


def draw_ratios(results: Mapping[str, dict[str, Any]], path: Path) -> Path:
    """Two panels, the bars of each file below its name."""
    panels = [against_others(results), waiting(results)]
    lines = [max(1, sum(len(group) + 1 for group in _by_file(each).values())) for each in panels]
    height = _BAR_INCHES * max(lines) + 1.2
    figure = plt.figure(figsize=(14, height))
    for x, ratios, num, title in zip(
        (0.21, 0.7), panels, lines, ("ours over others' (times as fast; 1: equal)", "both together / the slower of loader and step"), strict=True
    ):  # fmt: skip
        axes = figure.add_axes((x, 1 - (0.5 + _BAR_INCHES * num) / height, 0.27, _BAR_INCHES * num / height))
        _draw(axes, _by_file(ratios), (_WIN, _LOSS) if ratios is panels[0] else (_PLAIN, _PLAIN))
        axes.set_title(title, loc="left", fontsize=11)
        if ratios and max(each.median for each in ratios) > 20:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _by_file(ratios: list[Ratio]) -> dict[str, list[Ratio]]:
    return {
        name: [each for each in ratios if each.file == name]
        for name in dict.fromkeys(each.file for each in ratios)
    }


def _draw(axes: Axes, files: dict[str, list[Ratio]], colours: tuple[str, str]) -> None:
    """colours: from 1 on, and below."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # over the line at 1
    axes.axvline(1, color="black", linewidth=0.8, zorder=3)
    y, ticks, names = 0, [], []
    for name, ratios in files.items():
        axes.annotate(name, (0, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8, weight="bold", bbox=box, zorder=4)  # fmt: skip
        for each in ratios:
            y += 1
            ticks.append(y)
            names.append(each.text)
            axes.barh(y, each.median, 0.8, color=colours[each.median < 1])
            whiskers = [[each.median - each.quartile_1], [each.quartile_3 - each.median]]
            axes.errorbar(each.median, y, xerr=whiskers, ecolor="#444", elinewidth=1)
            told = (max(each.quartile_3, each.median), y), (6, 0)
            axes.annotate(
                f"{each.median:.2f}",
                *told,
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                bbox=box,
                zorder=4,
            )
        y += 1
    axes.set_yticks(ticks, names, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)
