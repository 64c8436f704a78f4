"""Write the experiments' numbers into methods' pages and fastpsl's tables: `python -m bench.evidence.page`.

docs/runs/NAME/results.json of an experiment fills what stands between <!-- NAME begin --> and
<!-- NAME end --> of the page that has these marks. --check changes nothing and exits
with 1 where a file would be another.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.evidence.model_zoo import zoo
from bench.evidence.plan import RANDOM, UNTRAINED, Plan
from bench.evidence.results import block_means, holm
from bench.performance import marks, written
from bench.program import run_program
from fastpsl.files.atomic import write_atomically
from fastpsl.tables.templates import templates

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "docs" / "runs"
ROWS = ROOT / "fastpsl" / "tables" / "small_scale.json"
EXPERIMENTS = {path.stem for path in Path(__file__).parent.glob("*.json")}


def texts() -> dict[Path, str]:
    """Return the files as the results make them, by path."""
    found: dict[str, Mapping[str, Any]] = {}
    parts: dict[str, str] = {}
    for path in sorted(RUNS.glob("*/results.json")):
        name, result = path.parent.name, json.loads(path.read_text())
        if name not in EXPERIMENTS:
            continue
        if result["plan_commit"] is None:
            raise ValueError(f"docs/runs/{name}: its plan was not committed before it was run")
        found[name] = result
        parts[name] = part(name, result, times=path.with_name("times.json").exists())
    made = written(ROOT, parts | zoo(RUNS, found, _EVALUATIONS))
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, result in found.items():
        page = next(page for page, text in made.items() if name in marks(text))
        rows.setdefault(result["paper"], []).append(_small_scale(result, page))
    return {**made, ROWS: json.dumps(rows, indent=1, ensure_ascii=False) + "\n"}


def part(name: str, result: Mapping[str, Any], *, times: bool = False) -> str:
    """Return an experiment's tables and files as Markdown; `times`: it has times.json."""
    columns, arms = _cells(result)
    return _TEMPLATES.get_template("experiment.md.jinja").render(
        result,
        name=name,
        columns=columns,
        arms=arms,
        p=_p_values([one["values"] for one in result["differences"]]),
        times=times,
        evaluation=in_words(result["endpoint"]["evaluation"]),
    )


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

    def words(row: Mapping[str, Any]) -> str:
        num = len(row["values"])
        return f"{row['mean']:.1f}" + (f" ± {row['deviation']:.1f} ({num})" if num > 1 else "")

    numbers, means = block_means(result)
    blocks = [number.rpartition("_")[2] for number in numbers]
    return blocks, {arm: [*map(words, rows)] for arm, rows in means.items()}


_TEMPLATES = templates(Path(__file__).parent)


_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f00", "#332288",
    "#882255",
)  # fmt: skip
_GREY = "#777777"
_EVALUATIONS = {"linear": "linear classifiers", "neighbours": "nearest neighbours"}


def draw_figure(plan: Plan, results: Mapping[str, Any], path: Path) -> Path:
    """Draw results.json as a PNG: scores by block, paired differences, and the plan's curve if it has one."""
    heights = [3.4, 0.8 + 0.26 * len(results["differences"]), *([3.4] if results["curves"] else [])]
    figure = Figure(figsize=(7.6, sum(heights) + 0.8), dpi=220, layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights)
    colours = dict(zip(plan.arms, cycle(_COLOURS), strict=False)) | {RANDOM: _GREY, UNTRAINED: "black"}
    _draw_scores(axes[0], plan, results, colours)
    _draw_differences(axes[1], results["differences"])
    if results["curves"]:
        _draw_curves(axes[2], plan, results["curves"], colours)
    figure.suptitle(plan.title, fontsize=11)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(
        lines, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=8, frameon=False
    )
    figure.savefig(path)
    return path


def in_words(evaluation: str) -> str:
    """Return the name of an evaluation for people."""
    return _EVALUATIONS.get(evaluation, evaluation)


def _draw_scores(axes: Axes, plan: Plan, results: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    numbers, means = block_means(results)
    for arm, rows in means.items():
        axes.plot(
            range(len(rows)), [row["mean"] for row in rows], color=colours[arm], label=arm, linewidth=1.4
        )
        for place, row in enumerate(rows):
            axes.scatter([place] * len(row["values"]), row["values"], color=colours[arm], s=12, zorder=3)
    axes.set_xticks(range(len(numbers)), [number.rpartition("_")[2] for number in numbers])
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(f"by {in_words(plan.endpoint.evaluation)}, a point for each seed", fontsize=10, loc="left")
    axes.grid(alpha=0.3)


def _draw_differences(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    for place, row in enumerate(rows):
        if row["interval"]:
            axes.plot(row["interval"], [place, place], color=_COLOURS[0], linewidth=2)
        axes.scatter(row["values"], [place] * len(row["values"]), color=_GREY, s=12, zorder=3)
        axes.scatter([row["mean"]], [place], color=_COLOURS[0], s=36, zorder=4)
    names = [f"{' - '.join(row['pair'])}, {row['number'].rpartition('_')[2]}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("points of accuracy")
    axes.set_title("differences of one seed: seeds, mean, 95 % interval", fontsize=10, loc="left")
    axes.grid(alpha=0.3, axis="x")


def _draw_curves(axes: Axes, plan: Plan, curves: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for arm, of_arm in curves.items():
        for values in of_arm["values"]:
            axes.plot(of_arm["epochs"], values, color=colours[arm], linewidth=0.6, alpha=0.5)
        means = [statistics.fmean(values) for values in zip(*of_arm["values"], strict=True)]
        axes.plot(of_arm["epochs"], means, color=colours[arm], linewidth=1.8)
    axes.set_xlabel("epoch")
    assert plan.curve is not None
    axes.set_title(f"{plan.curve.name.replace('_', ' ')} while training, %", fontsize=10, loc="left")
    axes.grid(alpha=0.3)


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
