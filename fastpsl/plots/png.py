"""The function that writes every chart and sheet as a PNG.

Figures use matplotlib's object API, because pyplot would choose a backend for the whole process.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from fastpsl.files.atomic import write_atomically

if TYPE_CHECKING:  # matplotlib's figures take 0.3 s, and a contact sheet does without
    from matplotlib.figure import Figure


def write_png(drawing: "Figure | Image.Image", path: Path, dpi: int = 120) -> Path:
    """Write a PNG atomically, whatever the path's suffix, and return the path."""
    buffer = io.BytesIO()
    if isinstance(drawing, Image.Image):
        drawing.save(buffer, format="PNG")
    else:
        drawing.savefig(buffer, dpi=dpi, format="png")
    write_atomically(path, buffer.getbuffer())
    return path
