"""The page of a table, as Markdown with a chart: `fastpsl table`.

`python -m bench.evidence.page` writes small_scale.json from the results in docs/runs.
"""

import contextlib
import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from fastpsl.console.markdown import block, code, plain, table_row
from fastpsl.console.words import pasted
from fastpsl.engine.options import flag
from fastpsl.files.atomic import write_atomically
from fastpsl.files.paths import named_files
from fastpsl.files.system_errors import output_errors
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.tables import data_sets
from fastpsl.tables.matching import Place, needs_of, value_words
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.report import Cell, Report, make_report
from fastpsl.tables.results import RunIndex, index_runs
from fastpsl.tables.rows import Measure, Row, Table
from fastpsl.tables.scales import SCALES, Scale
from fastpsl.tables.templates import templates


def markdown(report: Report) -> str:
    """Return the whole page: the table, what rows add, which results went in, what is missing, the sizes."""
    return _TEMPLATES.get_template("page.md.jinja").render(words_of(report))


_TEMPLATES = templates(Path(__file__).parent)
_TEMPLATES.filters |= {"plain": plain, "code": code, "block": block, "table_row": table_row}


@cache
def _small_scale() -> dict[str, list[dict[str, Any]]]:
    """Return our experiments on few images with a small network, by the table whose claim they test."""
    records = Path(__file__).with_name("small_scale.json").read_text(encoding="utf-8")
    return cast(dict[str, list[dict[str, Any]]], json.loads(records))


NOTHING = "–"


class Group(NamedTuple):
    """A row of a page's table: name, remark, cells before the numbers, and lines of a title with numbers."""

    name: str
    mark: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]


def words_of(report: Report) -> dict[str, Any]:
    """Return all that a page says, by the names that the templates use."""
    table = report.table
    about = report.scale.about[table.paper]
    with_size = any(row.million_parameters for row in table.rows)
    return {
        "table": table,
        "intro": f"{table.number[0].upper()}{table.number[1:]}. {about} {report.data_words()}",
        "head": ("Method", "Arch", *(["# Param (M)"] if with_size else []), ""),
        "rows": [_group(report, row, with_size) for row in table.rows],
        "gains": _gains(report),
        "small": _small_scale().get(table.name, ()),
        "used": _used(report),
        "missing": missing_lines(report),
        "unused": [(str(path), reason) for path, reason in sorted(report.matches.unused.items())],
        "sizes": sizes_of(table, report.scale),
    }


def _group(report: Report, row: Row, with_size: bool) -> Group:
    """Return a row: the paper's line, ours, and the difference if it means anything."""
    cells = report.cells[row.method]
    lines = [("paper", tuple(_printed(cell.paper) for cell in cells))] if row.printed else []
    if row.measures:
        lines.append(("ours", tuple(_measured(m, cell) for m, cell in zip(row.measures, cells, strict=True))))
        if row.printed and report.scale.comparable:
            lines.append(("ours − paper", tuple(_signed(cell.difference) for cell in cells)))
    head = (row.arch, str(row.million_parameters)) if with_size else (row.arch,)
    return Group(row.method, report.mark(row), head, tuple(lines))


def _gains(report: Report) -> list[Group]:
    """Return what the paper's rows gain and what ours do."""
    groups = []
    for gain in report.gains:
        paper = [("paper", tuple(map(_signed, gain.paper)))] if gain.row.printed else []
        lines = (*paper, ("ours", tuple(map(_signed, gain.ours))))
        groups.append(Group(f"{gain.row.method} − {gain.row.baseline}", "", (), lines))
    return groups


def _printed(number: float | None) -> str:
    """Return a number with one digit behind the point, or with two where the paper prints them."""
    return NOTHING if number is None else f"{number:.2f}".removesuffix("0").replace("-", "−")


def _measured(measure: Measure, cell: Cell) -> str:
    """Return our number, with the block's name where it is the best of several, or a dash."""
    if cell.ours is None:
        return NOTHING
    if len(measure.numbers) == 1 or measure.of != "best":
        return str(cell.ours)
    return f"{cell.ours} {cell.ours.name.removeprefix('top1_').removeprefix('mAP_')}"


def _signed(value: float | None) -> str:
    """Return +5.2, −1.5 or a dash."""
    return NOTHING if value is None else f"{value:+.1f}".replace("-", "−")


def _used(report: Report) -> list[dict[str, str]]:
    return [
        {
            "Method": method,
            "Evaluation": evaluation.name,
            "Seed": str(result.seed),
            "Date": str(result.record.get("date") or NOTHING)[:10],
            "Commit": str(result.record.get("commit") or NOTHING)[:10],
            "Checkpoint (sha256)": str(result.record["checkpoint"].get("sha256") or NOTHING)[:12],
            "Data (train / val)": data_sets.in_words(data_sets.data_of(result, report.table, evaluation)),
            "File": str(result.path),
        }
        for method, evaluation, result in report.used
    ]


