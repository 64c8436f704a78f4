"""The function that writes every chart and sheet as a PNG.

Figures use matplotlib's object API, because pyplot would choose a backend for the whole process.
"""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from fastpsl.pipelines.files.atomic import write_atomically


def write_png(drawing: Figure | Image.Image, path: Path, dpi: int = 120) -> Path:
    """Write a PNG atomically, whatever the path's suffix, and return the path.

    Args:
        drawing: A figure or an image.
        path: File to write.
        dpi: Pixels per inch of a figure. An image is written pixel by pixel.

    Raises:
        OSError: The file cannot be written.
    """
    buffer = io.BytesIO()
    if isinstance(drawing, Figure):
        drawing.savefig(buffer, dpi=dpi, format="png")
    else:
        drawing.save(buffer, format="PNG")
    write_atomically(path, buffer.getbuffer())
    return path
