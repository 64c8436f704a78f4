"""Writes the tables of README and docs, and the charts of results, from the committed results.

    python bench/performance.py                    after a new file in bench/results/ or bench/cards/
    python bench/performance.py results-b.tgz ...  puts what parts of bench/gpu_day/ brought back there first,
                                                   and experiments of bench/evidence into docs/runs/
    python bench/performance.py --check            says whether the pages are what the files say; exit 1 where
                                                   not
    python bench/performance.py --show sizes.json  prints all rows and ratios of a file

What stands between <!-- NAME begin --> and <!-- NAME end --> is written, on every page that has these marks.
The rest of a page is people's. PARTS has the names. Links in a part begin with a slash at the repository's
root, and become relative to the page.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a folder of programs, not installed

from bench.archives import check_experiment, checked, put_experiment, read_archives
from bench.charts import draw
from bench.program import parser_of, run_program
from bench.schema import Results, write_result
from bench.speed_ups import how_fast_table, losses_table, targets_table
from bench.tables import HAVE_CHARTS, all_size_tables, best_table, machines, packed_table, show, table

RESULTS, CARDS, DOCS = ROOT / "bench" / "results", ROOT / "bench" / "cards", ROOT / "docs"


def of_gpus(results: Results, is_gpu: bool = True) -> Results:
    """Return the results of a GPU, or those without one."""
    return {name: result for name, result in results.items() if bool(result["environment"]["gpu"]) == is_gpu}


def filled(text: str, parts: Mapping[str, str]) -> str:
    """Return a page with its marked parts replaced."""
    for name, content in parts.items():
        marked = re.compile(rf"(<!-- {name} begin[^>]*-->\n).*?(<!-- {name} end -->)", re.DOTALL)
        text, num = marked.subn(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)  # noqa: B023
        if num != 1:
            raise ValueError(
                f"{num} parts are marked <!-- {name} begin --> ... <!-- {name} end -->; there must be one"
            )
    return text


def marks(text: str) -> list[str]:
    """Return the names of the parts that begin on a page."""
    return re.findall(r"^<!-- (.+?) begin\b[^>]*-->$", text, re.MULTILINE)


def pages_of(root: Path) -> list[Path]:
    """Return README.md, the pages of docs/ and the list of results."""
    pages = [
        root / "README.md",
        root / "bench" / "results" / "README.md",
        *sorted((root / "docs").rglob("*.md")),
    ]
    return [page for page in pages if page.exists()]


def written(root: Path, parts: Mapping[str, str]) -> dict[Path, str]:
    """Return page → its text with its parts, of all pages that have some."""
    texts, found = {}, set[str]()
    for page in pages_of(root):
        text = page.read_text()
        here = {name: linked(parts[name], page, root) for name in marks(text) if name in parts}
        if here:
            texts[page] = filled(text, here)
            found.update(here)
    for name in parts:
        if name not in found:
            raise ValueError(f"no page has the marks <!-- {name} begin --> and <!-- {name} end -->")
    return texts


def linked(text: str, page: Path, root: Path) -> str:
    """Return a part with its links relative to a page."""
    return re.sub(r"\]\(/([^)#]+)", lambda link: f"]({os.path.relpath(root / link[1], page.parent)}", text)


# Name of a part → the function that makes it of all results.
PARTS: dict[str, Callable[[Results], str]] = {
    "how fast": how_fast_table, "losses": losses_table, "loader sizes": all_size_tables,
    "packed coefficients": packed_table, "loaders": best_table,
    "targets": lambda results: targets_table(of_gpus(results)), "machines": machines,
}  # fmt: skip


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return file name → result, sorted by name."""
    paths = sorted(folder.glob("*.json"))
    return {path.name: checked(path.read_bytes(), path.name, "remove it") for path in paths}


def cards_table(folder: Path) -> str:
    """Return a table of the cards that `fastpsl doctor --card` made, the latest first."""
    cards = {path: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
    rows = []
    for path, card in sorted(cards.items(), key=lambda each: each[1]["machine"]["date"], reverse=True):
        of, parts = card["machine"], {part["name"]: part for part in card["parts"]}
        compared = [part for part in parts.values() if "worst" in part["values"]]
        faults = [f"{part['name']} {part['state']}" for part in parts.values() if part["state"] in FAULTS]
        num = sum(part["values"]["num"] for part in compared)
        agree = "; ".join(faults) or f"all {num} comparisons"
        link = f"[{of['device']}](/bench/cards/{path.name})"
        rows.append([link, of["date"], of["versions"], agree, parts["speed"]["text"]])
    return table(("card", "date", "versions", "agree", "speed"), rows)


FAULTS = ("differs", "failed")  # of a card's parts


def pages(results: Results) -> dict[Path, str]:
    """Return page → its text with the parts that the results and cards make."""
    parts = {name: part(results) for name, part in PARTS.items()}
    return written(ROOT, {**parts, "cards": cards_table(CARDS)})


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a page is not what the files say"
    )
    parser.add_argument("--show", metavar="FILE", help="print a file of bench/results/, and write nothing")
    parser.add_argument(
        "archives", nargs="*", type=Path, help="results-PART.tgz of bench/gpu_day/: read whole before "
        "anything is written"
    )  # fmt: skip
    options = parser.parse_args()
    if (options.check or options.show) and options.archives:
        raise ValueError("--check and --show write nothing: give them no archives")
    if options.show:
        path = RESULTS / options.show
        if not path.exists():
            there = ", ".join(sorted(each.name for each in RESULTS.glob("*.json")))
            raise ValueError(f"--show {options.show}: no such file in bench/results/; there are {there}")
        show(json.loads(path.read_bytes()))
        return 0
    brought = read_archives(options.archives)
    for name, files in brought.experiments.items():
        check_experiment(name, files, ROOT)
    for name, result in brought.results.items():
        write_result(RESULTS / name, result)
    for name, files in brought.experiments.items():
        put_experiment(files, ROOT / "docs" / "runs" / name)
    results = read_results(RESULTS)
    made = pages(results)
    stale = [path for path, text in made.items() if path.read_text() != text]
    if options.check:
        for path in stale:
            what = f"{path.relative_to(ROOT)} is not what bench/results/ says"
            print(f"{what}: run python bench/performance.py", file=sys.stderr)
        return int(bool(stale))
    for name, result in results.items():
        if result["bench"] in HAVE_CHARTS:
            draw(result, (RESULTS / name).with_suffix(".png"))
    for path in stale:
        path.write_text(made[path])
    print(f"{len(results)} files: {', '.join(str(path.relative_to(ROOT)) for path in made)}")
    return 0


if __name__ == "__main__":
    run_program(main)
