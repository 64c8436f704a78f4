"""Write one table of a paper beside our measurements, as Markdown, PNG and HTML: `fastpsl table`."""

import contextlib
import glob
import warnings
from pathlib import Path

from fastpsl.files.atomic import output_errors, write_atomically
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.tables.chart import save_chart
from fastpsl.tables.commands import Place
from fastpsl.tables.data_sets import OTHER_DATA, DataSet, Paths, digests, flag_of
from fastpsl.tables.page import html, markdown, missing_lines
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.report import Report, make_report
from fastpsl.tables.results import index_runs
from fastpsl.tables.scales import SCALES

TRAIN_PLACEHOLDER, VAL_PLACEHOLDER, PRETRAIN_PLACEHOLDER = "TRAIN.beton", "VAL.beton", "PRETRAIN.beton"


def make_table(
    name: str,
    runs: Path,
    out: Path,
    *,
    scale: str = "paper",
    data: str | None = None,
    val: str | None = None,
    pretrain_data: str | None = None,
    others: Paths,
    num_processes: int | None = None,
) -> list[str]:
    """Write OUT/NAME.md, .png and .html, and return the lines to print.

    The lines say which results are there and give the commands of those that are missing.

    Args:
        name: The table, such as psl/5.
        runs: The folder that holds the runs.
        out: The folder to write to.
        scale: The scale, paper or tiny.
        data: The training images, for the commands. If they can be opened, only results on them count.
        val: The validation images, for the same use.
        pretrain_data: The images that trainings without labels learn from, for the same use, in tables that
            have a set for that.
        others: The data that evaluations read instead of these, for the same use, by its name in
            `other_data`.
        num_processes: The processes of the commands; None for the scale's.

    Raises:
        ValueError: The table or the scale is unknown, the table does not read such data, or `runs` is no
            folder. Or there are results of several data sets, and nothing tells which counts.
    """
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}: allowed are {', '.join(TABLES)}")
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: allowed are {', '.join(SCALES)}")
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
                f"{flag_of(other)} {' '.join(paths)}: the evaluations of {name} do not read "
                f"{OTHER_DATA[other].title}; leave it out"
            )
    values, index = SCALES[scale], index_runs(runs)
    existing = {other: paths for other, paths in others.items() if all(map(_is_there, paths))}
    data_set = DataSet(_digest(data), _digest(val), _digest(pretrain_data), digests(table, existing))
    place = Place(
        runs,
        data or TRAIN_PLACEHOLDER,
        val or VAL_PLACEHOLDER,
        pretrain_data or PRETRAIN_PLACEHOLDER,
        num_processes or values.num_processes[table.paper],
        others,
    )
    report = make_report(table, values, index, data_set, place)
    stem = out / name.replace("/", "-")
    page, chart, web_page = files = [stem.with_suffix(suffix) for suffix in (".md", ".png", ".html")]
    with output_errors(stem):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(page, markdown(report).encode())
        save_chart(report, chart)
        write_atomically(web_page, html(report, chart).encode())
    named = (("--data", data), ("--val", val), ("--pretrain-data", pretrain_data))
    absent = [f"{flag} {name}" for flag, name in named if name and not _is_there(name)]
    absent += [
        f"{flag_of(other)} {' '.join(names)}" for other, names in others.items() if other not in existing
    ]
    if absent:
        warnings.warn(f"{' and '.join(absent)}: not here, so results are not compared with it", stacklevel=1)
    return [*_lines(report, runs), "", *(f"written: {path}" for path in files)]


def _digest(data: str | None) -> str | None:
    """Return the digest of a data set; None if it is not here: commands may name one of another machine."""
    if data is None or not _is_there(data):
        return None
    with contextlib.closing(open_data(data)) as opened:
        return opened.digest()


def _is_there(data: str) -> bool:
    return bool(glob.glob(data))


def _lines(report: Report, runs: Path) -> list[str]:
    num_results = f"{len(report.used)} of {report.num_needed} results in {runs}"
    lines = [f"{report.table.title}, {report.scale.name} scale: {num_results}"]
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
