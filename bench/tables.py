"""The tables that results make: Markdown for pages of docs/ and README, and the same for the terminal.

A table is data: its titles, the rows that it takes from results, and a format for each column. `table` writes
it. bench/performance.py puts the tables onto pages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from rich.table import Table

from bench.peers import LOOPS, PACKED, TITLES, Work, reads
from bench.program import counted, wide_console
from bench.schema import Results, over
from fastpsl.pipelines.decoders.choose import NAMES

Row = Mapping[str, Any]
Result = Mapping[str, Any]
Batches = Literal["uint8", "float32", "folder"]
"""A table of bench/sizes.py: uint8 crops; float32 batches; float32 batches of what reads a folder."""
BATCHES: tuple[Batches, ...] = get_args(Batches)
ABOUT = {
    "uint8": "Crops as uint8, ours from a dataset file",
    "float32": "Batches as float32 (crop, flip, normalised), ours from a dataset file",
    "folder": "Batches as float32 (crop, flip, normalised), from a folder of JPEGs",
}
RATE, CPU = "samples/s / the peer's", "the peer's CPU time / ours"
GOALS = {"float32": 2.0, "folder": 1.8}  # ratios over the best peer, for sizes of photos
NO_GOAL = ("64",)
JPEG_DECODERS = tuple(name for name in NAMES if name not in ("resident", "synthetic"))
# Paths of bench/kernels.py. `kornia` is the value of --augment: our own operations, one after the other.
PATHS = {
    "fused": "fused", "kornia": "torch", "kornia_modules": "Kornia's modules",
    "torchvision_batch": "torchvision, one draw per batch",
    "torchvision_images": "torchvision, image by image",
}  # fmt: skip
WHAT = {
    "agreement": "How far the crops of each decoder are from exact ones, on photos.",
    "beton_size": "The size of an image in a dataset file, by the options of `fastpsl data write`.",
    "beton_write": "`fastpsl data write` beside ffcv's DatasetWriter.",
    "checkpoint": "How long a checkpoint holds up the training, and the bytes of the state by recipe.",
    "decode": "Decoding alone: the decoder `dali` by threads, DALI's own reader and ffcv's Loader.",
    "detection": "A training step of detection beside torchvision's FasterRCNN.",
    "determinism": "Which losses are equal on other numbers of processes, and after a kill.",
    "gil": "CPU time per batch, in all and under the interpreter lock, and the cost of many threads.",
    "gpu_day": "The steps of a part of `bench/gpu_day/`, with their exit codes.",
    "kernels": "Augmentations of a batch: fused, one by one, by Kornia's modules and by torchvision.",
    "labels": "The work on pseudo-labels between two epochs.",
    "large_set": "Opening, entering and resuming a data set of very many images.",
    "loader": "fastpsl's loader, by decoder, beside ffcv's Loader on the same dataset file.",
    "order": "Random and quasi-random order, read from storage.",
    "remote": "An epoch from a server with a latency and a rate, beside a local file and others.",
    "scaling": "The step and the loader on 1 to all GPUs of a node.",
    "simulated_world": "What one rank of 1 to 256 exchanges, holds and computes.",
    "sizes": "Loaders alone, by image size, beside all others: uint8 crops or float32 batches.",
    "small": "Training and evaluation on 32 px images that stay on the device.",
    "stage_sizes": "Loader and step by the size of the crops, and trainings with sizes by stage.",
    "start": "Seconds from a command to its first batch and its first training step.",
    "step": "The training step by recipe, stage and mode.",
    "throughput": "The loader alone, the step alone and both as they train, and loaders beside others.",
    "training": "Training from JPEGs beside others' examples, each in a process of its own.",
    "time_to_accuracy": "Seconds of training to a validation accuracy.",
}
HAVE_CHARTS = ("throughput", "kernels")
_SPREAD = ("median", "quartile_1", "quartile_3", "values")


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    titles = list(titles)
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return "\n".join([lines[0], "|---" * len(titles) + "|", *lines[1:]])


def number(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plain(value: Any) -> str:
    """Format a label for a cell."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else number(value)
    return str(value)


