"""Render a table as Markdown and as HTML.

The HTML is one file without network and scripts, as light or dark as the system.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fastpsl.models.markdown import block, code, plain, table_row
from fastpsl.pipelines.data.dataset import BadImage
from fastpsl.pipelines.image.image_file import decode_any, read_image_file
from fastpsl.tables.page import words_of
from fastpsl.tables.report import Report
from fastpsl.tables.templates import templates

MAX_WIDTH_PX = 1100


@dataclass(frozen=True)
class Embedded:
    """An image within the page.

    Attributes:
        path: The path of the file.
        caption: The words below it.
        alt: The words in its place.
        uri: The image as a data URI; None if the file cannot be read.
    """

    path: Path
    caption: str
    alt: str
    uri: str | None


def markdown(report: Report) -> str:
    """Return the whole page: the table, what rows add, which results went in, what is missing, the sizes."""
    return _TEMPLATES.get_template("page.md.jinja").render(words_of(report))


def html(report: Report, chart: Path) -> str:
    """Return the same page with the chart and with images of the trainings.

    Args:
        report: The table.
        chart: The PNG of the same table.
    """
    table = report.table
    paper = "Dashed lines" if table.curves else "Open diamonds"
    caption = f"{paper}: the paper's numbers. Dots: ours, with the standard deviation over the seeds."
    embedded = _embedded(chart, caption, f"{table.title}: the numbers of the table as points")
    template = _TEMPLATES.get_template("page.html.jinja")
    return template.render(words_of(report), chart=embedded, galleries=_galleries(report))


def _galleries(report: Report) -> dict[str, list[Embedded]]:
    """Return each run's training curves, and for one seed of each method its contact sheets."""
    curves, sheets, folders, methods = [], [], set[Path](), set[str]()
    for method, _, result in report.used:
        folder = result.training_folder
        if folder is None or folder in folders:
            continue
        folders.add(folder)
        name = f"{method}, seed {result.seed}"
        if (folder / "curve.png").exists():
            curves.append(_embedded(folder / "curve.png", f"{name}: {folder}"))
        if method not in methods:
            paths = sorted(folder.glob("contact-sheet-*.png"))
            sheets += [_embedded(path, f"{name}: {path.stem}") for path in paths]
        methods.add(method)
    return {"Training curves": curves, "What the networks saw": sheets}


def _embedded(path: Path, caption: str, alt: str = "") -> Embedded:
    try:
        return Embedded(path, caption, alt or caption, _data_uri(path))
    except (OSError, BadImage):
        return Embedded(path, caption, alt or caption, None)


def _data_uri(path: Path) -> str:
    """Return an image, at most 1,100 px wide, in 256 colours where that is smaller than a JPEG."""
    image = Image.fromarray(decode_any(read_image_file(path)))
    if image.width > MAX_WIDTH_PX:
        size = (MAX_WIDTH_PX, round(image.height * MAX_WIDTH_PX / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    flat, photo = io.BytesIO(), io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(flat, "PNG", optimize=True)
    image.save(photo, "JPEG", quality=85)
    kind, data = min((("png", flat.getvalue()), ("jpeg", photo.getvalue())), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


_TEMPLATES = templates(Path(__file__).parent)
_TEMPLATES.filters |= {"plain": plain, "code": code, "block": block, "table_row": table_row}
