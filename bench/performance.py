"""Writes the tables of README and docs, and the charts of results, from the committed results.

    python bench/performance.py                    after a new file in bench/results/
    python bench/performance.py results-b.tgz ...  puts what parts of bench/gpu_day/ brought back there first
    python bench/performance.py --check            says whether the pages are what the files say; exit 1 where
                                                   not

What stands between <!-- NAME begin --> and <!-- NAME end --> is written, on every page that has these marks
(bench/pages.py). The rest of a page is people's. PARTS has the names.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a folder of programs, not installed
from bench.archive import read_archives
from bench.checkpoint_tables import checkpoint_table, states_table
from bench.how_fast import how_fast_table
from bench.pages import written
from bench.program import counted, run_program
from bench.ratios import PATHS, kernel_ratios, losses_table
from bench.remote_tables import remote_table
from bench.schema import REHEARSAL, Results, validate, write_result
from bench.show import draw_throughput, ratio_name, row_name
from bench.show_kernels import draw_kernels
from bench.size_tables import all_tables, best_table
from bench.targets import targets_table
from bench.time_to_accuracy import draw_times

RESULTS, DOCS = ROOT / "bench" / "results", ROOT / "docs"
DRAWN = {"throughput": draw_throughput, "kernels": draw_kernels, "time_to_accuracy": draw_times}
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
    "jpeg_engines": "Whether a GPU's JPEG engines work for `dali`, by their share, beside DALI's own reader.",
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
    "start": "Seconds from a command to its first batch and its first training step.",
    "step": "The training step by recipe, stage and mode.",
    "throughput": "The loader alone, the step alone and both as they train, and loaders beside others.",
    "training": "Training from JPEGs beside others' examples, each in a process of its own.",
    "time_to_accuracy": "Seconds of training to a validation accuracy.",
}
_SPREAD = ("median", "quartile_1", "quartile_3", "values")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return file name → result, sorted by name.

    Raises:
        ValueError: A file is no valid result.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        results[path.name] = json.loads(path.read_text())
        try:
            validate(results[path.name])
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
        if REHEARSAL in results[path.name]["notes"]:
            raise ValueError(f"{path.name}: is {REHEARSAL}; remove it")
    return results


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows])


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def plain(value: Any) -> str:
    """Format a label for a cell."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else number(value)
    return str(value)


def machines(results: Results) -> str:
    """Return a table with one line per file: machine, versions, load and repeats."""
    rows = []
    for name, result in results.items():
        machine, settings = result["environment"], result["settings"]
        versions = machine["versions"]
        dali = versions.get("nvidia-dali-cuda130") or versions.get("nvidia-dali-cuda120")
        packages = [
            f"{package} {versions[package]}"
            for package in ("torch", "triton", "kornia", "ffcv")
            if package in versions
        ]
        rows.append([
            f"[{name}](/bench/results/{name})", result["bench"], machine["gpu"] or f"{machine['cpu']}, no "
            "GPU", plain(machine["num_cores"]), plain(machine["driver"]),
            ", ".join(packages + ([f"dali {dali}"] if dali else [])),
            plain(machine["commit"]), f"{machine['load_average_before']:g}", str(settings["repeats"]),
        ])  # fmt: skip
    return table(
        ["file", "bench", "machine", "cores", "driver", "versions", "commit", "load before", "repeats"], rows
    )


def spreads(rows: list[dict[str, Any]], first: str) -> str:
    """Return a table of rows or ratios with their labels, without columns that are empty everywhere."""
    labels = list(dict.fromkeys(key for row in rows for key in row if key not in (*_SPREAD, first, "unit")))
    labels = [label for label in labels if any(row.get(label) is not None for row in rows)]
    cells = [
        [plain(row[first]), *(plain(row.get(label)) for label in labels), number(row["median"]),
         f"{number(row['quartile_1'])} to {number(row['quartile_3'])}",
         *([row["unit"]] if "unit" in row else [])]
        for row in rows
    ]  # fmt: skip
    titles = [first, *labels, "median", "quartiles", *(["unit"] if "unit" in rows[0] else [])]
    return table([title.replace("_", " ") for title in titles], cells)


