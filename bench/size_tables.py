"""The rows, ratios and tables of bench/sizes.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from bench.interleaved import Rates
from bench.peers import TITLES, Work, reads
from bench.program import counted
from bench.schema import spread

Result = Mapping[str, Any]
Batches = Literal["uint8", "float32", "folder"]
"""A table: uint8 crops; float32 batches; float32 batches of what reads a folder."""
BATCHES: tuple[Batches, ...] = get_args(Batches)
ABOUT = {
    "uint8": "Crops as uint8, ours from a dataset file",
    "float32": "Batches as float32 (crop, flip, normalised), ours from a dataset file",
    "folder": "Batches as float32 (crop, flip, normalised), from a folder of JPEGs",
}
RATE, CPU = "samples/s / the peer's", "the peer's CPU time / ours"
GOALS = {"float32": 2.0, "folder": 1.8}  # ratios over the best peer, for sizes of photos
NO_GOAL = ("64",)


def family(kind: str) -> str:
    """Return the peer that a kind is a form of: SPDL for "SPDL, OpenCV"."""
    return without_form(titled(kind))


def without_form(title: str) -> str:
    """Return a peer's name without what it reads: TurboLoader for "TurboLoader (tar)"."""
    return title.partition(" (")[0]


def titled(kind: str) -> str:
    """Return a peer's title for tables, without its form."""
    return TITLES[kind].partition(",")[0]


def rows_of(rates: Sequence[Rates], size: str) -> list[dict[str, Any]]:
    """Return two rows for each loader and number of crops: its samples/s, and its CPU time a sample."""
    rows = []
    for each in rates:
        labels = {"size": size, "size_px": each.work.size_px, **labels_of(each.work)}
        faults = round(spread(each.faults)["median"], 1)
        rows.append(each.row(each.measured, **labels, faults_a_sample=faults))
        cpu = {"measured": "cpu", "num_views": each.num_views, **labels}
        rows.append(cpu | {"unit": "ms of all cores a sample", **spread(each.cpu_ms)})
    return rows


def labels_of(work: Work) -> dict[str, Any]:
    """Return the labels of a loader's row that tell in which tables it stands."""
    return {
        "decoder": work.kind, "dtype": "float32" if work.floats else "uint8", "reads": reads(work),
    }  # fmt: skip


def is_of(row: Mapping[str, Any], batches: str) -> bool:
    """Return whether a row stands in a table. A peer that reads a folder stands in two."""
    if row.get("dtype", "uint8") == "uint8":  # older results have no dtype
        return batches == "uint8"
    if batches == "folder":
        return row["reads"] == "folder"
    return batches == "float32" and (row["decoder"] in TITLES or row["reads"] == "dataset file")


def ratios_of(rates: Sequence[Rates], size: str, decoder: str) -> list[dict[str, Any]]:
    """Return the ratios of ours by a decoder over each peer, by rates and by CPU time, repeat by repeat.

    A peer of several forms stands there with the better one, by rates and by CPU time each.
    """
    ratios: list[dict[str, Any]] = []
    for batches in BATCHES:
        here = [each for each in rates if is_of(labels_of(each.work), batches)]
        for ours in here:
            if ours.work.kind == decoder:
                ratios += _over_peers(ours, here, {"size": size, "batches": batches})
    return ratios


