"""What a person sees while training: one live screen on a terminal, plain lines elsewhere; rank 0 only."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fastpsl.engine.terminal import escaped, plain
from fastpsl.pipelines.doing import clock, heard, speak_by

PLAIN_LINE_EVERY_S = 9.0  # before `doing` would speak


class Screen:
    """`show(record)` replaces the screen (or adds a line, at most every nine seconds); `say(text)` adds a line for good.

    What `doing` says meanwhile stands below a terminal's screen, until the next of both.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=plain(sys.stderr), highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._table = Table()
        self._last_line = 0.0

    def show(self, record: dict[str, Any]) -> None:
        """record: stage, level, step, num_steps, eta_s, and the numbers of a log step (see `reporter.Reporter`)."""
        if not self.console.is_terminal:
            now = time.monotonic()
            if now - self._last_line >= PLAIN_LINE_EVERY_S or record["step"] == record["num_steps"]:
                self._last_line = now
                self.console.print(self._line(record))
                heard()
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
            speak_by(self._caption)
        self._table = self._screen(record)
        self._live.update(self._table, refresh=True)
        heard()

    def _caption(self, line: str) -> None:
        """In another thread: rich's screens have a lock of their own."""
        live, table = self._live, self._table
        if live is not None:
            table.caption, table.caption_justify = escape(line), "left"
            live.update(table, refresh=True)

    def say(self, text: str) -> None:
        self._table.caption = None  # it was of what is over
        self.console.print(escaped(text), markup=False)
        heard()

    def close(self) -> None:
        if self._live is not None:
            speak_by(None)
            live, self._live = self._live, None
            self._table.caption = None
            live.stop()

    @staticmethod
    def _cells(record: dict[str, Any]) -> dict[str, str]:
        cells = {
            "stage": f"{record['stage']} level G{record['level']}",
            "step": f"{record['step']}/{record['num_steps']}",
        }
        cells |= {name: f"{value:.4g}" for name, value in record["metrics"].items()}
        return cells | {
            "lr": f"{record['lr']:.3g}",
            "img/s": f"{record['images_per_s']:.0f}",
            "data wait": f"{record['data_wait_percent']:.0f} %",
            "ETA": clock(record["eta_s"]),
        }

    def _line(self, record: dict[str, Any]) -> str:
        return "  ".join(f"{name} {value}" for name, value in self._cells(record).items())

    def _screen(self, record: dict[str, Any]) -> Table:
        table = Table()
        cells = self._cells(record)
        for name in cells:
            table.add_column(name, justify="right")
        table.add_row(*cells.values())
        return table
