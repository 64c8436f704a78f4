"""Draws README's pictures anew from what is committed, light and dark, as SVG in docs/images/.

python -m bench.pictures     after a new file in bench/results/, or a change of the plan, task or sample
"""

import argparse
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.performance import DOCS, RESULTS, ROOT, read_results
from bench.pictures.psl_stages import stages_words
from bench.pictures.svg import THEMES, WIDTH_PX, render
from bench.pictures.throughput import throughput_words
from bench.program import run_program

# Picture → what it shows; data-path's words are all in its template.
PICTURES: dict[str, Callable[[], dict[str, Any]]] = {
    "throughput": lambda: throughput_words(read_results(RESULTS)),
    "psl-stages": stages_words,
    "data-path": dict,
}
IMAGES = DOCS / "images"


def picture_path(name: str, theme: str) -> Path:
    return IMAGES / f"{name}-{theme}.svg"


def picture_lines(name: str) -> str:
    """Return the HTML that shows a committed picture in README.md, with its description as alt text."""
    light, dark = (picture_path(name, theme).relative_to(ROOT) for theme in ("light", "dark"))
    alt = ElementTree.parse(ROOT / light).findtext("{http://www.w3.org/2000/svg}desc")
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img src="{light}" width="{WIDTH_PX}" alt="{escape(alt or "")}">\n</picture>\n'
    )


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for name, words_of in PICTURES.items():
        words = words_of()
        for theme in THEMES:
            picture_path(name, theme).write_text(render(name, theme, words))
        print(picture_lines(name))


if __name__ == "__main__":
    run_program(main)
