"""Threads that fetch pages of remote files into the cache, when they are asked for or ahead of that."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple, final

import numpy as np

from fastpsl.files.locks import BusyError
from fastpsl.files.remote.address import LIMIT_S
from fastpsl.files.remote.cache import CachedFile
from fastpsl.files.remote.failures import RemoteDataError, WrongBytesError, persistently
from fastpsl.files.system_errors import remedy
from fastpsl.files.workers import Workers

NUM_CONNECTIONS = 16  # 16 requests of 8 MiB are what a line of 10 Gbit/s holds at a latency of 100 ms
_MAX_WRONG = 4  # answers with wrong bytes, before they count as the file's own (chosen, not measured)
_NUM_WAITS = 8  # whose pages stay held; more than the batches that a loader has in flight by default
# Polled, because nothing tells when another process ends a lock. A request may hang for longer than the
# limit; its thread, a daemon, is then left alone.
_POLL_S, _CLOSE_LIMIT_S = 0.02, 5.0


class Page(NamedTuple):
    """A page: a part of a file in the cache, and the check of its bytes."""

    file: CachedFile
    part: int
    is_sound: Callable[[bytes], bool]

    @property
    def num_bytes(self) -> int:
        start, stop = self.file.parts[self.part].tolist()
        return int(stop - start)


class _Fetch:
    """A page that was asked for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None
        self.is_wanted = True


