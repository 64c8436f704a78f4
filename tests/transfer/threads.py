"""Compare with other processes: arithmetic with one thread, as they have, and tasks that they fail at."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Failing:
    """A task whose process is ended from outside, or that fails. Its processes import this file alone."""

    ended: bool

    def outcome(self) -> dict[str, Any]:
        if self.ended:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("no such features")
