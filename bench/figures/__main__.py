"""Draws the figures of README and docs anew from what is committed, light and dark, as SVG in docs/images/.

The lines that show CHARTS on pages of docs/, and the descriptions of README's figures, are written too,
because they have the numbers.

python -m bench.figures     after a new file in bench/results/, or a change of the plan, task or sample
"""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.figures.results import (
    augmentations_words,
    determinism_words,
    packed_words,
    sizes_words,
    throughput_words,
    training_words,
)
from bench.figures.sample import sslpp_words, stages_words, views_words
from bench.figures.svg import THEMES, render
from bench.performance import DOCS, RESULTS, ROOT, read_results, written
from bench.program import parser_of, run_program

# Figure → what it shows. Where there is `dict`, all words are in the template.
FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "throughput": lambda: throughput_words(read_results(RESULTS)),
    "training": lambda: training_words(read_results(RESULTS)),
    "sizes": lambda: sizes_words(read_results(RESULTS)),
    "sizes-float32": lambda: sizes_words(read_results(RESULTS), "float32"),
    "sizes-folder": lambda: sizes_words(read_results(RESULTS), "folder"),
    "sizes-packed": lambda: packed_words(read_results(RESULTS)),
    "augmentations": lambda: augmentations_words(read_results(RESULTS)),
    "determinism": lambda: determinism_words(read_results(RESULTS)), "psl-stages": stages_words,
    "data-path": dict, "step-graph": dict, "views": views_words, "uic": dict, "sslpp": sslpp_words,
    "evaluation": dict, "run-folder": dict,
}  # fmt: skip
# NAME of the marks <!-- NAME chart begin -->.
CHARTS = (
    "throughput",
    "training",
    "sizes",
    "sizes-float32",
    "sizes-folder",
    "sizes-packed",
    "augmentations",
    "determinism",
)
IMAGES = DOCS / "images"


def figure_path(name: str, theme: str) -> Path:
    return IMAGES / f"{name}-{theme}.svg"


def described(readme: str) -> str:
    """Return README with the descriptions of its figures as they are drawn."""
    for name in FIGURES:
        alt = rf'(/{name}-light\.svg"[^>]* alt=")[^"]*"'
        readme = re.sub(alt, lambda found: f'{found[1]}{escape(description(name))}"', readme)  # noqa: B023
    return readme


def chart_parts() -> dict[str, str]:
    """Return name of a part → the lines that show a committed chart on a page of docs/."""
    return {
        f"{name} chart": "\n".join(
            f"![{description(name)}](/{figure_path(name, theme).relative_to(ROOT)}){{.only-{theme}}}"
            for theme in THEMES
        )
        for name in CHARTS
    }


def description(name: str) -> str:
    """Return the description of a committed figure."""
    return ElementTree.parse(figure_path(name, "light")).findtext("{http://www.w3.org/2000/svg}desc") or ""


def main() -> None:
    parser_of(__doc__).parse_args()
    for name, words_of in FIGURES.items():
        words = words_of()
        for theme in THEMES:
            figure_path(name, theme).write_text(render(name, theme, words))
    readme = ROOT / "README.md"
    readme.write_text(described(readme.read_text()))
    for page, text in written(ROOT, chart_parts()).items():
        page.write_text(text)


if __name__ == "__main__":
    run_program(main)
