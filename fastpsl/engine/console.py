"""Display of long work outside training, drawn in place or as plain lines.

The plain lines of `Progress` and `status` come from `doing`, which prints after ten seconds of silence.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.text import Text

from fastpsl.engine.display import draws_in_place, make_console, make_display
from fastpsl.engine.fitted_line import Part, bar_line
from fastpsl.pipelines.doing import doing, redraw_with, report_to

_DRAW_EVERY_S = 0.1


class Progress:
    """A progress bar with counts of done and bad items, the speed and the time left.

    What does not fit beside the bar is left out: first what is done, then the pace.

    Example: `with Progress("images", total, "training on features") as progress: progress.update(num_done,
    num_bad)`
    """

    def __init__(self, unit: str, total: int, what: str = ""):
        console = make_console()
        self._draws = draws_in_place(console)
        self._doing = doing(what, unit, total, quiet=self._draws)
        self._display = make_display(console, lambda: self) if self._draws else None
        self._caption: str | None = None
        self._last_drawn = 0.0

    def __enter__(self) -> "Progress":  # noqa: PYI034  (typing.Self is 3.11's)
        self._doing.__enter__()
        if self._display is not None:
            self._display.transient = True
            self._display.start(refresh=True)
            self._redrawn_before = redraw_with(self._tick)
        return self

    def __exit__(self, *error: object) -> None:
        if self._display is not None:
            redraw_with(self._redrawn_before)
            self._display.stop()
        self._doing.__exit__()

    def begin_at(self, num_done: int) -> None:
        """Start the clock now, with items that an earlier run has done."""
        self._doing.begin_at(num_done)

    def update(self, num_done: int, num_bad: int = 0, note: str = "") -> None:
        """Set how many items are done, how many of these are bad, and a text after the pace."""
        self._doing.update(num_done, num_bad, note)
        if self._display is not None and time.monotonic() - self._last_drawn >= _DRAW_EVERY_S:
            self._tick(None)

    def _tick(self, caption: str | None) -> None:
        """Draw it again, with a part of the work that takes long below it."""
        self._caption, self._last_drawn = caption, time.monotonic()
        if self._display is not None:
            self._display.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the bar for the console's present width."""
        now, work = time.monotonic(), self._doing
        count, of_total = f"{work.num_done:,}", f" of {work.total:,}" if work.total else ""
        parts = [Part(0, f"{count}{of_total.replace(' of ', '/')}", f"{count}{of_total} {work.unit}")]
        pace = work.pace(now - work.started)
        parts.append(Part(1, pace, pace))
        if work.what:
            parts.append(Part(2, work.what, work.what))
        yield bar_line(work.num_done, work.total, parts, options.max_width)
        if self._caption is not None:
            yield Text(self._caption, overflow="fold", style="dim")


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows `what: text` in a changing line; without a terminal, as `doing` does."""
    console = make_console()
    with doing(what) as current:
        if console.is_jupyter or not draws_in_place(console):
            yield lambda text: current.turn_to(f"{what}: {text}")
            return
        with console.status("") as line:

            def show(text: str) -> None:
                current.turn_to(f"{what}: {text}")
                line.update(escape(current.what))

            report_to(lambda text: line.update(escape(text)))
            try:
                yield show
            finally:
                report_to(None)
