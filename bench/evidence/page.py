"""Write the experiments' numbers into docs/evidence and fastpsl's tables: `python -m bench.evidence.page`.

docs/runs/NAME/results.json of an experiment, and times.json if it is there, fill what stands between
<!-- NAME begin --> and <!-- NAME end --> of the page that has these marks. --check changes nothing and exits
with 1 where a file would be another.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.evidence.figure import in_words
from bench.evidence.results import block_means, holm
from bench.pages import marks, written
from bench.program import run_program
from fastpsl.files.atomic import write_atomically
from fastpsl.tables.page import templates

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "docs" / "runs"
ROWS = ROOT / "fastpsl" / "tables" / "small_scale.json"
EXPERIMENTS = {path.stem for path in Path(__file__).parent.glob("*.json")}


def texts() -> dict[Path, str]:
    """Return the files as the results make them, by path.

    Raises:
        ValueError: No page has the marks of a result, or a result does not come from a committed plan.
    """
    found: dict[str, Mapping[str, Any]] = {}
    parts: dict[str, str] = {}
    for path in sorted(RUNS.glob("*/results.json")):
        name, result = path.parent.name, json.loads(path.read_text())
        if name not in EXPERIMENTS:
            continue
        if result["plan_commit"] is None:
            raise ValueError(f"docs/runs/{name}: its plan was not committed before it was run")
        times = path.with_name("times.json")
        found[name] = result
        parts[name] = part(name, result, json.loads(times.read_text()) if times.exists() else None)
    made = written(ROOT, parts)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, result in found.items():
        page = next(page for page, text in made.items() if name in marks(text))
        rows.setdefault(result["paper"], []).append(_small_scale(result, page))
    return {**made, ROWS: json.dumps(rows, indent=1, ensure_ascii=False) + "\n"}


def part(name: str, result: Mapping[str, Any], times: Mapping[str, Any] | None = None) -> str:
    """Return the figure, the tables and the origin of an experiment as Markdown, with its times if given."""
    columns, arms = _cells(result)
    scores, earlier = result["scores"], result.get("earlier", [])
    stages = [stage for training in result["training"] for stage in training["stages"]]
    return _TEMPLATES.get_template("experiment.md.jinja").render(
        result,
        name=name,
        columns=columns,
        arms=arms,
        changes={arm: of["change"] for arm, of in result["curves"].items() if "change" in of},
        seeds=sorted({score["seed"] for score in scores}),
        search_seeds=sorted({score["seed"] for score in result["search"]}),
        code=_code(scores),
        machines=[one["environment"] | {"plan_commit": one["plan_commit"]} for one in (*earlier, result)],
        earlier=earlier,
        beside=_beside(result.get("beside", [])),
        p=_p_values([one["values"] for one in result["differences"]]),
        train=next(s["data"] for s in scores if s["evaluation"] == result["endpoint"]["evaluation"]),
        times=times,
        evaluation=in_words(result["endpoint"]["evaluation"]),
        percent=f"{100 * times['accuracy']:g}" if times else "",
        hours=sum(stage["seconds"] for stage in stages) / 3600,
    )


def _code(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each commit of the code with the days on which it ran, and the arms that it scored."""
    commits = list(dict.fromkeys(score["commit"] for score in scores))
    return [
        {
            "commit": commit[:10],
            "dates": sorted({score["date"][:10] for score in scores if _is_dated_of(score, commit)}),
            "rows": list(dict.fromkeys(score["arm"] for score in scores if score["commit"] == commit)),
        }
        for commit in commits
    ]


def _is_dated_of(score: Mapping[str, Any], commit: str) -> bool:
    return score["commit"] == commit and "date" in score  # early records have no dates


def _beside(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """Return each number to compare with: its name, what it is, and the values of the seeds."""
    values: dict[tuple[str, str], list[float]] = {}
    for one in records:
        values.setdefault((one["name"], one["number"]), []).append(one["numbers"][one["number"]])
    return [(name, number, found) for (name, number), found in values.items()]


def _p_values(differences: Sequence[Sequence[float]]) -> list[str]:
    """Return p values in words, corrected for their number; none of single seeds."""
    if any(len(values) < 2 for values in differences):
        return [""] * len(differences)
    return ["< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") for p in holm(differences)]


def _small_scale(result: Mapping[str, Any], page: Path) -> dict[str, Any]:
    """Return the record of `fastpsl.tables.page`."""
    columns, arms = _cells(result)
    return {
        "title": result["title"],
        "number": f"Top-1 accuracy by {result['endpoint']['evaluation']} in %",
        "page": page.relative_to(ROOT).as_posix(),
        "columns": columns,
        "rows": [[arm, cells] for arm, cells in arms.items()],
    }


def _cells(result: Mapping[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of the blocks, and the means of each arm in words."""
    numbers, means = block_means(result)
    blocks = [number.rpartition("_")[2] for number in numbers]
    return blocks, {arm: [_words(row) for row in rows] for arm, rows in means.items()}


def _words(row: Mapping[str, Any]) -> str:
    num = len(row["values"])
    return f"{row['mean']:.1f} ± {row['deviation']:.1f} ({num})" if num > 1 else f"{row['mean']:.1f}"


_TEMPLATES = templates(Path(__file__).parent)
_TEMPLATES.filters["signed"] = "{:+.1f}".format
_TEMPLATES.filters["tenths"] = "{:.1f}".format
_TEMPLATES.filters["seconds"] = lambda seconds: "never" if seconds is None else f"{seconds:.0f}"


def main() -> int:
    """Write the files, or compare them."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        raise ValueError("give nothing, or --check")
    changed = {path: text for path, text in texts().items() if path.read_text() != text}
    for path, text in changed.items():
        print(f"{path.relative_to(ROOT)}: {'is not what the results say' if check else 'written'}")
        if not check:
            write_atomically(path, text.encode())
    return int(check and bool(changed))


if __name__ == "__main__":
    run_program(main)
