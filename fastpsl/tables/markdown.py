"""A table as Markdown."""

from fastpsl.tables.report import NOTHING, Report, signed, sizes_of


def markdown(report: Report) -> str:
    """The whole page: the table, what PSL adds, the sizes, which results went in, what is missing."""
    table = report.table
    parts = [f"# {table.title}", f"{table.number.capitalize()}. {report.scale.about} {report.data_words()}"]
    parts += [_table(report), *table.notes]
    if report.gains:
        parts += ["## What stages add", _gains(report)]
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
        cells = report.cells[row.method]
        mark = f" ({report.mark(row)})" if report.mark(row) else ""
        first = [f"**{_plain(row.method)}**{mark}", row.arch]
        if with_size:
            first.append(str(row.million_parameters))
        lines.append(_line([*first, "paper", *(f"{cell.paper:.1f}" for cell in cells)]))
        if not row.measures:
            continue
        empty = [""] * len(first)
        lines.append(_line([*empty, "ours", *ours_in_words(report, row.method)]))
        if report.scale.comparable:
            lines.append(_line([*empty, "ours − paper", *(signed(cell.difference) for cell in cells)]))
    return "\n".join(lines)


def ours_in_words(report: Report, method: str) -> list[str]:
    """Ours of a row, a column each; the block's name where it is the best of several; a dash where nothing is measured."""
    words = []
    for measure, cell in zip(report.table.row(method).measures, report.cells[method], strict=True):
        block = f" {cell.ours.number.removeprefix('top1_')}" if cell.ours and len(measure.numbers) > 1 else ""
        words.append(f"{cell.ours}{block}" if cell.ours else NOTHING)
    return words


def _gains(report: Report) -> str:
    columns = report.table.columns
    lines = [_line(["", "", *columns]), _line(["---", "---"] + ["--:"] * len(columns))]
    for gain in report.gains:
        lines.append(
            _line(
                [
                    _plain(f"{gain.row.method} − {gain.row.baseline}"),
                    "paper",
                    *(signed(value) for value in gain.paper),
                ]
            )
        )
        lines.append(_line(["", "ours", *(signed(value) for value in gain.ours)]))
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
            _line([_plain(method), evaluation, str(result.seed), commit, digest, f"`{result.path}`"])
        )
    return "\n".join(lines)


def _missing(report: Report) -> str:
    return "```bash\n" + "\n".join(missing_lines(report)) + "\n```"


def missing_lines(report: Report) -> list[str]:
    """A comment and the commands of each missing run, to be pasted into a shell."""
    lines = []
    for one in report.missing:
        there = ""
        if one.run is not None:
            there = "its pre-training is there" if one.run.can_be_evaluated else "its pre-training was begun"
            there = f" ({there}: {one.run.folder})"
        evaluations = ", ".join(evaluation.name for evaluation in one.evaluations)
        lines.append(f"# {report.method_of(one.weights)}, seed {one.seed}: {evaluations}{there}")
        lines += one.commands
    return lines


def _plain(text: str) -> str:
    """Without Markdown's meaning: a method's star, an underscore, a citation's brackets."""
    return "".join(f"\\{letter}" if letter in "*_[]" else letter for letter in text)


def _line(words: list[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"
