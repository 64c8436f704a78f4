"""Render README's figures from templates as SVG, light and dark.

Text stays text, in GitHub's own fonts. So it looks like the page around it, a test can read it, and the same
source gives the same bytes on every machine. Fonts differ in width: a test measures every text in DejaVu
Sans, which is wider than these. The page's colour lies behind each figure, because a page need not follow
the reader's scheme.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fastpsl.tables.templates import templates

WIDTH_PX = 838  # of a README on GitHub
FONTS = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
# Greys and grounds are GitHub's. Ours is blue and a loss is orange, from Okabe and Ito's
# colours for colour-blind readers.
# `on_X` is the text on a box filled with X.
THEMES = {
    "light": {
        "page": "#ffffff", "ink": "#1f2328", "muted": "#59636e", "line": "#818b98", "other": "#afb8c1",
        "ours": "#0072b2", "on_ours": "#ffffff", "loss": "#d55e00", "still": "#e6eaef", "on_still": "#1f2328",
    },
    "dark": {
        "page": "#0d1117", "ink": "#f0f6fc", "muted": "#9198a1", "line": "#7d8590", "other": "#656c76",
        "ours": "#56b4e9", "on_ours": "#0d1117", "loss": "#e69f00", "still": "#262c36", "on_still": "#f0f6fc",
    },
}  # fmt: skip


def render(name: str, theme: str, words: Mapping[str, Any]) -> str:
    """Return a figure as SVG."""
    template = _TEMPLATES.get_template(f"{name}.svg.jinja")
    return template.render(words, name=name, theme=THEMES[theme], fonts=FONTS, width=WIDTH_PX)


def png_uri(image: Image.Image) -> str:
    """Return an image as a PNG in a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_TEMPLATES = templates(Path(__file__).parent)
