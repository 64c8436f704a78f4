"""Progress of a command on stderr: a bar on a terminal, else a plain line now and then."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from fastpsl.screen import PLAIN_LINE_EVERY_S, clock
from fastpsl.terminal import plain

_BAR_EVERY_S = 0.1


class Progress:
    """`with Progress("images", total) as progress: progress.update(num_done, num_bad)`; shows done, bad, per
    second, time left."""

    def __init__(self, unit: str, total: int):
        self._unit, self._total, self._start = unit, total, time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._shown = self._start
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(file=plain(sys.stderr)),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "Progress":  # noqa: PYI034  (typing.Self is 3.11's)
        if self._on_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._on_terminal:
            self._bar.stop()

    def update(self, num_done: int, num_bad: int) -> None:
        now = time.monotonic()
        if now - self._shown < (_BAR_EVERY_S if self._on_terminal else PLAIN_LINE_EVERY_S):
            return
        self._shown = now
        speed = num_done / (now - self._start)
        left_s = (self._total - num_done) / max(speed, 1e-9)
        told = f"{speed:{',.0f' if speed >= 10 else '.2g'}} {self._unit}/s, ETA {clock(left_s)}"
        told += f", {num_bad:,} broken" if num_bad else ""
        if self._on_terminal:
            self._bar.update(self._task, completed=num_done, description=told)
        else:
            print(f"{num_done:,} of {self._total:,} {self._unit}, {told}", file=sys.stderr, flush=True)
