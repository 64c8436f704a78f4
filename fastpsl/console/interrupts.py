"""Ctrl-C that waits for the end of an import: after half of one, torch cannot be imported again."""

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


@contextmanager
def imports_undisturbed() -> Iterator[None]:
    """Deliver a Ctrl-C that comes within an import of the block as soon as that import is done.

    What torch, numba and scikit-learn leave in sys.modules otherwise makes every later import of them fail.
    Only the main thread receives signals, so in others this does nothing.
    """
    previous, waiting = signal.getsignal(signal.SIGINT), list[threading.Timer]()
    # A handler of C code is None, and SIG_IGN and SIG_DFL are numbers.
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    num_around = _num_imports(sys._getframe())  # the user's program itself may be imported

    def hold(number: int, frame: FrameType | None) -> None:
        if _num_imports(frame) <= num_around:
            previous(number, frame)
        elif not waiting:
            waiting.append(threading.Timer(_AGAIN_S, again))
            waiting[0].daemon = True
            waiting[0].start()

    def again() -> None:
        waiting.clear()
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if waiting:
            waiting.pop().cancel()
            signal.raise_signal(signal.SIGINT)


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
