"""Progress of what is counted, on stderr: a bar on a terminal, else a plain line now and then."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fastpsl.engine.terminal import plain
from fastpsl.pipelines.doing import doing

_BAR_EVERY_S = 0.1


class Progress:
    """`with Progress("images", total) as progress: progress.update(num_done, num_bad)`; shows done, bad, per
    second, time left. what: is being done, such as "training on features"."""

    def __init__(self, unit: str, total: int, what: str = ""):
        self._on_terminal = plain(sys.stderr).isatty()
        self._doing = doing(what, unit, total, quiet=self._on_terminal)
        self._shown = time.monotonic()
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),  # goes on while nothing else does
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
        self._doing.update(num_done, num_bad)
        now = time.monotonic()
        if self._on_terminal and now - self._shown >= _BAR_EVERY_S:
            self._shown = now
            what = f"{self._doing.what}: " if self._doing.what else ""
            told = self._doing.pace(now - self._doing.started)
            self._bar.update(self._task, completed=num_done, description=what + told)
