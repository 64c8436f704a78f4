"""The overview of all results: our speed-ups over others, wins and losses, and how much training waits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.chart import Bar, Panel, draw, grouped
from bench.peers import TITLES
from bench.program import counted
from bench.schema import spread
from bench.show_kernels import TITLES as PATHS

_WIN, _LOSS, _PLAIN = "#0072B2", "#D55E00", "#777777"


class Ratio(NamedTuple):
    """The spread of one of our ratios, and the file of its result."""

    text: str
    file: str
    row: Mapping[str, Any]


def against_others(results: Mapping[str, dict[str, Any]]) -> list[Ratio]:
    """Return every ratio of ours to another's, and of fused to unfused, above 1 if the former is faster."""
    ratios = []
    for name, result in results.items():
        for row in kernel_ratios(result) if result["bench"] == "kernels" else result["ratios"]:
            views = f", {counted(row['num_views'], 'view')}" if row.get("num_views") else ""
            text = None
            if result["bench"] == "beton_write":
                text = f"{row['what']}, {row['photos']}"
            elif result["bench"] in ("loader", "decode") and row["decoder"] != "ffcv_loader":
                threads = f", {row['num_threads']} threads" if "num_threads" in row else ""
                text = f"ours by {row['decoder']}{threads} / {_other(row['what'])}{views}"
            elif result["bench"] == "kernels":
                text = f"{row['chain']}: {row['what']}, ms"
            if text:
                ratios.append(Ratio(text, name, row))
        if result["bench"] == "throughput":
            ratios += _loaders(name, result)
    return ratios


def kernel_ratios(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each path's time over ours in a result of bench/kernels.py, with titles as names of paths.

    Ours is fused; where there is no fused kernel it is unfused, repeat by repeat.
    """
    ratios = [
        row | {"what": f"{PATHS[row['what'].removesuffix(' / fused')]} / fused"} for row in result["ratios"]
    ]
    values = {
        (row["chain"], row["path"]): row["values"] for row in result["rows"] if row["measured"] == "kernel"
    }
    for (chain, path), theirs in values.items():
        ours = values.get((chain, "kornia"))
        if ours and path != "kornia" and (chain, "fused") not in values:
            both = spread([a / b for a, b in zip(theirs, ours, strict=True)])
            ratios.append({"what": f"{PATHS[path]} / unfused", "chain": chain} | both)
    return ratios


def _other(what: str) -> str:
    """Return the other side of a ratio: the last part of, for example, "samples/s / ffcv_loader's"."""
    other = what.split(" / ")[-1].removesuffix("'s")
    return TITLES.get(other, other)


def _loaders(name: str, result: dict[str, Any]) -> list[Ratio]:
    """Return our fastest decoder over each peer, loaders alone, repeat by repeat."""
    ratios = []
    rows = [row for row in result["rows"] if row["measured"] in ("loader", "peer") and row["stage"] is None]
    for num in sorted({row["num_views"] for row in rows}):
        rows_here = [row for row in rows if row["num_views"] == num and row["decoder"] != "synthetic"]
        our_rows = [row for row in rows_here if row["measured"] == "loader"]
        best = max(our_rows, key=lambda row: row["median"], default=None)
        for peer in rows_here:
            if best and peer["measured"] == "peer":
                both = spread([a / b for a, b in zip(best["values"], peer["values"], strict=False)])
                text = f"ours by {best['decoder']} / {TITLES[peer['decoder']]}, {counted(num, 'view')}"
                ratios.append(Ratio(text, name, both))
    return ratios


def waiting(results: Mapping[str, dict[str, Any]]) -> list[Ratio]:
    """Return the rates of both together over the slower of loader and step; 1 means no mutual slow-down."""
    ratios = []
    for name, result in results.items():
        for row in result["ratios"] if result["bench"] == "throughput" else ():
            if row["what"] == "both / min(loader, step)" and row["decoder"] != "synthetic":
                stage = f"{row.get('recipe', 'jigsaw')} {row['stage']}"
                ratios.append(
                    Ratio(f"{stage}, {row['decoder']}, {counted(row['num_views'], 'view')}", name, row)
                )
    return ratios


def draw_ratios(results: Mapping[str, dict[str, Any]], path: Path) -> Path:
    """Draw two panels with the bars of each file below its name, and return the chart's path."""
    ours = _panel(
        "ours over others', and fused over unfused (times as fast; 1: equal)",
        against_others(results),
        _WIN,
        _LOSS,
    )
    both = _panel("both together / the slower of loader and step", waiting(results), _PLAIN, _PLAIN)
    return draw(path, [ours, both])


def _panel(title: str, ratios: list[Ratio], from_one: str, below: str) -> Panel:
    bars = [
        (file, Bar(text, row, below if row["median"] < 1 else from_one, f"{row['median']:.2f}"))
        for text, file, row in ratios
    ]
    is_log = any(bar.row["median"] > 20 for _, bar in bars)
    return Panel(title, "ratio (median, quartiles)", grouped(bars), line=1.0, is_log=is_log)