def _over_peers(ours: Rates, rates: Sequence[Rates], labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
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
            of_whom = {"num_views": ours.num_views, "peer": peer, "form": form.work.kind}
            values = spread([a / b for a, b in pairs])
            yield {"what": what, "decoder": ours.work.kind, **labels, **of_whom, **values}


def best_peers(result: Result, batches: str = "uint8") -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """Return (size, crops) → what → the ratio over the best peer of a table, which is the lowest one."""
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for ratio in result["ratios"] if result["bench"] == "sizes" else ():
        if ratio.get("batches", "uint8") != batches:
            continue
        cell = cells.setdefault((ratio["size"], ratio["num_views"]), {})
        if ratio["what"] not in cell or ratio["median"] < cell[ratio["what"]]["median"]:
            cell[ratio["what"]] = ratio
    return cells


def best_table(results: Mapping[str, Result], batches: str = "uint8") -> str:
    """Return Markdown tables of ours over the best peer of each cell, one a file; "" without files.

    Where there is a goal, what misses it is marked. float32 batches have ours' page faults beside them.
    """
    return "\n\n".join(
        f"{_machine(name, result)}\n\n{_best(result, batches)}" for name, result in _files(results, batches)
    )


def _best(result: Result, batches: str) -> str:
    cells = best_peers(result, batches)
    crops = sorted({num for _, num in cells})
    titles = ["px", *(f"{_crops(num)}, {by}" for num in crops for by in ("by rate", "by CPU time"))]
    faults = _faults(result, crops) if batches == "float32" else {}
    titles += [f"page faults of ours, {' / '.join(map(_crops, crops))}"] if faults else []
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for size in dict.fromkeys(size for size, _ in cells):
        texts = [size]
        for found in (cells.get((size, num), {}).get(what) for num in crops for what in (RATE, CPU)):
            mark = ", **missed**" if found and _is_missed(found, batches) else ""
            texts.append(f"{found['median']:.2f}x {titled(found['form'])}{mark}" if found else "-")
        lines.append(_line(texts + ([faults[size]] if faults else [])))
    return "\n".join(lines)


def _goal(result: Result, batches: str) -> list[str]:
    """Return the goal of a table and how many of its ratios miss it, as a line; none without a goal."""
    if (goal := GOALS.get(batches)) is None:
        return []
    cells = best_peers(result, batches).items()
    ratios = [ratio for (size, _), cell in cells if size not in NO_GOAL for ratio in cell.values()]
    num_missed = sum(_is_missed(ratio, batches) for ratio in ratios)
    sizes = f"at all sizes but {' and '.join(NO_GOAL)} px"
    return [f"Goal: {goal:g}x {sizes}. Missed: {num_missed} of {counted(len(ratios), 'ratio')}."]


def _is_missed(ratio: Mapping[str, Any], batches: str) -> bool:
    """Return whether a ratio over the best peer misses the goal of its table."""
    return ratio["size"] not in NO_GOAL and ratio["median"] < GOALS.get(batches, 0.0)


def _faults(result: Result, crops: Sequence[int]) -> dict[str, str]:
    """Return size → the minor page faults per image of ours from a dataset file, by crops."""
    found = {
        (row["size"], row["num_views"]): f"{row['faults_a_sample']:,.0f}"
        for row in result["rows"]
        if row["measured"] == "loader" and is_of(row, "float32")
    }
    return {size: " / ".join(found.get((size, num), "-") for num in crops) for size, _ in found}


def size_tables(results: Mapping[str, Result], batches: str = "uint8") -> str:
    """Return Markdown tables of the best peers, and below them of all loaders."""
    if not (best := best_table(results, batches)):
        return f"Not measured yet: `python bench/sizes.py --batches {batches}`."
    decoder = "by the decoder that `auto` takes, " if batches == "uint8" else ""
    parts = [f"fastpsl, {decoder}over the best other loader of each cell. {best}"]
    for name, result in _files(results, batches):
        parts += _goal(result, batches)
        by_loader: dict[tuple[str, int], dict[str, dict[str, str]]] = {}
        rows = [row for row in result["rows"] if is_of(row, batches)]
        sizes = list(dict.fromkeys(row["size"] for row in rows))
        for row in rows:
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


def all_tables(results: Mapping[str, Result]) -> str:
    """Return the Markdown tables of all batches."""
    return "\n\n".join(f"**{ABOUT[batches]}**\n\n{size_tables(results, batches)}" for batches in BATCHES)


def _files(results: Mapping[str, Result], batches: str) -> Iterator[tuple[str, Result]]:
    """Yield the files that have rows of a table."""
    for name, result in results.items():
        if result["bench"] == "sizes" and any(is_of(row, batches) for row in result["rows"]):
            yield name, result


def _machine(name: str, result: Result) -> str:
    machine, settings = result["environment"], result["settings"]
    device = machine["gpu"] or f"{machine['cpu']}, {machine['num_cores']} cores, no GPU"
    return (
        f"{device}, batch {settings['batch_size']}, {settings['num_threads']} threads (bench/results/{name}):"
    )


def _crops(num: int) -> str:
    return counted(num, "crop")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