def launch(row: Row) -> str:
    """Return how a row's steps ran; results from before captured steps have launched ones."""
    return "captured" if row.get("graph") == "on" else "launched"


def device_of(result: Result) -> str:
    """Return the GPU, or the processor and its cores."""
    machine = result["environment"]
    return machine["gpu"] or f"{machine['cpu']}, {machine['num_cores']} cores"


def of_bench(results: Results, *benches: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files of some benches with their results, those of own photos after those of drawn ones."""
    found = [(name, result) for name, result in results.items() if result["bench"] in benches]
    yield from sorted(found, key=lambda pair: "originals of" in str(pair[1].get("data")))


def rows_of(results: Results, bench: str, part: str, **labels: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file, row) for each row or ratio of a bench that has these labels."""
    for name, result in of_bench(results, bench):
        for row in result[part]:
            if all(row.get(label) == value for label, value in labels.items()):
                yield name, row


def best(
    rows: Iterable[tuple[str, dict[str, Any]]], by: str = "median"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the pair with the highest value, if there is one."""
    pairs = list(rows)
    if pairs:
        yield max(pairs, key=lambda pair: pair[1][by])


def headline(result: Result, decoders: Sequence[str] = JPEG_DECODERS) -> dict[str, tuple[float, str]]:
    """Return each recipe's lowest ratio of training to the slower of loader and step, with its place."""
    worst: dict[str, tuple[float, str]] = {}
    for ratio in result["ratios"]:
        if ratio["what"] == "both / min(loader, step)" and ratio["decoder"] in decoders:
            recipe = ratio.get("recipe", "jigsaw")
            figure = (ratio["median"], f"{recipe} {ratio['stage']}, {ratio['decoder']}")
            worst[recipe] = min(worst.get(recipe, figure), figure)
    return worst


# Each file: its machine, and its rows and ratios as they are.


def machines(results: Results) -> str:
    """Return a table with a line per file: what it measures, its command, machine, versions and load."""
    rows = []
    for name, result in results.items():
        machine, versions = result["environment"], result["environment"]["versions"]
        dali = versions.get("nvidia-dali-cuda130") or versions.get("nvidia-dali-cuda120")
        packages = [
            f"{each} {versions[each]}" for each in ("torch", "triton", "kornia", "ffcv") if each in versions
        ]
        rows.append([
            f"[{name}](/bench/results/{name})", WHAT[result["bench"]].rstrip("."), f"`{result['command']}`",
            machine["gpu"] or f"{machine['cpu']}, no GPU",
            plain(machine["num_cores"]), plain(machine["driver"]),
            ", ".join(packages + ([f"dali {dali}"] if dali else [])), plain(machine["commit"]),
            f"{machine['load_average_before']:g}", str(result["settings"]["repeats"]),
        ])  # fmt: skip
    titles = "file, what it measures, command, machine, cores, driver, versions, commit, load before, repeats"
    return table(titles.split(", "), rows)


def spreads(rows: Sequence[Row], first: str) -> tuple[list[str], list[list[str]]]:
    """Return titles and cells of rows or ratios with their labels, without columns that are empty."""
    labels = list(dict.fromkeys(key for row in rows for key in row if key not in (*_SPREAD, first, "unit")))
    labels = [label for label in labels if any(row.get(label) is not None for row in rows)]
    unit = ["unit"] if "unit" in rows[0] else []
    cells = [
        [plain(row[first]), *(plain(row.get(label)) for label in labels), number(row["median"]),
         f"{number(row['quartile_1'])} to {number(row['quartile_3'])}", *(row[key] for key in unit)]
        for row in rows
    ]  # fmt: skip
    titles = [first, *labels, "median", "quartiles", *unit]
    return [title.replace("_", " ") for title in titles], cells


def with_names(result: Result) -> tuple[list[Row], list[Row]]:
    """Return rows and ratios with names for people instead of those of the file."""
    rows, ratios = result["rows"], result["ratios"]
    if result["bench"] == "kernels":
        ratios = kernel_ratios(result)
        rows = [row | {"path": PATHS.get(row["path"])} for row in rows]
    if result["bench"] in ("throughput", "small"):
        rows = [row | {"measured": _measured(row)} for row in rows]
        ratios = [row | {"what": row["what"].replace("both", "trained")} for row in ratios]
    if result["bench"] == "gpu_day":
        rows = [row | {"measured": f"`{row['measured']}`"} for row in rows]  # the name of a step
    return rows, ratios


def kernel_ratios(result: Result) -> list[Row]:
    """Return each path's time over ours in a result of bench/kernels.py, with titles as names of paths.

    Ours is fused; where there is no fused kernel it is torch, repeat by repeat.
    """
    found = [
        row | {"what": f"{PATHS[row['what'].removesuffix(' / fused')]} / fused"} for row in result["ratios"]
    ]
    kernels = [row for row in result["rows"] if row["measured"] == "kernel"]
    values = {(row["chain"], row["path"]): row["values"] for row in kernels}
    for (chain, path), theirs in values.items():
        ours = values.get((chain, "kornia"))
        if ours and path != "kornia" and (chain, "fused") not in values:
            found.append({"what": f"{PATHS[path]} / torch", "chain": chain} | over(theirs, ours))
    return found


def _measured(row: Row) -> str:
    names = {"loader": "loader alone", "step": f"step alone ({launch(row)})", "both": "trained"}
    return names.get(row["measured"], str(row["measured"]))


def show(result: Result, *labels: str) -> None:
    """Print rows and ratios with these labels, or with all; what was not measured; and the notes."""
    console = wide_console()
    for rows, first in zip(with_names(result), ("measured", "what"), strict=True):
        if rows:
            kept = {first, "unit", *_SPREAD, *(labels or (key for row in rows for key in row))}
            titles, cells = spreads([{k: v for k, v in row.items() if k in kept} for row in rows], first)
            grid = Table(*titles)
            for each in cells:
                grid.add_row(*each)
            console.print(grid)
    for missing in result["not_measured"]:
        console.print(f"not measured: {missing['what']}: {missing['reason']}")
    for note in result["notes"]:
        console.print(note)


# Loaders by the size of the images, of bench/sizes.py.


def labels_of(work: Work) -> dict[str, Any]:
    """Return the labels of a loader's row that tell in which tables it stands."""
    dtype = "float32" if work.floats else "uint8"
    return {"decoder": work.kind, "dtype": dtype, "reads": reads(work)}


def is_of(row: Row, batches: str) -> bool:
    """Return whether a row stands in a table. A peer that reads a folder stands in two."""
    if row.get("dtype", "uint8") == "uint8":  # older results have no dtype
        return batches == "uint8"
    if batches == "folder":
        return row["reads"] == "folder"
    return batches == "float32" and (row["decoder"] in TITLES or row["reads"] == "dataset file")


def without_form(title: str) -> str:
    """Return a peer's name without what it reads: TurboLoader for "TurboLoader (tar)"."""
    return title.partition(" (")[0]


def titled(kind: str) -> str:
    """Return a peer's title for tables, without its form."""
    return TITLES[kind].partition(",")[0]


def best_peers(result: Result, batches: str = "uint8") -> dict[tuple[str, int], dict[str, Row]]:
    """Return (size, crops) → what → the ratio over the best peer of a table, which is the lowest one."""
    cells: dict[tuple[str, int], dict[str, Row]] = {}
    for ratio in result["ratios"] if result["bench"] == "sizes" else ():
        if ratio.get("batches", "uint8") == batches and ratio.get("decoder") not in LOOPS:
            cell = cells.setdefault((ratio["size"], ratio["num_views"]), {})
            cell[ratio["what"]] = min(cell.get(ratio["what"], ratio), ratio, key=lambda each: each["median"])
    return cells


def _is_missed(ratio: Row, batches: str) -> bool:
    return ratio["size"] not in NO_GOAL and ratio["median"] < GOALS.get(batches, 0.0)


def _files(results: Results, batches: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, result)
        for name, result in of_bench(results, "sizes")
        if any(is_of(row, batches) for row in result["rows"]) and best_peers(result, batches)
    ]


def best_table(results: Results, batches: str = "uint8") -> str:
    """Return tables of ours over the best peer of each cell, one a file; "" without files.

    Where there is a goal, what misses it is marked. float32 batches have ours' page faults beside them.
    """
    parts = []
    for name, result in _files(results, batches):
        settings, cells = result["settings"], best_peers(result, batches)
        crops, sizes = sorted({num for _, num in cells}), list(dict.fromkeys(size for size, _ in cells))
        columns = {
            f"{counted(num, 'crop')}, {by}": (num, what)
            for num in crops
            for by, what in (("by rate", RATE), ("by CPU time", CPU))
        }
        lines = {size: [size] for size in sizes}
        for size, (num, what) in ((size, column) for size in sizes for column in columns.values()):
            found = cells.get((size, num), {}).get(what)
            mark = ", **missed**" if found and _is_missed(found, batches) else ""
            lines[size].append(f"{found['median']:.2f}x {titled(found['form'])}{mark}" if found else "-")
        titles = ["px", *columns]
        faults = {
            (row["size"], row["num_views"]): f"{row['faults_a_sample']:,.0f}"
            for row in result["rows"]
            if batches == "float32" and row["measured"] == "loader" and is_of(row, "float32")
        }
        if faults:
            titles.append(f"page faults of ours, {' / '.join(counted(num, 'crop') for num in crops)}")
            for size, cells_of_size in lines.items():
                cells_of_size.append(" / ".join(faults.get((size, num), "-") for num in crops))
        device = result["environment"]["gpu"] or f"{device_of(result)}, no GPU"
        about = f"{device}, batch {settings['batch_size']}, {settings['num_threads']} threads"
        parts.append(f"{about} (bench/results/{name}):\n\n{table(titles, lines.values())}")
    return "\n\n".join(parts)


def size_tables(results: Results, batches: str = "uint8") -> str:
    """Return tables of the best peers, and below them of all loaders."""
    if not (over_best := best_table(results, batches)):
        return f"Not measured yet: `python bench/sizes.py --batches {batches}`."
    decoder = "by the decoder that `auto` takes, " if batches == "uint8" else ""
    parts = [f"fastpsl, {decoder}over the best other loader of each cell. {over_best}"]
    for name, result in _files(results, batches):
        if goal := GOALS.get(batches):
            cells = best_peers(result, batches).items()
            ratios = [ratio for (size, _), cell in cells if size not in NO_GOAL for ratio in cell.values()]
            num_missed = sum(_is_missed(ratio, batches) for ratio in ratios)
            sizes_but = f"at all sizes but {' and '.join(NO_GOAL)} px"
            parts.append(
                f"Goal: {goal:g}x {sizes_but}. Missed: {num_missed} of {counted(len(ratios), 'ratio')}."
            )
        rows = [row for row in result["rows"] if is_of(row, batches)]
        sizes = list(dict.fromkeys(row["size"] for row in rows))
        texts: dict[tuple[str, int], dict[str, dict[bool, str]]] = {}
        for row in rows:
            is_cpu = row["measured"] == "cpu"
            cell = texts.setdefault((row["decoder"], row["num_views"]), {}).setdefault(row["size"], {})
            cell[is_cpu] = f"{row['median']:.3g} ms" if is_cpu else f"{row['median']:,.0f}"
        lines = [
            [str(num), TITLES.get(kind, f"ours, `{kind}`")]
            + [f"{of[size][False]}, {of[size][True]}" if size in of else "-" for size in sizes]
            for (kind, num), of in sorted(texts.items(), key=lambda pair: pair[0][1])
        ]
        about = f"Samples per second, and CPU time of all cores per sample ({name}):"
        parts.append(f"{about}\n\n{table(('crops', 'loader', *sizes), lines)}")
    return "\n\n".join(parts)


def packed_table(results: Results) -> str:
    """Return a table of packed coefficients by the size of images: bytes, and speed over JPEGs and others."""
    files = packed_files(results)
    if not files:
        return "Not measured yet: `python bench/sizes.py`."
    num_bytes = {name: value for _, result in files for name, value in result["data"].items()}
    cells = dict[tuple[Any, ...], list[Row]]()  # a ratio over JPEGs, or those over each other loader
    for _, result in files:
        for each in filter(_is_packed, result["ratios"]):
            whose = "JPEGs" if each["peer"] in ("turbo", "auto") else "others"
            key = each["batches"], each["size"], each["num_views"], each["what"], whose
            cells.setdefault(key, []).append(each)
    crops = sorted({row["num_views"] for _, result in files for row in filter(_is_packed, result["rows"])})
    sizes = dict.fromkeys(row["size"] for _, result in files for row in filter(_is_packed, result["rows"]))
    lines = []
    for size in sizes:
        over_jpegs = [cells.get(("uint8", size, num, CPU, "JPEGs"), []) for num in crops]
        over_others = [cells.get(("uint8", size, num, RATE, "others"), []) for num in crops]
        best_others = [min(found, key=lambda each: each["median"], default=None) for found in over_others]
        lines.append([
            size, f"{num_bytes[f'packed_{size}']:.2f}",
            *(f"{found[0]['median']:.2f}x" if found else "-" for found in over_jpegs),
            *(f"{found['median']:.2f}x {titled(found['form'])}" if found else "-" for found in best_others),
            *(_saved(files, size, dtype, crops) for dtype in _PACKED_DTYPES),
        ])  # fmt: skip
    titles = ["px", "bytes over the JPEG"]
    titles += [f"{counted(num, 'crop')}, over JPEGs" for num in crops]
    titles += [f"{counted(num, 'crop')}, over the best other loader" for num in crops]
    titles += [f"CPU µs saved, {dtype}" for dtype in _PACKED_DTYPES]
    of_device: dict[str, list[str]] = {}
    for name, result in files:
        of_device.setdefault(device_of(result), []).append(f"bench/results/{name}")
    machines = "; ".join(f"{device}, no GPU ({', '.join(names)})" for device, names in of_device.items())
    parts = [f"{machines}:\n\n{table(titles, lines)}"]
    for name, result in of_bench(results, "sizes"):
        loops = [
            [each["size"], _LOOPS[each["decoder"]], str(each["num_views"]), f"{each['median']:.2f}x"]
            for each in result["ratios"]
            if each.get("decoder") in _LOOPS and each["what"] == CPU and each["peer"].startswith("turbo")
        ]
        if loops:
            about = f"The loops of other processors, over JPEGs (bench/results/{name}):"
            parts.append(f"{about}\n\n{table(('px', 'loops', 'crops', 'over JPEGs'), loops)}")
    return "\n\n".join(parts)


_LOOPS = {"coefficients_avx2": "AVX2", "coefficients_plain": "plain C"}
_PACKED_DTYPES = ("uint8", "float32")


def packed_files(results: Results) -> list[tuple[str, Result]]:
    """Return the files with uint8 crops of packed coefficients, those with float32 crops of JPEGs first.

    These have both beside the same JPEGs in one run, so their ratios over JPEGs are the ones that count.
    """
    found = [pair for pair in of_bench(results, "sizes") if ("uint8", PACKED) in _kinds(pair[1])]
    return sorted(found, key=lambda pair: ("float32", "turbo") not in _kinds(pair[1]))


def _kinds(result: Result) -> set[tuple[str | None, str]]:
    return {(row.get("dtype"), row["decoder"]) for row in result["rows"]}


def _is_packed(row: Row) -> bool:
    return row.get("decoder") == PACKED


def _saved(files: Sequence[tuple[str, Result]], size: str, dtype: str, crops: Sequence[int]) -> str:
    """Return the CPU microseconds of a sample that are saved, for each number of crops, by the first file."""
    for _, result in files:
        cpu = {
            (row["decoder"], row["num_views"]): 1000 * row["median"]
            for row in result["rows"]
            if (row["measured"], row["size"], row.get("dtype")) == ("cpu", size, dtype)
        }
        if all((decoder, num) in cpu for decoder in ("turbo", PACKED) for num in crops):
            return " / ".join(f"{cpu['turbo', num] - cpu[PACKED, num]:.0f}" for num in crops)
    return "-"


def all_size_tables(results: Results) -> str:
    """Return the tables of all batches."""
    return "\n\n".join(f"**{ABOUT[batches]}**\n\n{size_tables(results, batches)}" for batches in BATCHES)