def missing_lines(report: Report) -> list[str]:
    """Return a comment and the commands of each missing run, to be pasted into a shell."""
    lines = _path_line() if report.missing else []
    fine_tuned = {weights.base for weights, _ in needs_of(report.table)}
    for missing in report.missing:
        remark = ""
        if (run := missing.run) is not None:
            state = "is there" if run.can_be_evaluated else "was begun"
            remark = f" (its pre-training {state}: {run.folder})"
        reason = "to be fine-tuned" if missing.weights in fine_tuned else "the pseudo-labels that it learns"
        work = ", ".join(evaluation.name for evaluation in missing.evaluations) or reason
        line = f"# {report.method_of(missing.weights)}, seed {missing.seed}: {work}{remark}"
        lines.append(" ".join(line.split()))  # a comment ends with its line, and folders have any name
        lines += missing.commands
    return lines


def _path_line() -> list[str]:
    """Return a line that puts this environment on the PATH, if a shell finds no fastpsl or another one."""
    folder, program = Path(sys.executable).parent, shutil.which("fastpsl")
    if program is not None and Path(program).parent == folder:
        return []
    with contextlib.suppress(ValueError):
        return [f'export PATH="$PWD"/{pasted(folder.relative_to(Path.cwd()))}:"$PATH"']
    return [f'export PATH={pasted(folder)}:"$PATH"']


def sizes_of(table: Table, scale: Scale) -> dict[str, str]:
    """Return the values of all trainings, labels and evaluations of a table in words, by name."""
    sizes: dict[str, Mapping[str, Any]] = {}
    for weights, evaluation in needs_of(table):
        for training in (weights.before, weights):
            if training and training.recipe:
                sizes[training.recipe] = scale.recipe_values(training.recipe)
                sizes[f"{training.recipe}/{training.variant}"] = scale.variant_values(training)
                if source := training.label_file:
                    sizes[f"labels/{source}"] = scale.label_values(source)
        sizes[evaluation.name] = scale.evaluation_values(evaluation)
    return {
        name: ", ".join(f"{key} {value_words(value)}" for key, value in values.items() if value is not None)
        for name, values in sizes.items()
        if values
    }


def make_table(
    name: str,
    runs: Path | None,
    out: Path | None,
    *,
    scale: str = "paper",
    data: str | None = None,
    val: str | None = None,
    pretrain_data: str | None = None,
    others: data_sets.Paths,
    num_processes: int | None = None,
) -> tuple[Report, list[str]]:
    """Write OUT/NAME.md and .png if there is OUT; return the table and the lines to print below it.

    The lines say which results are there and give the commands of those that are missing. Without `runs` it
    is runs/, which need not exist.

    `data`, `val`, `pretrain_data` and `others` (by name in OTHER_DATA) are for the commands. Where these data
    can be opened, only results on them count. `num_processes` is by default that of the scale.
    """
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--gpus {num_processes}: give 1 or more")
    table = TABLES[name]
    if pretrain_data is not None and not table.pretrains_elsewhere:
        raise ValueError(
            f"--pretrain-data {pretrain_data}: the trainings of {name} learn from --data; leave it out"
        )
    for other, paths in others.items():
        if other not in table.reads:
            raise ValueError(
                f"{flag(other)} {' '.join(paths)}: the evaluations of {name} do not read "
                f"{data_sets.OTHER_DATA[other].title}; leave it out"
            )
    values, folder = SCALES[scale], runs or Path("runs")
    index = index_runs(folder) if runs is not None or folder.exists() else RunIndex()
    existing = {other: paths for other, paths in others.items() if all(map(named_files, paths))}
    parts = {"train": data, "val": val, "pretrain": pretrain_data}
    given = {part: path for part, path in parts.items() if path is not None}
    asked, num_images = dict[str, str](), dict[str, int]()
    for part, path in given.items():
        if named_files(path):
            with contextlib.closing(open_data(path)) as opened:
                asked[part], num_images[part] = opened.digest(), opened.num_samples
    absent = [f"{data_sets.FLAGS[part]} {path}" for part, path in given.items() if part not in asked]
    absent += [f"{flag(other)} {' '.join(paths)}" for other, paths in others.items() if other not in existing]
    asked |= data_sets.digests_of_other_data(table, existing)
    place = Place(folder, num_processes or values.num_processes[table.paper], given, num_images, others)
    report = make_report(table, values, index, asked, place)
    files = [] if out is None else _write(report, out)
    if absent:
        warnings.warn(f"{' and '.join(absent)}: not here, so results are not compared with it", stacklevel=1)
    written = ["", *(f"written: {path}" for path in files)] if files else []
    return report, [*_lines(report, folder), *written]


def _write(report: Report, out: Path) -> list[Path]:
    """Write OUT/NAME.md and .png, and return their paths."""
    stem = out / report.table.name.replace("/", "-")
    page, chart = files = [stem.with_suffix(suffix) for suffix in (".md", ".png")]
    with output_errors(stem):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(page, markdown(report).encode())
        from fastpsl.tables.chart import save_chart  # imports matplotlib, which scripts of Slurm do without

        save_chart(report, chart)
    return files


def _lines(report: Report, runs: Path) -> list[str]:
    lines = [f"{len(report.used)} of {report.num_needed} results in {runs}, {report.scale.name} scale"]
    lines += [
        f"  there    {method}, seed {result.seed}, {evaluation.name}: {result.path}"
        for method, evaluation, result in report.used
    ]
    lines += [f"  not used {path}: {reason}" for path, reason in sorted(report.matches.unused.items())]
    if report.matches.num_other:
        lines.append(f"  {report.matches.num_other} other results are of no row of this table")
    if report.missing:
        lines += ["", "# missing, in this order:", *missing_lines(report)]
    return lines
