"""Ctrl-C that waits for the end of an import: after half of one, torch cannot be imported again."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FrameType, ModuleType

from typing_extensions import override

_AGAIN_S = 0.05
_STOP_TIMEOUT_S = 5.0


@contextmanager
def imports_undisturbed() -> Iterator[None]:
    """Deliver a Ctrl-C that comes within an import of the block as soon as that import is done.

    What torch, numba and scikit-learn leave in sys.modules otherwise makes every later import of them fail.
    Only the main thread receives signals, so in others this does nothing.
    """
    previous = signal.getsignal(signal.SIGINT)
    # A handler of C code is None, and SIG_IGN and SIG_DFL are numbers.
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    num_around = _num_imports(sys._getframe())  # the user's program itself may be imported
    held = _RepeatedSignal(signal.SIGINT)

    def hold(number: int, frame: FrameType | None) -> None:
        if held.is_stopping:  # a repetition that was under way
            return
        if _num_imports(frame) > num_around:
            held.start()
        else:
            held.stop()
            previous(number, frame)

    signal.signal(signal.SIGINT, hold)
    is_held = False
    try:
        yield
    finally:
        try:
            is_held = held.stop()
        finally:
            signal.signal(signal.SIGINT, previous)
        if is_held:
            signal.raise_signal(signal.SIGINT)


class _RepeatedSignal:
    """A signal that is sent every 0.05 s to the thread that started the repetition.

    A signal's handler starts and stops it, which must not wait for the locks of `threading.Thread`.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._is_on = False
        self._stop, self._ended = threading.Event(), threading.Event()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def start(self) -> None:
        if not self._is_on:
            self._is_on = True
            self._ended.clear()
            _thread.start_new_thread(self._repeat, (threading.get_ident(),))

    def stop(self) -> bool:
        """End the repetition and return whether it was on; no further signal comes afterwards."""
        if not self._is_on:
            return False
        self._stop.set()
        self._ended.wait(_STOP_TIMEOUT_S)
        self._is_on = False
        self._stop.clear()
        return True

    def _repeat(self, thread: int) -> None:
        while not self._stop.wait(_AGAIN_S):
            signal.pthread_kill(thread, self._number)
        self._ended.set()


def _num_imports(frame: FrameType | None) -> int:
    """Return how many frames of Python's import system are under way."""
    num = 0
    while frame is not None:
        num += frame.f_code.co_filename.startswith("<frozen importlib.")
        frame = frame.f_back
    return num


class GuardedImports(MetaPathFinder):
    """The import of a package's modules, within which `imports_undisturbed` holds."""

    def __init__(self, package: str) -> None:
        self._beginning = f"{package}."

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how Python itself would import the module, but undisturbed; None for other modules."""
        if not fullname.startswith(self._beginning):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _UndisturbedLoader(fullname, spec.loader.path)
        return spec


class _UndisturbedLoader(SourceFileLoader):
    @override
    def exec_module(self, module: ModuleType) -> None:
        with imports_undisturbed():
            super().exec_module(module)
