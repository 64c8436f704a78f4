"""One way to a PNG for all charts and sheets.

Figures are made by matplotlib's object API, because pyplot would choose a backend for the whole process.
"""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from fastpsl.pipelines.files.atomic import write_atomically


def write_png(drawing: Figure | Image.Image, path: Path, dpi: int = 120) -> Path:
    """Write `drawing` to `path` as a PNG, whole or not at all, whatever the path's ending.

    Args:
        dpi: Pixels per inch of a figure. An image is written pixel by pixel.

    Returns:
        `path`.

    Raises:
        OSError: The file could not be written.
    """
    buffer = io.BytesIO()
    if isinstance(drawing, Figure):
        drawing.savefig(buffer, dpi=dpi, format="png")
    else:
        drawing.save(buffer, format="PNG")
    write_atomically(path, buffer.getbuffer())
    return path
