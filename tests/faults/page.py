"""The writer of the tables of faults in docs/, from the results in docs/runs/faults/.

python -m tests.faults.page            after a new file there
"""

import json
from pathlib import Path
from typing import Any

from bench.performance import written
from bench.tables import table
from tests.faults.report import FAILURES, ROOT

RESULTS = ROOT / "docs" / "runs" / "faults"
_LONGEST = 320
_Newest = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]


def newest(folder: Path) -> _Newest:
    """Return category → (file name, its results, the category's), from the newest file with the category."""
    latest: _Newest = {}
    for path in folder.glob("*.json"):
        results = json.loads(path.read_text())
        for name, category in results["categories"].items():
            if name not in latest or results["date"] > latest[name][1]["date"]:
                latest[name] = path.name, results, category
    return dict(sorted(latest.items()))


def pages(folder: Path) -> dict[str, str]:
    """Return name of a part → the text between its marks."""
    latest = newest(folder)
    failures = [
        [name, _cell(failure["case"]), failure["outcome"], _cell(failure["detail"])]
        for name, (_, _, category) in latest.items()
        for failure in category["failures"]
    ]
    counts = ["category", "cases", "ended well", "failures", "minutes", "machine", "commit"]
    return {
        "counts": table(counts, [_counts(name, *results) for name, results in latest.items()]),
        "failures": table(["category", "case", "outcome", "detail"], failures) if failures else "None.",
    }


def _counts(name: str, file: str, results: dict[str, Any], category: dict[str, Any]) -> list[str]:
    good = [f"{count:,} {name}" for name, count in category["outcomes"].items() if name not in FAILURES]
    asked = "" if category["finished"] else f" of {category['asked']:,}, stopped before its end"
    machine = results["machine"]
    return [
        f"[`{name}`](/docs/runs/faults/{file})",
        f"{category['done']:,}{asked}",
        ", ".join(good) or "-",
        f"{len(category['failures']):,}",
        f"{category['seconds'] / 60:,.0f}",
        f"{machine['cores']} cores, load {machine['load']:g}",
        results["commit"][:12],
    ]


def _cell(text: str) -> str:
    """Format a message for a cell of a table, without markup and control characters."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"`` {printable.replace('|', '¦').replace('`', chr(39))} ``" if text else ""


if __name__ == "__main__":
    for path, text in written(ROOT, pages(RESULTS)).items():
        path.write_text(text)
        print(f"{path.relative_to(ROOT)}: {', '.join(newest(RESULTS)) or 'no results yet'}")
