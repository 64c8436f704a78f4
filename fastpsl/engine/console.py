"""Display of long work on stderr: live on a terminal, otherwise as plain lines.

The plain lines of `Progress` and `status` come from `doing`, which prints after ten seconds of silence.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from fastpsl.engine.terminal import escaped, plain
from fastpsl.pipelines.doing import clock, doing, note_output, report_to

PLAIN_LINE_EVERY_S = 9.0  # less than the ten seconds after which `doing` prints
_BAR_EVERY_S = 0.1


class Screen:
    """The screen of a training: lines that stay, and below them a table of the newest numbers.

    The lines of `doing` appear below the table until the next numbers or line. Without a terminal, the
    numbers are printed as a line, at most every nine seconds.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=plain(sys.stderr), highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._table = Table()
        self._last_line = 0.0

    def show(self, record: dict[str, Any]) -> None:
        """Show the numbers of a log step."""
        cells = _cells(record)
        if not self.console.is_terminal:
            now = time.monotonic()
            if now - self._last_line >= PLAIN_LINE_EVERY_S or record["step"] == record["num_steps"]:
                self._last_line = now
                self.console.print("  ".join(f"{name} {value}" for name, value in cells.items()))
                note_output()
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
            report_to(self._caption)
        self._table = Table()
        for name in cells:
            self._table.add_column(name, justify="right")
        self._table.add_row(*cells.values())
        self._live.update(self._table, refresh=True)
        note_output()

    def _caption(self, line: str) -> None:
        """Show `line` below the table. `doing` calls this from its thread, but rich's displays have locks."""
        live, table = self._live, self._table
        if live is not None:
            table.caption, table.caption_justify = escape(line), "left"
            live.update(table, refresh=True)

    def log(self, text: str) -> None:
        """Print a line that stays."""
        self._table.caption = None  # the work that it reported is over
        self.console.print(escaped(text), markup=False)
        note_output()

    def close(self) -> None:
        """End the live display. Its last numbers stay on the screen."""
        if self._live is not None:
            report_to(None)
            live, self._live = self._live, None
            self._table.caption = None
            live.stop()


def _cells(record: dict[str, Any]) -> dict[str, str]:
    """Return column titles and texts for a record of `Screen.show`."""
    return {
        "stage": f"{record['stage']} level G{record['level']}",
        "step": f"{record['step']}/{record['num_steps']}",
        **{name: f"{value:.4g}" for name, value in record["metrics"].items()},
        "lr": f"{record['lr']:.3g}",
        "img/s": f"{record['images_per_s']:.0f}",
        "data wait": f"{record['data_wait_percent']:.0f} %",
        "ETA": clock(record["eta_s"]),
    }


class Progress:
    """A progress bar with counts of done and broken items, the speed and the time left.

    Example: `with Progress("images", total, "training on features") as progress: progress.update(num_done,
    num_bad)`
    """

    def __init__(self, unit: str, total: int, what: str = ""):
        self._on_terminal = plain(sys.stderr).isatty()
        self._doing = doing(what, unit, total, quiet=self._on_terminal)
        self._last_shown = time.monotonic()
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),  # changes even while no item is finished
            TextColumn("{task.description}"),
            console=Console(file=plain(sys.stderr)),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> "Progress":  # noqa: PYI034  (typing.Self is 3.11's)
        self._doing.__enter__()
        if self._on_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._on_terminal:
            self._bar.stop()
        self._doing.__exit__()

    def update(self, num_done: int, num_bad: int = 0) -> None:
        """Set how many items are done, and how many of these are broken."""
        self._doing.update(num_done, num_bad)
        now = time.monotonic()
        if self._on_terminal and now - self._last_shown >= _BAR_EVERY_S:
            self._last_shown = now
            prefix = f"{self._doing.what}: " if self._doing.what else ""
            pace = self._doing.pace(now - self._doing.started)
            self._bar.update(self._task, completed=num_done, description=prefix + pace)


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows `what: text` in a changing line; without a terminal, as `doing` does."""
    with doing(what) as current:
        if not plain(sys.stderr).isatty():
            yield lambda text: current.turn_to(f"{what}: {text}")
            return
        with Console(file=plain(sys.stderr)).status("") as line:

            def show(text: str) -> None:
                current.turn_to(f"{what}: {text}")
                line.update(escape(current.what))

            report_to(lambda text: line.update(escape(text)))
            try:
                yield show
            finally:
                report_to(None)
