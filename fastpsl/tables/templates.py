"""The templates of pages."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from fastpsl.console.terminal import escaped


def templates(folder: Path) -> Environment:
    """Return the templates of a folder: HTML and SVG escape what they are given, Markdown does not.

    All show control characters as a terminal does.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(["html.jinja", "svg.jinja"]),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _shown(value: Any) -> str:
    """Return a value's text without characters that steer; what is safe HTML remains so."""
    text = value if isinstance(value, str) else str(value)
    return type(text)(escaped(text))