def section(name: str, result: dict[str, Any]) -> str:
    """Return a file's section: what it measures, and folded its command, data, ratios, rows and gaps."""
    machine, data = result["environment"], result["data"]
    ratios, rows = result["ratios"], result["rows"]
    if result["bench"] == "kernels":
        ratios = kernel_ratios(result)
        rows = [row | {"path": PATHS.get(row["path"])} for row in rows]
    if result["bench"] in ("throughput", "small"):
        rows = [row | {"measured": row_name(row)} for row in rows]
        ratios = [row | {"what": ratio_name(row["what"])} for row in ratios]
    if result["bench"] == "gpu_day":
        rows = [row | {"measured": f"`{row['measured']}`"} for row in rows]  # the name of a step
    counts = [counted(len(rows), "row")] + ([counted(len(ratios), "ratio")] if ratios else [])
    device = machine["gpu"] or f"{machine['cpu']}, {machine['num_cores']} cores"
    notes = " ".join(f"Note: {note}." for note in result["notes"])
    folded = [
        f"Command: `{result['command']}`",
        f"Data: `{data.get('name', 'no name')}`, {data['num_samples']:,} samples. {notes}",
    ]
    if result["bench"] in DRAWN:
        chart = Path(name).with_suffix(".png")
        folded.append(f"![Bars of the medians in {name}](/bench/results/{chart})")
    if ratios:
        folded.append(spreads(ratios, "what"))
    folded.append(spreads(rows, "measured"))
    missing = [f"- not measured: {line['what']}: {line['reason']}" for line in result["not_measured"]]
    folded.append("\n".join(missing))
    return "\n\n".join([
        f"### {name}",
        f"{WHAT[result['bench']]} The file: [{name}](/bench/results/{name}).",
        f"<details><summary>{' and '.join(counts)}, measured on {device}</summary>",
        *(part.strip() for part in folded if part.strip()),
        "</details>",
    ])  # fmt: skip


def sections(results: Results) -> str:
    return "\n\n".join(section(name, result) for name, result in results.items())


def of_gpus(results: Results) -> Results:
    """Return the results of a GPU."""
    return {name: result for name, result in results.items() if result["environment"]["gpu"]}


def without_gpus(results: Results) -> Results:
    return {name: result for name, result in results.items() if not result["environment"]["gpu"]}


# Name of a part → the function that makes it of all results.
PARTS: dict[str, Callable[[Results], str]] = {
    "how fast": how_fast_table,
    "losses": losses_table,
    "loader sizes": all_tables,
    "loaders": best_table,
    "folder loaders": lambda results: best_table(results, "folder"),
    "targets": lambda results: targets_table(of_gpus(results)),
    "machines": machines,
    "results": lambda results: sections(without_gpus(results)),
    "gpu results": lambda results: sections(of_gpus(results)),
    "checkpoint": checkpoint_table,
    "states": states_table,
    "remote": remote_table,
}


def pages(results: Results) -> dict[Path, str]:
    """Return page → its text with the parts that the results make."""
    return written(ROOT, {name: part(results) for name, part in PARTS.items()})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a page is not what the files say"
    )
    parser.add_argument(
        "archives", nargs="*", type=Path, help="results-PART.tgz of bench/gpu_day/: read whole before "
        "anything is written"
    )  # fmt: skip
    options = parser.parse_args()
    if options.check and options.archives:
        raise ValueError("--check writes nothing: give it no archives")
    for name, result in read_archives(options.archives).items():
        write_result(RESULTS / name, result)
    results = read_results(RESULTS)
    made = pages(results)
    stale = [path for path, text in made.items() if path.read_text() != text]
    if options.check:
        for path in stale:
            print(
                f"{path.relative_to(ROOT)} is not what bench/results/ says: run python bench/performance.py",
                file=sys.stderr,
            )
        return int(bool(stale))
    for name, result in results.items():
        if result["bench"] in DRAWN:
            DRAWN[result["bench"]](result, (RESULTS / name).with_suffix(".png"))
    for path in stale:
        path.write_text(made[path])
    print(f"{len(results)} files: {', '.join(str(path.relative_to(ROOT)) for path in made)}")
    return 0


if __name__ == "__main__":
    run_program(main)
