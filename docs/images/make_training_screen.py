"""Draw the training screen of a real run as SVG, once on white and once on black.

It trains as `fastpsl train simclr` does, on the embedded sample or with the arguments given. It keeps what
the screen shows in the middle of the last stage, and stops there as after Ctrl-C:

    PYTHONPATH=. python docs/images/make_training_screen.py --out /tmp/run
"""

import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme
from typing_extensions import override

from fastpsl.console.screen import Numbers, Screen, TrainingLines
from fastpsl.engine import reporter
from fastpsl.scripts.launch import launch
from recipes.simclr_r50 import RECIPE

FOLDER = Path(__file__).parent
WIDTH = 100
TITLE = "fastpsl train simclr"
ON_WHITE = TerminalTheme(
    (255, 255, 255),
    (36, 41, 47),
    [(36, 41, 47), (207, 34, 46), (17, 99, 41), (77, 45, 0), (9, 105, 218), (130, 80, 223), (27, 124, 131),
     (110, 119, 129)],
    [(175, 184, 193), (164, 14, 38), (26, 127, 55), (99, 60, 1), (33, 139, 255), (164, 117, 249),
     (49, 146, 170), (140, 149, 159)],
)  # fmt: skip
THEMES = {"light": ON_WHITE, "dark": SVG_EXPORT_THEME}


def svg(lines: Sequence[str], numbers: Numbers, theme: TerminalTheme) -> str:
    """Return the image of a screen: the lines that stay, and the numbers below them."""
    console = Console(
        record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor",
        highlight=False, _environ={},
    )  # fmt: skip
    for line in lines:
        console.print(line, markup=False)
    console.print(TrainingLines(numbers))
    return console.export_svg(title=TITLE, theme=theme)


class KeptScreen(Screen):
    """A screen that keeps what it shows in the middle of the second stage, and stops the run there."""

    kept: tuple[list[str], Numbers] | None = None

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self.lines: list[str] = []

    @override
    def log(self, text: str) -> None:
        """Keep the line, too."""
        self.lines.append(text)
        super().log(text)

    @override
    def show(self, numbers: Numbers) -> None:
        """Keep the numbers of the first log step past the middle."""
        super().show(numbers)
        if self.kept is None and numbers.number == 3 and 2 * numbers.step > numbers.num_steps:
            type(self).kept = [*self.lines], numbers
            signal.raise_signal(signal.SIGINT)


def main() -> None:
    """Train, and write the images."""
    reporter.Screen = KeptScreen  # type: ignore[misc, assignment]
    try:
        launch(RECIPE, sys.argv[1:])
    finally:
        if KeptScreen.kept is not None:
            for name, theme in THEMES.items():
                (FOLDER / f"training-screen-{name}.svg").write_text(svg(*KeptScreen.kept, theme))


if __name__ == "__main__":
    main()
