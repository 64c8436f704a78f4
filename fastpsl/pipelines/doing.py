"""What is being done now and how far it is: a line wherever ten seconds go by without one.

    with doing("DATA: listing", "files", 1_281_167) as told:
        told.update(num_done)

Of what is done one within the other, the innermost is said, by rank 0, on stderr. Of what takes less than ten seconds nothing is said.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

SILENCE_S = 10.0
Item = TypeVar("Item")


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class doing:
    """Something that may take long; `what` is begun with the block and over with it.

    unit, total: what `update` counts, and how many there will be (0: not known). quiet: it shows itself, and nothing is said meanwhile.
    """

    def __init__(self, what: str, unit: str = "", total: int = 0, *, quiet: bool = False) -> None:
        self.unit, self.total, self.quiet = unit, total, quiet
        self.turn_to(what)

    def turn_to(self, what: str) -> None:
        """Something else is done from now on, in the same block."""
        self.what, self.started, self.num_done, self.num_bad = what, time.monotonic(), 0, 0

    def update(self, num_done: int, num_bad: int = 0) -> None:
        """So many are done, of which so many are broken. Costs nothing to speak of: call it for each."""
        self.num_done, self.num_bad = num_done, num_bad

    def over(self, items: Iterable[Item], each: int = 1) -> Iterator[Item]:
        """`items`, counted as `each` more of what is done when the next one is asked for."""
        for num, item in enumerate(items, start=1):
            yield item
            self.update(min(num * each, self.total) if self.total else num * each)

    def line(self, now: float) -> str:
        """What is done and how far it is. now: on the clock of `time.monotonic`."""
        elapsed_s = now - self.started
        if not self.unit:
            return f"{self.what}: {clock(elapsed_s)} so far" if elapsed_s >= 1 else self.what
        what, of = f"{self.what}: " if self.what else "", f" of {self.total:,}" if self.total else ""
        return f"{what}{self.num_done:,}{of} {self.unit}, {self.pace(elapsed_s)}"

    def pace(self, elapsed_s: float) -> str:
        """Speed, time left, and how many are broken."""
        if not self.num_done:
            return f"{clock(elapsed_s)} so far"
        speed = self.num_done / max(elapsed_s, 1e-9)
        told = f"{speed:{',.0f' if speed >= 10 else '.2g'}} {self.unit}/s"
        if self.total:
            told += f", ETA {clock(max(self.total - self.num_done, 0) / speed)}"
        return told + (f", {self.num_bad:,} broken" if self.num_bad else "")

    def __enter__(self) -> "doing":  # noqa: PYI034  (typing.Self is 3.11's)
        _voice.begin(self)
        return self

    def __exit__(self, *error: object) -> None:
        _voice.end(self)


def heard() -> None:
    """A line has been said, or a screen has changed: the ten seconds begin anew."""
    _voice.last_heard = time.monotonic()


def speak_by(say: Callable[[str], None] | None) -> None:
    """What is said goes to `say`, in a thread of its own, such as a screen's caption; None: to stderr again."""
    _voice.say = say or _to_stderr


def _to_stderr(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")  # one write: other threads' lines come before it or after it
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # closed: nobody reads it


class Voice:
    """Knows what is being done, and says the innermost of it when nobody has said a word for `SILENCE_S`."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = _to_stderr
        self.last_heard = 0.0
        self._doing: list[doing] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, what: doing) -> None:
        with self._changed:
            if not self._doing:
                self.last_heard = time.monotonic()
            self._doing.append(what)
            if self._thread is None or not self._thread.is_alive():  # the first, or in a child of a fork
                self._thread = threading.Thread(target=self._speak, name="fastpsl-voice", daemon=True)
                self._thread.start()
            self._changed.notify()

    def end(self, what: doing) -> None:
        """Generators may end in another order than they began in."""
        with self._changed:
            self._doing.remove(what)

    def line(self, now: float) -> str | None:
        """What to say now; None where there is nothing to say."""
        if not self._doing or now - self.last_heard < SILENCE_S:
            return None
        self.last_heard = now
        return None if self._doing[-1].quiet else self._doing[-1].line(now)

    def _speak(self) -> None:
        while True:
            with self._changed:
                if not self._doing:
                    self._changed.wait()
                line = self.line(time.monotonic())
                if line is None:
                    self._changed.wait(max(self.last_heard + SILENCE_S - time.monotonic(), 0.01))
            if line is not None and int(os.environ.get("RANK", "0")) == 0:
                self.say(line)


_voice = Voice()
