"""Fetching of pages by threads."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from fastpsl.files.remote.failures import RemoteDataError
from fastpsl.files.remote.fetcher import Fetcher, Page

LIMIT_S = 30.0


class OnePart:
    """A file in the cache with one part, which fails the first time, once `may_fail` is set."""

    parts = np.array([[0, 8]])

    def __init__(self) -> None:
        self.begun, self.may_fail = threading.Event(), threading.Event()
        self.num_held = 0

    def hold(self, part: int) -> bool:
        if not self.begun.is_set():
            self.begun.set()
            assert self.may_fail.wait(LIMIT_S)
            raise RemoteDataError("the server is gone")
        self.num_held += 1
        return True

    def give_back(self, part: int) -> None:
        self.num_held -= 1


class Interrupted:
    """A lock before which `first` runs once, as if another thread came between."""

    def __init__(self, first: Callable[[], object]) -> None:
        self._lock, self._first, self.was_free = threading.Lock(), first, threading.Event()

    def __enter__(self) -> None:
        first, self._first = self._first, lambda: None
        first()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self.was_free.set()


def test_a_page_that_fails_while_it_is_asked_for_again_is_held_once() -> None:
    file: Any = OnePart()
    fetcher = Fetcher([Page(file, 0, lambda data: True)])
    fetcher.plan([0])
    assert file.begun.wait(LIMIT_S)
    fetcher.give_back([0])  # nobody wants it now
    lock: Any = Interrupted(lambda: fetcher._asked(0))
    fetcher._lock = lock
    file.may_fail.set()
    assert lock.was_free.wait(LIMIT_S)  # the thread has noted its failure
    with suppress(RemoteDataError):
        fetcher.wait([0])
    fetcher.wait([0])
    assert file.num_held == 1
    fetcher.give_back([0])
    assert file.num_held == 0
    fetcher.close()
