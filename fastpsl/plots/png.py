"""What charts and sheets share: their font, the names of classes, and writing them as a PNG or SVG.

Figures use matplotlib's object API, because pyplot would choose a backend for the whole process.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.font_manager import findfont
from PIL import Image, ImageFont

from fastpsl.files.atomic import write_atomically

if TYPE_CHECKING:  # matplotlib's figures take 0.3 s, and a contact sheet does without
    from matplotlib.figure import Figure


DPI = 120


def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has Latin, Greek and Cyrillic letters."""
    return ImageFont.truetype(findfont("DejaVu Sans"), size_px)


def class_name(names: Sequence[str] | None, label: int) -> str:
    """Return the class's name, "class N" if it has none, or "" for the label -1."""
    if label < 0:
        return ""
    return names[label] if names is not None and label < len(names) else f"class {label}"


def png_bytes(drawing: "Figure | Image.Image", dpi: int = DPI) -> bytes:
    """Return a figure or an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    if isinstance(drawing, Image.Image):
        drawing.save(buffer, format="PNG")
    else:
        drawing.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def write_png(drawing: "Figure | Image.Image", path: Path, dpi: int = DPI) -> Path:
    """Write a PNG atomically, whatever the path's suffix, and return the path."""
    with _as_boxes(str(path)):
        write_atomically(path, png_bytes(drawing, dpi))
    return path


@contextlib.contextmanager
def _as_boxes(name: str = "") -> Iterator[None]:
    """Tell once that the font of the picture of this name lacks letters; without a name, tell nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    others = [each for each in caught if not str(each.message).startswith("Glyph ")]
    for each in others:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if name and len(others) < len(caught):
        warnings.warn(f"{name}: its font lacks letters of some names, which stand as boxes", stacklevel=4)


def inline_svg(figure: "Figure", name: str, description: str) -> str:
    """Return a figure as an SVG element for a page of HTML, whose colour and font its words take.

    Names of its parts begin with `name`, as several figures of a page must not share any.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), _as_boxes():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :].replace("#000000", "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' ?font-family: [^;"]*;?', "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return re.sub(
        r'^<svg (.*?)width="[^"]*" height="[^"]*"',
        rf'<svg role="img" aria-label="{description}" width="{width}" height="{height}" \1', svg, count=1,
        flags=re.DOTALL,
    )  # fmt: skip
