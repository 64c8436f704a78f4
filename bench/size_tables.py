"""The rows, ratios and tables of bench/sizes.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.interleaved import Rates
from bench.peers import TITLES
from bench.schema import spread

Result = Mapping[str, Any]
RATE, CPU = "samples/s / the peer's", "the peer's CPU time / ours"


def family(kind: str) -> str:
    """Return the peer that a kind is a form of: SPDL for "SPDL, OpenCV"."""
    return TITLES[kind].partition(",")[0]


def rows_of(rates: Sequence[Rates], size: str) -> list[dict[str, Any]]:
    """Return two rows for each loader and number of crops: its samples/s, and its CPU time a sample."""
    rows = []
    for each in rates:
        labels = {"size": size, "size_px": each.work.size_px}
        rows.append(each.row(each.measured, **labels))
        cpu = {"measured": "cpu", "decoder": each.work.kind, "num_views": each.num_views, **labels}
        rows.append(cpu | {"unit": "ms of all cores a sample", **spread(each.cpu_ms)})
    return rows


def ratios_of(rates: Sequence[Rates], size: str, decoder: str) -> list[dict[str, Any]]:
    """Return the ratios of ours by a decoder over each peer, by rates and by CPU time, repeat by repeat.

    A peer of several forms stands there with the better one, by rates and by CPU time each.
    """
    ratios: list[dict[str, Any]] = []
    for ours in rates:
        if ours.work.kind != decoder:
            continue
        forms: dict[str, list[Rates]] = {}
        for each in rates:
            if each.measured == "peer" and each.num_views == ours.num_views:
                forms.setdefault(family(each.work.kind), []).append(each)
        for peer, each_form in forms.items():
            by_rate = max(each_form, key=lambda each: spread(each.values)["median"])
            by_cpu = min(each_form, key=lambda each: spread(each.cpu_ms)["median"])
            for what, form, pairs in (
                (RATE, by_rate, zip(ours.values, by_rate.values, strict=True)),
                (CPU, by_cpu, zip(by_cpu.cpu_ms, ours.cpu_ms, strict=True)),
            ):
                labels = {"size": size, "num_views": ours.num_views, "peer": peer, "form": form.work.kind}
                ratios.append(
                    {"what": what, "decoder": decoder, **labels, **spread([a / b for a, b in pairs])}
                )
    return ratios


def best_peers(result: Result) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """Return (size, crops) → what → the ratio over the best peer, which is the lowest one."""
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for ratio in result["ratios"]:
        cell = cells.setdefault((ratio["size"], ratio["num_views"]), {})
        if ratio["what"] not in cell or ratio["median"] < cell[ratio["what"]]["median"]:
            cell[ratio["what"]] = ratio
    return cells


def best_table(results: Mapping[str, Result]) -> str:
    """Return Markdown tables of ours over the best peer of each cell, one a file; "" without files."""
    parts = []
    for name, result in _files(results):
        cells = best_peers(result)
        crops = sorted({num for _, num in cells})
        titles = ["px", *(f"{_crops(num)}, {by}" for num in crops for by in ("by rate", "by CPU time"))]
        lines = [_line(titles), "|---" * len(titles) + "|"]
        for size in dict.fromkeys(size for size, _ in cells):
            found = [cells.get((size, num), {}).get(what) for num in crops for what in (RATE, CPU)]
            texts = (f"{each['median']:.2f}x {each['peer']}" if each else "-" for each in found)
            lines.append(_line([size, *texts]))
        parts.append(f"{_machine(name, result)}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def size_tables(results: Mapping[str, Result]) -> str:
    """Return Markdown tables of the best peers, and below them of all loaders."""
    if not (best := best_table(results)):
        return "Not measured yet: `python bench/sizes.py`."
    parts = [f"fastpsl, by the decoder that `auto` takes, over the best other loader of each cell. {best}"]
    for name, result in _files(results):
        by_loader: dict[tuple[str, int], dict[str, dict[str, str]]] = {}
        sizes = list(dict.fromkeys(row["size"] for row in result["rows"]))
        for row in result["rows"]:
            cells = by_loader.setdefault((row["decoder"], row["num_views"]), {})
            text = f"{row['median']:.3g} ms" if row["measured"] == "cpu" else f"{row['median']:,.0f}"
            cells.setdefault(row["size"], {})["cpu" if row["measured"] == "cpu" else "rate"] = text
        titles = ["crops", "loader", *sizes]
        lines = [_line(titles), "|---" * len(titles) + "|"]
        for (kind, num), cells in sorted(by_loader.items(), key=lambda pair: pair[0][1]):
            loader = TITLES.get(kind, f"ours, `{kind}`")
            texts = (
                f"{cells[size]['rate']}, {cells[size]['cpu']}" if size in cells else "-" for size in sizes
            )
            lines.append(_line([str(num), loader, *texts]))
        parts.append(
            f"Samples per second, and CPU time of all cores per sample ({name}):\n\n" + "\n".join(lines)
        )
    return "\n\n".join(parts)


def _files(results: Mapping[str, Result]) -> Iterator[tuple[str, Result]]:
    return ((name, result) for name, result in results.items() if result["bench"] == "sizes")


def _machine(name: str, result: Result) -> str:
    machine, settings = result["environment"], result["settings"]
    device = machine["gpu"] or f"{machine['cpu']}, {machine['num_cores']} cores, no GPU"
    return (
        f"{device}, batch {settings['batch_size']}, {settings['num_threads']} threads (bench/results/{name}):"
    )


def _crops(num: int) -> str:
    return "1 crop" if num == 1 else f"{num} crops"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
