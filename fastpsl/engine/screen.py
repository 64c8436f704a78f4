"""The screen of a training: lines that stay, and below them the newest numbers and what is being done."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderResult

from fastpsl.engine.display import Display, draws_in_place, make_console, make_display
from fastpsl.engine.terminal import escaped
from fastpsl.engine.training_lines import Numbers, TrainingLines, plain_line
from fastpsl.engine.wording import worded
from fastpsl.pipelines.doing import note_output, redraw_with

PLAIN_LINE_EVERY_S = 9.0  # less than the ten seconds after which `doing` prints


class Screen:
    """A screen of a stage after the other, on a terminal, in a notebook or in a file.

    On a terminal and in a notebook, the numbers are drawn in place. Below them stands what is being done,
    once that has lasted five seconds. In a file, the numbers are a line, at most every nine seconds.

    Args:
        console: Where to draw; None for stderr, or for the notebook that runs this process.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or make_console()
        self._display: Display | None = None
        self._numbers: Numbers | None = None
        self._caption: str | None = None
        self._drawn: object = None
        self._last_line = 0.0

    def begin(self, numbers: Numbers) -> None:
        """Show a stage before its first step. A file gets no line."""
        if draws_in_place(self.console):
            self.show(numbers)

    def show(self, numbers: Numbers) -> None:
        """Show the numbers of a log step."""
        self._numbers, self._caption = numbers, None
        if draws_in_place(self.console):
            self._draw()
            note_output()
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_LINE_EVERY_S or numbers.step == numbers.num_steps:
            self._last_line = now
            self.console.print(plain_line(numbers))
            note_output()

    def reach(self, step: int) -> None:
        """Note a step whose numbers have not arrived. It is drawn within a second."""
        if self._numbers is not None:
            self._numbers = replace(self._numbers, step=step)

    def log(self, text: str) -> None:
        """Print a line that stays."""
        self._caption = None  # the work that it reported is over
        self.console.print(escaped(worded(text)), markup=False)
        note_output()

    def close(self) -> None:
        """End the display. The last numbers of a stage that has not ended stay."""
        self._stop(transient=False)

    def end_stage(self) -> None:
        """Remove the numbers of a stage that has ended, because its summary has them."""
        self._stop(transient=True)
        self._numbers = None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Remove the numbers for as long as something else is drawn there."""
        self._stop(transient=True)
        try:
            yield
        finally:
            if self._numbers is not None and draws_in_place(self.console):
                self._draw()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the present numbers, also where a line above them draws them again."""
        if self._numbers is not None:
            yield TrainingLines(self._numbers, self._caption)

    def _draw(self) -> None:
        if self._display is None:
            self._display = make_display(self.console, lambda: self)
            self._display.start(refresh=True)
            redraw_with(self._tick)
        else:
            self._display.refresh()

    def _tick(self, caption: str | None) -> None:
        """Show what is being done and the present step, and fit a window that was resized.

        The thread of `doing` calls this every second.
        """
        display, state = self._display, (caption, self.console.size, self._numbers)
        if display is not None and state != self._drawn:
            self._caption, self._drawn = caption, state
            display.refresh()

    def _stop(self, transient: bool) -> None:
        display, self._display, self._caption = self._display, None, None
        if display is not None:
            redraw_with(None)
            display.transient = transient
            display.stop()
