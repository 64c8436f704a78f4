"""Progress lines of long operations: one line on stderr whenever ten seconds pass without any.

    with operation("DATA: listing", "files", 1_281_167) as progress:
        progress.update(num_done)

Operations nest, and rank 0 reports the innermost one. An operation that ends within ten seconds is not
reported. A line's time is that of its operation alone: "S2: step 6 of 45: began 0:00:12 ago". While a package
is imported, the line names it. A display that is redrawn in place shows the lines instead (`redraw_with`).
"""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fastpsl.console.terminal import own_rank

SILENCE_S = 10.0
# An operation is named after this many seconds on a display that is redrawn, and in lines if it is `early`.
EARLY_S = 5.0
_POLL_EVERY_S = 1.0
Item = TypeVar("Item")


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class operation:
    """An operation that may take long; it lasts as long as its `with` block."""

    def __init__(self, what: str, unit: str = "", total: int = 0, *, quiet: bool = False) -> None:
        self.unit, self.total, self.quiet = unit, total, quiet
        self.rename(what)

    def rename(self, what: str, early: bool = False) -> None:
        """Begin another operation in the same block."""
        self.what, self.num_bad, self.note, self.early = what, 0, "", early
        self.begin_at(0)

    @contextlib.contextmanager
    def span(self, what: str, early: bool = False) -> Iterator[None]:
        """Name a part of the operation, for the duration of a `with` block."""
        before = self.what
        self.rename(what, early)
        yield
        self.rename(before)

    def begin_at(self, num_done: int) -> None:
        """Start the clock now, with units that are done already, so that they count for no speed."""
        self.num_done = self.num_before = num_done
        self.started = time.monotonic()

    def update(self, num_done: int, num_bad: int = 0, note: str = "") -> None:
        """Set the number of finished units, of bad ones among them, and a text to be shown after the pace.

        It is cheap enough for every unit.
        """
        self.num_done, self.num_bad, self.note = num_done, num_bad, note

    def track(self, items: Iterable[Item], each: int = 1) -> Iterator[Item]:
        """Yield `items`, and count `each` more units as finished when the next item is asked for."""
        for num, item in enumerate(items, start=1):
            yield item
            self.update(min(num * each, self.total) if self.total else num * each)

    def line(self, now: float) -> str:
        """Return the line that reports the operation and its progress."""
        elapsed_s = now - self.started
        if not self.unit:
            what = f"{self.what}: loading {package}" if (package := _package_in_import()) else self.what
            return f"{what}: {_began(elapsed_s)}" if elapsed_s >= 1 else what
        prefix, of_total = f"{self.what}: " if self.what else "", f" of {self.total:,}" if self.total else ""
        return f"{prefix}{self.num_done:,}{of_total} {self.unit}, {self.pace(elapsed_s)}"

    def pace(self, elapsed_s: float) -> str:
        """Return the speed, the time left and the number of bad units as text."""
        num_new = self.num_done - self.num_before
        if not num_new:
            return _began(elapsed_s)
        speed = num_new / max(elapsed_s, 1e-9)
        pace = f"{speed:{',.0f' if speed >= 10 else '.2g'}} {self.unit}/s"
        if self.total:
            pace += f", ETA {clock(max(self.total - self.num_done, 0) / speed)}"
        note = f", {self.note}" if self.note else ""
        return pace + note + (f", {self.num_bad:,} bad" if self.num_bad else "")

    def __enter__(self) -> "operation":  # noqa: PYI034  (typing.Self is 3.11's)
        _heartbeat.begin(self)
        return self

    def __exit__(self, *error: object) -> None:
        _heartbeat.end(self)


def _began(elapsed_s: float) -> str:
    return f"began {clock(elapsed_s)} ago"


def _package_in_import() -> str | None:
    """Return the package that the main thread imports just now, such as "torch", which takes seconds."""
    frame, package = sys._current_frames().get(threading.main_thread().ident or 0), None
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("fastpsl"):
        if frame.f_code.co_name == "_find_and_load" and "importlib" in frame.f_code.co_filename:
            package = str(frame.f_locals["name"]).partition(".")[0]
        frame = frame.f_back
    return package


def note_output() -> None:
    """Start the ten seconds anew, because a line was printed or a screen was redrawn."""
    _heartbeat.last_output = time.monotonic()


def report_to(log: Callable[[str], None] | None) -> None:
    """Send the lines to a function, such as the caption of a screen."""
    _heartbeat.log = log or _to_stderr


def print_in_handler(line: str) -> None:
    """Print a line in a signal's handler, where no lock may be taken: its holder may be what was interrupted.

    Over a display that is redrawn, the thread prints it within a second: the display would not know of a line
    that the handler writes, and leave a second copy of itself.
    """
    if _heartbeat.redraw is not None:
        _heartbeat.lines_above.append(line)
        return
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())


Redraw = Callable[[str | None], None]


def redraw_with(redraw: Redraw | None) -> Redraw | None:
    """Call a function every second instead of printing lines, for a display that is redrawn in place."""
    _heartbeat.print_lines_above()
    before, _heartbeat.redraw = _heartbeat.redraw, redraw
    return before


def _to_stderr(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")  # one write, so that no other thread's line gets in between
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # stderr is closed


class Heartbeat:
    """The reporter of the innermost operation, after `SILENCE_S` seconds without any line."""

    def __init__(self) -> None:
        self.log: Callable[[str], None] = _to_stderr
        self.redraw: Redraw | None = None
        self.lines_above = deque[str]()
        self.last_output = 0.0
        self._operations: list[operation] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, what: operation) -> None:
        with self._changed:
            if not self._operations:
                self.last_output = time.monotonic()
            self._operations.append(what)
            if self._thread is None or not self._thread.is_alive():  # first use, or the child of a fork
                self._thread = threading.Thread(target=self._report, name="fastpsl-heartbeat", daemon=True)
                self._thread.start()
            self._changed.notify()

    def end(self, what: operation) -> None:
        """Remove an operation, which need not be the innermost, since generators may end in another order."""
        with self._changed:
            self._operations.remove(what)

    def line(self, now: float) -> str | None:
        """Return the line to print now, or None where there is none."""
        if not self._operations:
            return None
        innermost = self._operations[-1]
        if now - self.last_output < (min(EARLY_S, SILENCE_S) if innermost.early else SILENCE_S):
            return None
        self.last_output, innermost.early = now, False
        return None if innermost.quiet else innermost.line(now)

    def caption(self, now: float) -> str | None:
        """Return the line for a display that is redrawn, or None in the first seconds of an operation."""
        innermost = self._operations[-1] if self._operations else None
        if innermost is None or innermost.quiet or now - innermost.started < EARLY_S:
            return None
        return innermost.line(now)

    def print_lines_above(self) -> None:
        """Print what `print_in_handler` was given; the display puts what goes to stderr above itself."""
        while self.lines_above:
            _to_stderr(self.lines_above.popleft())

    def _report(self) -> None:
        while True:
            with self._changed:
                if not self._operations:
                    self._changed.wait()
                now, redraw = time.monotonic(), self.redraw
                if redraw is not None:
                    self.last_output, line = now, self.caption(now)
                else:
                    line = self.line(now)
                    if line is None:
                        due_s = self.last_output + SILENCE_S - time.monotonic()
                        self._changed.wait(min(max(due_s, 0.01), _POLL_EVERY_S))  # `rename` does not notify
            if redraw is not None:
                self.print_lines_above()
                redraw(line)
                time.sleep(_POLL_EVERY_S)
            elif line is not None and own_rank() == 0:
                self.log(line)


_heartbeat = Heartbeat()