@final
class Fetcher:
    """The pages of a data set that this process holds or fetches."""

    def __init__(self, pages: list[Page]) -> None:
        self._pages = pages
        self.limit_s, self.num_waits = LIMIT_S, _NUM_WAITS
        self.stalled_s, self.num_bytes = 0.0, 0
        self._fetches: dict[int, _Fetch] = {}
        self._is_planned = np.zeros(len(pages), bool)
        self._loose: OrderedDict[int, None] = OrderedDict()  # the last one used is the last
        self._max_loose = _NUM_WAITS * NUM_CONNECTIONS  # 128 pages, 1 GiB; `wait` raises it as it must
        self._left = threading.Event()
        self._lock = threading.Lock()  # never held during a request or while waiting
        self._num_waiting, self._waiting_since = 0, 0.0
        self._workers = Workers(NUM_CONNECTIONS, "fastpsl-fetch")

    def plan(self, pages: Iterable[int]) -> None:
        """Fetch pages, and hold them until they are given back."""
        self._check_open()
        with self._lock:
            for page in pages:
                self._is_planned[page] = True
                self._ask(page)

    def wait(self, pages: Iterable[int]) -> None:
        """Wait until pages are there. Those not planned are held until many others were waited for."""
        self._check_open()
        with self._lock:
            fetches = {page: self._asked(page) for page in pages}
            # Samples are read after this wait, and no plan tells when. So the last waits' pages stay held.
            self._max_loose = max(self._max_loose, self.num_waits * len(fetches))
            while len(self._loose) > self._max_loose:
                oldest, _ = self._loose.popitem(last=False)
                if not self._is_planned[oldest]:
                    self._give_back(oldest)
        missing = {page: fetch for page, fetch in fetches.items() if not fetch.done.is_set()}
        if missing:
            self._count_waiting(1)
            try:
                for page, fetch in missing.items():
                    self._wait_for(page, fetch)
            finally:
                self._count_waiting(-1)
        for fetch in fetches.values():  # of all, because one may have failed before this wait
            if fetch.error is not None:
                raise fetch.error

    def is_here(self, page: int) -> bool:
        """Return whether a page is in the cache now."""
        return self._pages[page].file.is_present(self._pages[page].part)

    def give_back(self, pages: Iterable[int]) -> None:
        """End the hold of pages. They stay in the cache until their room is needed."""
        if self._workers.closed:  # a forked process shares the locks, and must leave them to the other one
            return
        with self._lock:
            for page in pages:
                self._is_planned[page] = False
                self._give_back(page)

    def leave(self) -> None:
        """End all waits with an error, because nobody wants the pages any more."""
        self._left.set()

    def begin(self) -> None:
        """Allow waits again after `leave`."""
        self._left.clear()

    def close(self) -> None:
        """End the threads. The caller closes the files."""
        if self._workers.closed:
            return
        self.leave()
        with self._lock:
            for fetch in self._fetches.values():
                fetch.is_wanted = False  # so threads pass over those in the queue
        self._workers.close(_CLOSE_LIMIT_S)

    def _check_open(self) -> None:
        if self._workers.closed:
            raise RemoteDataError(
                f"{self._pages[0].file.remote.address}: is closed, or was opened before this process was "
                "forked; open it again"
            )

    def _asked(self, page: int) -> _Fetch:
        """Return the fetch of a page that is needed now; a failed one is tried again."""
        fetch = self._fetches.get(page)
        if fetch is not None and fetch.error is not None:
            del self._fetches[page]
            fetch = None
        if not self._is_planned[page]:
            self._loose[page] = None
            self._loose.move_to_end(page)
        return self._ask(page)

    def _ask(self, page: int) -> _Fetch:
        fetch = self._fetches.get(page)
        if fetch is None:
            fetch = self._fetches[page] = _Fetch()
            self._workers.submit(self._run, page, fetch)
        fetch.is_wanted = True
        return fetch

    def _give_back(self, page: int) -> None:
        fetch = self._fetches.get(page)
        if fetch is not None:
            fetch.is_wanted = False
            if fetch.done.is_set():
                self._end(page, fetch)

    def _end(self, page: int, fetch: _Fetch) -> None:
        del self._fetches[page]
        if fetch.error is None:
            self._pages[page].file.give_back(self._pages[page].part)

    def _run(self, page: int, fetch: _Fetch) -> None:
        """Fetch a page in a thread; its error is for those who wait for it."""
        with self._lock:
            if not fetch.is_wanted:
                del self._fetches[page]
                fetch.done.set()
                return
        error: Exception | None = None
        try:
            self._bring(self._pages[page])
        except Exception as failure:  # noqa: BLE001 - raised in `wait`
            error = failure
        # All under the lock: this thread or `_give_back` ends the hold, and not both, and `_asked` replaces a
        # failed fetch only after this thread is done with it.
        with self._lock:
            fetch.error = error
            fetch.done.set()
            if not fetch.is_wanted:
                self._end(page, fetch)

    def _bring(self, page: Page) -> None:
        file, part, deadline = page.file, page.part, time.monotonic() + self.limit_s
        while not file.hold(part):
            if file.claim(part):
                # Another process may have brought it since `hold`. The next `hold` then shares this lock.
                if not file.is_present(part):
                    try:
                        self._fill(page, self._read(page))
                    except BaseException:
                        file.give_back(part)
                        raise
                    with self._lock:  # several threads add to it
                        self.num_bytes += page.num_bytes
                    return
            elif time.monotonic() > deadline or self._left.is_set():  # then nobody waits for the text
                raise RemoteDataError(
                    f"{file.remote.address}: another process of this machine does not bring a part that it "
                    "has begun; look for a process that hangs"
                )
            else:
                time.sleep(_POLL_S)

    def _fill(self, page: Page, data: bytes) -> None:
        deadline = time.monotonic() + self.limit_s
        while True:
            try:
                return page.file.fill(page.part, data, self.limit_s)
            except OSError as error:
                # Other threads and processes give parts back, and then there is room.
                is_passing = isinstance(error, BusyError) and not self._left.is_set()
                if is_passing and time.monotonic() < deadline:
                    time.sleep(10 * _POLL_S)  # longer, because each try reads all lists of parts
                    continue
                advice = remedy(error, "start again")
                if isinstance(error, BusyError):
                    advice = "raise --cache-gb, or give another --cache-dir"
                raise RemoteDataError(
                    f"{page.file.path}: the cache cannot take more ({error.strerror}); {advice}"
                ) from None

    def _read(self, page: Page) -> bytes:
        """Read a page's bytes from its server until they are sound."""
        remote, num_wrong = page.file.remote, 0
        start, stop = page.file.parts[page.part].tolist()

        def read() -> bytes:
            nonlocal num_wrong
            data = remote.read(start, stop)
            if page.is_sound(data):
                return data
            num_wrong += 1
            remote.check_unchanged()  # first, because a replaced file's bytes would never be sound
            if num_wrong >= _MAX_WRONG:
                raise RemoteDataError(
                    f"{remote.address}: its bytes {start:,} to {stop:,} do not match their checksums; upload "
                    "the file again"
                )
            raise WrongBytesError(f"bytes {start:,} to {stop:,} do not match their checksums")

        return persistently(read, remote.address, self.limit_s, self._left)

    def _wait_for(self, page: int, fetch: _Fetch) -> None:
        # Another thread tries for `limit_s`, perhaps after others before it in the queue: half as long again
        # (not measured). The loader's own limit may come first.
        deadline = time.monotonic() + 1.5 * self.limit_s
        while not fetch.done.wait(0.1):  # in short waits, to notice `leave`
            if self._left.is_set() or time.monotonic() > deadline:
                address = self._pages[page].file.remote.address
                raise RemoteDataError(
                    f"{address}: a page did not come within {1.5 * self.limit_s:.0f} s; look at the network, "
                    "or raise --timeout-s"
                )

    def _count_waiting(self, change: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._num_waiting:  # once, however many threads wait
                self.stalled_s += now - self._waiting_since
            self._num_waiting, self._waiting_since = self._num_waiting + change, now
