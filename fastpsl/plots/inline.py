"""Figures that notebooks show, without pyplot, which would choose a backend for the whole process."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fastpsl.plots.png import DPI, png_bytes


class InlineFigure(Figure):
    """A figure that a notebook shows where it is a cell's last value."""

    def _repr_png_(self) -> bytes:
        """Return the figure as a PNG; IPython asks for it."""
        return png_bytes(self)


def figure_of(image: Image.Image) -> InlineFigure:
    """Return a figure that shows an image, a pixel of it per pixel at `DPI`."""
    figure = InlineFigure(figsize=(image.width / DPI, image.height / DPI), dpi=DPI)
    figure.figimage(np.asarray(image))
    return figure
