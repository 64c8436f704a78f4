"""Asks the kernel for parts of files before they are read, and gives them back after, so that a set larger than
memory pushes out nothing else. Hints only: whether a sample is read does not depend on them.
"""

import os
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import final

import numpy as np

from fastpsl.pipelines.beton.pages import Extents
from fastpsl.pipelines.loader.workers import Workers

_MIN_PIECE_KIB = 128


@final
class Readahead:
    """Part i of `extents` is asked for (WILLNEED) at step ask_at[i] and given back (DONTNEED) at step give_at[i].

    ask_at, give_at: int64 [len(extents.fd)], ask_at < give_at. The calls are made by a thread, in this order, because
    WILLNEED waits where the storage's queue is full. It does nothing where there is nothing to ask for.
    """

    def __init__(self, extents: Extents, ask_at: np.ndarray, give_at: np.ndarray) -> None:
        assert len(extents.fd) == len(ask_at) == len(give_at) and (ask_at < give_at).all()
        self._extents = extents
        self._to_ask, self._to_give = (np.argsort(steps, kind="stable") for steps in (ask_at, give_at))
        self._ask_steps, self._give_steps = ask_at[self._to_ask], give_at[self._to_give]
        self._num_asked = self._num_given = 0
        self._piece_bytes = {fd: piece_bytes(fd) for fd in np.unique(extents.fd).tolist()}
        self._held: set[int] = set()  # the thread's: asked for and not given back
        self._closing = threading.Event()
        self._workers = Workers(1, "fastpsl-readahead") if len(ask_at) else None

    def advance(self, step: int) -> None:
        """Call it before a step is read; never with a smaller step than before. A few microseconds."""
        if self._workers is None:
            return
        given, asked = (
            int(np.searchsorted(steps, step, "right")) for steps in (self._give_steps, self._ask_steps)
        )
        if given > self._num_given:
            self._workers.submit(self._give, self._to_give[self._num_given : given].tolist())
            self._num_given = given
        if asked > self._num_asked:
            self._workers.submit(self._ask, self._to_ask[self._num_asked : asked].tolist())
            self._num_asked = asked

    def close(self, limit_s: float = 5.0) -> None:
        """Gives back what is held; waits for it `limit_s` seconds at most."""
        if self._workers is not None and not self._workers.closed:
            self._closing.set()
            self._workers.submit(self._give_all)
            self._workers.close(limit_s)

    def _ask(self, parts: list[int]) -> None:
        for i in parts:
            if self._closing.is_set():
                return
            offset, end = (int(self._extents.offset[i] + more) for more in (0, self._extents.num_bytes[i]))
            piece = self._piece_bytes[int(self._extents.fd[i])]
            self._held.add(i)
            for start in range(offset, end, piece):
                if self._closing.is_set():
                    return
                self._advise(i, start, min(piece, end - start), os.POSIX_FADV_WILLNEED)

    def _give(self, parts: list[int]) -> None:
        for i in parts:
            self._held.discard(i)
            offset, num_bytes = int(self._extents.offset[i]), int(self._extents.num_bytes[i])
            self._advise(i, offset, num_bytes, os.POSIX_FADV_DONTNEED)

    def _give_all(self) -> None:
        self._give(sorted(self._held))

    def _advise(self, i: int, offset: int, num_bytes: int, advice: int) -> None:
        try:
            os.posix_fadvise(int(self._extents.fd[i]), offset, num_bytes, advice)
        except OSError as error:
            if not self._closing.is_set():
                self._closing.set()  # nothing more is asked for
                warnings.warn(
                    f"no read-ahead: posix_fadvise failed ({error.strerror}); samples are read as they are needed",
                    stacklevel=2,
                )


def piece_bytes(fd: int) -> int:
    """What a single WILLNEED reads at most, whatever length it names (Linux, mm/readahead.c: force_page_cache_ra): the
    larger of the disk's read-ahead and its largest request; 128 KiB, the usual read-ahead, where neither is known.
    """
    device = os.fstat(fd).st_dev
    block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    kib = [_MIN_PIECE_KIB]
    for queue in ("queue", "../queue"):  # of a disk; of the disk that a partition is of
        for name in ("read_ahead_kb", "max_sectors_kb"):
            with suppress(OSError, ValueError):
                kib.append(int(Path(f"{block}/{queue}/{name}").read_text()))
    return max(kib) << 10
