"""numba's njit, imported at the first call, because the import takes 0.7 s."""

import functools
import threading
from collections.abc import Callable
from typing import Any

_lock = threading.RLock()  # the loops' first call may come from several threads


def njit(**options: Any) -> Any:
    """Return a decorator that compiles a function, and those of its file that it calls, at the first call.

    numba's cache does not notice an edit of another file, so compiled functions use no value of another file.
    """
    return lambda function: _Compiled(function, options)


class _Compiled:
    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._options = function, options
        self._dispatcher: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self.dispatcher()(*arguments)

    def dispatcher(self) -> Any:
        """Return what numba makes of the function. It takes the function's place in its file."""
        with _lock:
            if self._dispatcher is None:
                import numba

                self._dispatcher = numba.njit(**self._options)(self._function)
                names = self._function.__globals__
                names |= {
                    name: each.dispatcher() for name, each in names.items() if isinstance(each, _Compiled)
                }
            return self._dispatcher
