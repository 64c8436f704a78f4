"""A table as Markdown."""

import contextlib
import shutil
import sys
from pathlib import Path

from fastpsl.tables.matching import needs_of
from fastpsl.tables.report import NOTHING, Report, gain_lines, lines_of, sizes_of


def markdown(report: Report) -> str:
    """The whole page: the table, what rows add, the sizes, which results went in, what is missing."""
    table = report.table
    parts = [
        f"# {table.title}",
        f"{table.number[0].upper()}{table.number[1:]}. {report.about} {report.data_words()}",
    ]
    parts += [_table(report), *table.notes]
    if report.gains:
        parts += [f"## {table.gains}", _gains(report)]
    if report.used:
        parts += ["## Results that went in", _used(report)]
    if report.missing:
        parts += [
            "## Missing",
            "In this order, from the folder that the table was made in:",
            _missing(report),
        ]
    if report.matches.unused:
        lines = [f"- `{path}`: {reason}" for path, reason in sorted(report.matches.unused.items())]
        parts += ["## Not used", "\n".join(lines)]
    parts += ["## Sizes", "\n".join(f"- {name}: {words}" for name, words in sizes_of(report).items())]
    return "\n\n".join(parts) + "\n"


def _table(report: Report) -> str:
    columns, with_size = report.table.columns, any(row.million_parameters for row in report.table.rows)
    head = ["Method", "Arch", *(["# Param (M)"] if with_size else []), "", *columns]
    lines = [_line(head), _line(["---"] * (len(head) - len(columns)) + ["--:"] * len(columns))]
    for row in report.table.rows:
        mark = f" ({report.mark(row)})" if report.mark(row) else ""
        first = [f"**{_plain(row.method)}**{mark}", row.arch]
        if with_size:
            first.append(str(row.million_parameters))
        for number, (whose, words) in enumerate(lines_of(report, row)):
            lines.append(_line([*(first if number == 0 else [""] * len(first)), whose, *words]))
    return "\n".join(lines)


def _gains(report: Report) -> str:
    columns = report.table.columns
    lines = [_line(["", "", *columns]), _line(["---", "---"] + ["--:"] * len(columns))]
    for gain in report.gains:
        name = _plain(f"{gain.row.method} − {gain.row.baseline}")
        for number, (whose, words) in enumerate(gain_lines(gain)):
            lines.append(_line([name if number == 0 else "", whose, *words]))
    return "\n".join(lines)


def _used(report: Report) -> str:
    lines = [
        _line(["Method", "Evaluation", "Seed", "Commit", "Checkpoint (sha256)", "File"]),
        _line(["---"] * 6),
    ]
    for method, evaluation, result in report.used:
        record = result.record
        digest = str(record["checkpoint"].get("sha256") or NOTHING)[:12]
        commit = str(record.get("commit") or NOTHING)[:10]
        lines.append(
            _line([_plain(method), evaluation.name, str(result.seed), commit, digest, f"`{result.path}`"])
        )
    return "\n".join(lines)


def _missing(report: Report) -> str:
    return "```bash\n" + "\n".join(missing_lines(report)) + "\n```"


def missing_lines(report: Report) -> list[str]:
    """A comment and the commands of each missing run, to be pasted into a shell."""
    lines = _path_line() if report.missing else []
    fine_tuned = {weights.base for weights, _ in needs_of(report.table)}
    for one in report.missing:
        there = ""
        if one.run is not None:
            there = "its pre-training is there" if one.run.can_be_evaluated else "its pre-training was begun"
            there = f" ({there}: {one.run.folder})"
        why = "to be fine-tuned" if one.weights in fine_tuned else "the pseudo-labels that it learns"
        evaluations = ", ".join(evaluation.name for evaluation in one.evaluations) or why
        lines.append(f"# {report.method_of(one.weights)}, seed {one.seed}: {evaluations}{there}")
        lines += one.commands
    return lines


def _path_line() -> list[str]:
    """Where torchrun is, if the shell would find none, or another environment's."""
    own, found = Path(sys.executable).parent, shutil.which("torchrun")
    if found is not None and Path(found).parent == own:
        return []
    with contextlib.suppress(ValueError):
        own = Path("$PWD") / own.relative_to(Path.cwd())
    return [f'export PATH="{own}:$PATH"']


def _plain(text: str) -> str:
    """Without Markdown's meaning: a method's star, an underscore, a citation's brackets."""
    return "".join(f"\\{letter}" if letter in "*_[]" else letter for letter in text)


def _line(words: list[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"
