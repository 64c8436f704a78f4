"""Write the experiments' numbers into docs/ and fastpsl's tables: `python -m bench.evidence.page`.

An experiment whose name is marked on a page, <!-- NAME begin --> and <!-- NAME end -->, has its tables there.
All others stand in the table and the chart of their paper's claim in docs/evidence.md. --check changes
nothing and exits with 1 where a file would be another.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.evidence.claims import (
    PAPERS,
    Group,
    by_best_block,
    by_block,
    chart_words,
    cost_words,
    evaluation_in_words,
    experiment_group,
    p_in_words,
    p_values,
    paper_groups,
)
from bench.evidence.model_zoo import PARTS as ZOO
from bench.evidence.model_zoo import zoo
from bench.evidence.plan import read_plan
from bench.evidence.worth import PARTS as WORTH
from bench.evidence.worth import charts as worth_charts
from bench.evidence.worth import parts as worth_parts
from bench.figures.svg import THEMES, render
from bench.performance import marks, pages_of, written
from bench.program import run_program
from fastpsl.files.atomic import write_atomically
from fastpsl.tables.templates import templates

ROOT = Path(__file__).resolve().parents[2]
PLANS = Path(__file__).parent
RUNS = ROOT / "docs" / "runs"
ROWS = ROOT / "fastpsl" / "tables" / "small_scale.json"
EVIDENCE = ROOT / "docs" / "evidence.md"
EXPERIMENTS = {path.stem for path in PLANS.glob("*.json")}
PARTS = {*(f"{claim} claim" for claim in PAPERS), "power", *ZOO, *WORTH}
_COMPARISONS = "6"  # of those in power.json: the most that a plan on two cores has


def texts() -> dict[Path, str]:
    """Return the files as the results make them, by path."""
    results = dict(read_results(RUNS))
    own = {name: page for page in pages_of(ROOT) for name in marks(page.read_text()) if name in EXPERIMENTS}
    parts = {name: part(name, results[name]) for name in own}
    charts = {path: svg for name, result in results.items() for path, svg in cost_charts(name, result)}
    charts |= worth_charts(results, ROOT)
    parts |= worth_parts(results)
    for claim in PAPERS:
        names = sorted(EXPERIMENTS - own.keys(), key=lambda name: (not name.startswith(claim), name))
        mine = {name: results.get(name) for name in names if _claim_of(name) == claim}
        groups, waiting = _groups(claim, mine)
        words = chart_words(claim, groups)
        charts |= {chart_path(claim, theme): render("forest", theme, words) for theme in THEMES}
        parts[f"{claim} claim"] = (
            _TEMPLATES.get_template("claim.md.jinja")
            .render(
                claim=claim, groups=groups, waiting=waiting, themes=THEMES, description=words["description"]
            )
            .strip()
        )
    parts["power"] = power_part(json.loads((RUNS / "power.json").read_text()))
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, result in results.items():
        if result["means"] and result["paper"]:
            rows.setdefault(result["paper"], []).append(_small_scale(result, own.get(name, EVIDENCE)))
    small = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    return {**written(ROOT, parts | zoo(RUNS, results)), **charts, ROWS: small}


def read_results(runs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and record of each experiment; ValueError if its plan was not committed before."""
    for path in sorted(runs.glob("*/results.json")):
        name = path.parent.name
        if name in EXPERIMENTS:
            result = json.loads(path.read_text())
            if result["plan_commit"] is None:
                raise ValueError(
                    f"docs/runs/{name}: its plan was not committed before it was run; remove it, commit "
                    f"bench/evidence/{result['plan']}, and run it again"
                )
            yield name, result


def cost_charts(name: str, result: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield path and content of an experiment's charts of cost, if its plan has them."""
    plan = read_plan(PLANS / f"{name}.json")
    if plan.cost and result["means"]:
        for theme in THEMES:
            yield chart_path(name, theme), render("cost", theme, cost_words(result, plan))


def chart_path(claim: str, theme: str) -> Path:
    """Return the path of the chart of a claim, or of an experiment."""
    return ROOT / "docs" / "images" / f"evidence-{claim}-{theme}.svg"


def _claim_of(name: str) -> str:
    return read_plan(PLANS / f"{name}.json").paper.partition("/")[0]


def _groups(claim: str, results: Mapping[str, Any]) -> tuple[list[Group], list[str]]:
    """Return the paper's comparisons and those of each experiment, and which experiments have none yet."""
    groups, waiting = [*paper_groups(claim)], []
    for name, result in results.items():
        plan = read_plan(PLANS / f"{name}.json")
        if result is not None and result["differences"]:
            times = RUNS / name / "times.json"
            of_times = json.loads(times.read_text()) if times.exists() else None
            groups.append(experiment_group(name, result, plan, of_times))
        else:
            waiting.append(f"`{name}`")
    return groups, waiting


def power_part(power: Mapping[str, Any]) -> str:
    """Return the table of the smallest differences that would be found, by number of seeds."""
    seeds = [f"{seeds} seeds" for seeds in next(iter(power["records"].values()))["smallest"][_COMPARISONS]]
    template = _TEMPLATES.get_template("power.md.jinja")
    return template.render(power, seeds=seeds, comparisons=_COMPARISONS).strip()


def part(name: str, result: Mapping[str, Any]) -> str:
    """Return an experiment's tables and files as Markdown."""
    columns, arms = by_block(result)
    best_columns, best = by_best_block(result)
    return (
        _TEMPLATES.get_template("experiment.md.jinja")
        .render(
            result,
            name=name,
            columns=columns,
            arms=arms,
            best_columns=best_columns,
            best=best,
            p=[*map(p_in_words, p_values(result))],
            evaluation=evaluation_in_words(result["endpoint"]["evaluation"]),
        )
        .strip()
    )


def _small_scale(result: Mapping[str, Any], page: Path) -> dict[str, Any]:
    """Return the record of `fastpsl.tables.page`."""
    columns, arms = by_block(result)
    return {
        "title": result["title"],
        "number": f"Top-1 accuracy by {evaluation_in_words(result['endpoint']['evaluation'])} in %",
        "page": page.relative_to(ROOT).as_posix(),
        "columns": columns,
        "rows": [[arm, cells] for arm, cells in arms.items()],
    }


_TEMPLATES = templates(Path(__file__).parent)


def main() -> int:
    """Write the files, or compare them."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        raise ValueError("give nothing, or --check")
    changed = {path: text for path, text in texts().items() if not path.exists() or path.read_text() != text}
    for path, text in changed.items():
        print(f"{path.relative_to(ROOT)}: {'is not what the results say' if check else 'written'}")
        if not check:
            write_atomically(path, text.encode())
    return int(check and bool(changed))


if __name__ == "__main__":
    run_program(main)
