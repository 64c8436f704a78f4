"""A table as one HTML file that needs nothing else: no network, no scripts; light or dark as the reader's system is."""

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image

from fastpsl.tables.data_sets import data_of
from fastpsl.tables.markdown import missing_lines
from fastpsl.tables.report import NOTHING, Report, gain_lines, lines_of, sizes_of

MAX_PICTURE_PX = 1100
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --faint: #5b6470; --paper: #fff; --line: #d5d9df; --ours: #b23c0b; --box: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --faint: #a2abb6; --paper: #16181c; --line: #3a4049; --ours: #ff9d66; --box: #20242a; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: left; vertical-align: top; white-space: nowrap; }
td.text { white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); }
tr.first > * { border-top: 1px solid var(--line); }
.number { text-align: right; }
.ours { color: var(--ours); font-weight: 600; }
.faint { color: var(--faint); font-weight: normal; }
pre { background: var(--box); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
img { max-width: 100%; height: auto; background: #fff; }
figure { margin: 1rem 0; } figcaption { color: var(--faint); }
code { overflow-wrap: anywhere; }
"""


def html(report: Report, chart: Path) -> str:
    """The page. chart: the PNG of the same table."""
    table = report.table
    alt = f"{table.title}: the numbers of the table as points"
    paper = "Dashed lines" if table.curves else "Open diamonds"
    caption = f"{paper}: the paper's numbers. Dots: ours, with the standard deviation over the seeds."
    parts = [
        f"<h1>{escape(table.title)}</h1>",
        _paragraph(f"{table.number[0].upper()}{table.number[1:]}. {report.about} {report.data_words()}"),
        _table(report),
        *(_paragraph(note) for note in table.notes),
        _figure(chart, caption, alt),
    ]
    if report.gains:
        parts += [f"<h2>{escape(table.gains)}</h2>", _gains(report)]
    if report.used:
        parts += ["<h2>Results that went in</h2>", _used(report)]
    if report.missing:
        lines = escape("\n".join(missing_lines(report)))
        parts += [
            "<h2>Missing</h2>",
            _paragraph("In this order, from the folder that the table was made in:"),
        ]
        parts += [f"<pre>{lines}</pre>"]
    if report.matches.unused:
        reasons = (
            f"<li><code>{escape(str(path))}</code>: {escape(reason)}</li>"
            for path, reason in sorted(report.matches.unused.items())
        )
        parts += ["<h2>Not used</h2>", f"<ul>{''.join(reasons)}</ul>"]
    sizes = (f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in sizes_of(report).items())
    parts += ["<h2>Sizes</h2>", f"<dl>{''.join(sizes)}</dl>", *_pictures(report)]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(table.title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _row(cells: Iterable[str], kind: str = "td", first: bool = False) -> str:
    return f"<tr{' class=first' if first else ''}>{''.join(cells)}</tr>".replace("<td", f"<{kind}")


def _cell(text: str, name: str = "", span: int = 1) -> str:
    kind = f' class="{name}"' if name else ""
    rows = f' rowspan="{span}"' if span > 1 else ""
    return f"<td{kind}{rows}>{escape(text)}</td>"


def _line(whose: str, words: Iterable[str]) -> list[str]:
    """Cells of a line of numbers; ours stand out."""
    name = {"paper": "", "ours": "ours"}.get(whose, "faint")
    return [_cell(whose, name or "faint"), *(_cell(text, f"number {name}".strip()) for text in words)]


def _wide(head: str, body: Iterable[str]) -> str:
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def _heads(texts: Iterable[str], columns: Iterable[str]) -> str:
    heads = [f'<th scope="col">{escape(text)}</th>' for text in texts]
    heads += [f'<th scope="col" class="number">{escape(text)}</th>' for text in columns]
    return _row(heads)


def _table(report: Report) -> str:
    with_size = any(row.million_parameters for row in report.table.rows)
    head = _heads(["Method", "Arch", *(["# Param (M)"] if with_size else []), ""], report.table.columns)
    body = []
    for row in report.table.rows:
        lines = [_line(whose, words) for whose, words in lines_of(report, row)]
        span = f' rowspan="{len(lines)}"' if len(lines) > 1 else ""
        mark = f'<br><span class="faint">{escape(report.mark(row))}</span>' if report.mark(row) else ""
        names = [f'<th scope="row" class="text"{span}>{escape(row.method)}{mark}</th>']
        names.append(_cell(row.arch, span=len(lines)))
        if with_size:
            names.append(_cell(str(row.million_parameters), "number", len(lines)))
        body += [_row([*names, *lines[0]], first=True), *(_row(line) for line in lines[1:])]
    return _wide(head, body)


def _gains(report: Report) -> str:
    body = []
    for gain in report.gains:
        lines = [_line(whose, words) for whose, words in gain_lines(gain)]
        title = escape(f"{gain.row.method} − {gain.row.baseline}")
        name = f'<th scope="row" rowspan="{len(lines)}">{title}</th>'
        body += [_row([name, *lines[0]], first=True), *(_row(line) for line in lines[1:])]
    return _wide(_heads(["", ""], report.table.columns), body)


def _used(report: Report) -> str:
    body = []
    for method, evaluation, result in report.used:
        record, checkpoint = result.record, result.record["checkpoint"]
        words = (
            method, evaluation.name, str(result.seed), str(record.get("date") or NOTHING)[:10],
            str(record.get("commit") or NOTHING)[:10], str(checkpoint.get("sha256") or NOTHING)[:12],
            str(data_of(result, report.table, evaluation)),
        )  # fmt: skip
        body.append(_row([*map(_cell, words), _cell(str(result.path), "text")], first=True))
    heads = [
        "Method",
        "Evaluation",
        "Seed",
        "Date",
        "Commit",
        "Checkpoint (sha256)",
        "Data (train / val)",
        "File",
    ]
    return _wide(_heads(heads, []), body)


def _pictures(report: Report) -> list[str]:
    """Training curves of every run that went in, and its contact sheets for one seed of each method."""
    curves, sheets, seen, methods = [], [], set[Path](), set[str]()
    for method, _, result in report.used:
        folder = result.training_folder
        if folder is None or folder in seen:
            continue
        seen.add(folder)
        told = f"{method}, seed {result.seed}"
        if (folder / "curve.png").exists():
            curves.append(_figure(folder / "curve.png", f"{told}: {folder}"))
        if method not in methods:
            sheets += [
                _figure(path, f"{told}: {path.stem}") for path in sorted(folder.glob("contact-sheet-*.png"))
            ]
        methods.add(method)
    parts = []
    for title, figures in (("Training curves", curves), ("What the networks saw", sheets)):
        if figures:
            parts.append(
                f"<h2>{title}</h2><details><summary>{len(figures)} of them</summary>{''.join(figures)}</details>"
            )
    return parts


def _figure(path: Path, caption: str, alt: str | None = None) -> str:
    try:
        image = f'<img loading="lazy" src="{_data_uri(path)}" alt="{escape(alt or caption)}">'
    except OSError:
        return _paragraph(f"{caption}: the picture {path} cannot be read")
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _data_uri(path: Path) -> str:
    """A picture within the page: at most 1,100 px wide, in 256 colours where that is smaller than a JPEG."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.width > MAX_PICTURE_PX:
        image = image.resize(
            (MAX_PICTURE_PX, round(image.height * MAX_PICTURE_PX / image.width)), Image.Resampling.LANCZOS
        )
    flat, photo = io.BytesIO(), io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(flat, "PNG", optimize=True)
    image.save(photo, "JPEG", quality=85)
    kind, data = min((("png", flat.getvalue()), ("jpeg", photo.getvalue())), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
