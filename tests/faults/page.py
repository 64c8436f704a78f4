"""The writer of the tables of faults in docs/, from the results in docs/runs/faults/.

python -m tests.faults.page            after a new file there
"""

import json
from pathlib import Path
from typing import Any

from bench.performance import written
from bench.tables import table
from tests.faults.report import FAILURES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "runs" / "faults"
# Categories that show every case in a row of its own, with its first detail.
IN_FULL = ("surroundings", "ranks", "openings", "training")
_LONGEST = 320


def newest(folder: Path) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return category → (file name, its results, the category's), from the newest file with the category."""
    latest: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for path in folder.glob("*.json"):
        results = json.loads(path.read_text())
        for name, category in results["categories"].items():
            if name not in latest or results["date"] > latest[name][1]["date"]:
                latest[name] = path.name, results, category
    return dict(sorted(latest.items()))


def pages(folder: Path) -> dict[str, str]:
    """Return name of a part → the text between its marks."""
    latest = newest(folder)
    return {"counts": _counts(latest), "failures": _failures(latest), "cases": _cases(latest)}


def _counts(latest: dict[str, tuple[str, dict[str, Any], dict[str, Any]]]) -> str:
    rows = []
    for name, (file, results, category) in latest.items():
        outcomes, failed = category["outcomes"], len(category["failures"])
        ended_well = ", ".join(
            f"{count:,} {outcome}" for outcome, count in outcomes.items() if outcome not in FAILURES
        )
        num_done = f"{category['done']:,}" + (
            "" if category["finished"] else f" of {category['asked']:,}, stopped before its end"
        )
        machine = results["machine"]
        rows.append(
            [
                f"[`{name}`](/docs/runs/faults/{file})",
                num_done,
                ended_well or "-",
                f"{failed:,}",
                f"{category['seconds'] / 60:,.0f}",
                f"{machine['cores']} cores, load {machine['load']:g}",
                results["commit"][:12],
            ]
        )
    return table(["category", "cases", "ended well", "failures", "minutes", "machine", "commit"], rows)


def _failures(latest: dict[str, tuple[str, dict[str, Any], dict[str, Any]]]) -> str:
    rows = [
        [name, _cell(failure["case"]), failure["outcome"], _cell(failure["detail"])]
        for name, (_, _, category) in latest.items()
        for failure in category["failures"]
    ]
    return table(["category", "case", "outcome", "detail"], rows) if rows else "None."


def _cases(latest: dict[str, tuple[str, dict[str, Any], dict[str, Any]]]) -> str:
    rows = [
        [
            name,
            _cell(case),
            f"{outcome} ({what['count']})" if what["count"] > 1 else outcome,
            _cell(what["first"]),
        ]
        for name in IN_FULL
        if name in latest
        for case, outcomes in latest[name][2]["cases"].items()
        for outcome, what in outcomes.items()
    ]
    return (
        table(["category", "case", "outcome", "what was said or measured first"], rows)
        if rows
        else "Not run."
    )


def _cell(text: str) -> str:
    """Format a message for a cell of a table, without markup and control characters."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"`` {printable.replace('|', '¦').replace('`', chr(39))} ``" if text else ""


def main() -> None:
    for page, text in written(ROOT, pages(RESULTS)).items():
        page.write_text(text)
        print(f"{page.relative_to(ROOT)}: {', '.join(newest(RESULTS)) or 'no results yet'}")


if __name__ == "__main__":
    main()
