"""Writes the tables of docs/performance.md, docs/data.md, docs/scale.md and README, and all charts, from the
committed results.

    python bench/performance.py                    after a new file in bench/results/
    python bench/performance.py results-b.tgz ...  puts what parts of bench/gpu_day/ brought back there first
    python bench/performance.py --check            says whether the pages are what the files say; exit 1 where
                                                   not

What stands between <!-- NAME begin --> and <!-- NAME end --> is written, the rest of a page is people's.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a folder of programs, not installed
from bench.agreement import agreement_table
from bench.archive import read_archives
from bench.beton_size import sizes_table
from bench.gil_tables import gil_table
from bench.how_fast import how_fast_table
from bench.program import run_program
from bench.ratios import PATHS, draw_ratios, kernel_ratios
from bench.scale_arithmetic import scale_tables
from bench.schema import REHEARSAL, validate, write_result
from bench.show import draw_throughput
from bench.show_kernels import draw_kernels
from bench.size_tables import best_table, size_tables
from bench.targets import targets_table
from bench.time_to_accuracy import draw_times

RESULTS, DOCS = ROOT / "bench" / "results", ROOT / "docs"
OVERVIEW = DOCS / "images" / "performance.png"
DRAWN = {"throughput": draw_throughput, "kernels": draw_kernels, "time_to_accuracy": draw_times}
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


def machines(results: dict[str, dict[str, Any]]) -> str:
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
            f"[{name}](../bench/results/{name})", result["bench"], machine["gpu"] or f"{machine['cpu']}, no "
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
    """Return a file's section: its command, data, notes, ratios, rows and what was not measured."""
    parts = [f"### {name}", f"`{result['command']}`"]
    data = result["data"]
    parts.append(
        f"Data: {data.get('name', '-')}, {data['num_samples']:,} samples. "
        + " ".join(f"Note: {note}." for note in result["notes"])
    )
    if result["bench"] in DRAWN:
        chart = Path(name).with_suffix(".png")
        parts.append(f"![{result['bench']}](../bench/results/{chart})")
    ratios, rows = result["ratios"], result["rows"]
    if result["bench"] == "kernels":
        ratios = kernel_ratios(result)
        rows = [row | {"path": PATHS.get(row["path"])} for row in rows]
    if ratios:
        parts.append(spreads(ratios, "what"))
    parts.append(f"<details><summary>{len(rows)} rows</summary>\n\n{spreads(rows, 'measured')}\n\n</details>")
    missing = [f"- not measured: {line['what']}: {line['reason']}" for line in result["not_measured"]]
    return "\n\n".join(part.strip() for part in parts + ["\n".join(missing)] if part.strip())


def pages(results: dict[str, dict[str, Any]]) -> dict[Path, dict[str, str]]:
    """Return page → part → the text between its markers."""
    of_gpus = {name: result for name, result in results.items() if result["environment"]["gpu"]}
    sections = "\n\n".join(section(name, result) for name, result in results.items())
    return {
        DOCS / "performance.md": {
            "how fast": how_fast_table(results),
            "sizes": size_tables(results),
            "targets": targets_table(of_gpus),
            "machines": machines(results),
            "results": sections,
        },
        DOCS / "data.md": {
            "agreement": agreement_table(results),
            "sizes": sizes_table(results),
            "loaders": best_table(results),
        },
        DOCS / "scale.md": {"arithmetic": scale_tables(of_gpus), "lock": gil_table(results)},
        ROOT / "README.md": {"loaders": best_table(results)},
    }


def filled(text: str, parts: dict[str, str]) -> str:
    """Return a page with its marked parts replaced.

    Raises:
        ValueError: A marker is missing or repeated.
    """
    for name, content in parts.items():
        marked = re.compile(rf"(<!-- {name} begin[^>]*-->\n).*?(<!-- {name} end -->)", re.DOTALL)
        text, num = marked.subn(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)  # noqa: B023
        if num != 1:
            raise ValueError(
                f"{num} parts are marked <!-- {name} begin --> ... <!-- {name} end -->; there must be one"
            )
    return text


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
    stale = []
    for path, parts in pages(results).items():
        before = path.read_text()
        after = filled(before, parts)
        if after != before:
            stale.append(path)
            if not options.check:
                path.write_text(after)
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
    draw_ratios(results, OVERVIEW)
    print(
        f"{len(results)} files: {', '.join(str(path.relative_to(ROOT)) for path in pages(results))}, "
        f"{OVERVIEW.relative_to(ROOT)}"
    )
    return 0


if __name__ == "__main__":
    run_program(main)
