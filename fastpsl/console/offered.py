"""What a public module offers: `dir` shows its `__all__`, and a wrong name gets the nearest right one."""

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from typing_extensions import override

from fastpsl.console.words import at_home, nearest, unknown

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class _Offering(ModuleType):
    """A module that shows the names of its `__all__`. The others remain for code that knows them."""

    __all__: list[str]

    @override
    def __dir__(self) -> list[str]:
        return sorted(self.__all__)

    @override
    def __getattr__(self, name: str) -> object:
        """Raise AttributeError in one line for a name that is neither here nor loaded on demand."""
        problem = f"{self.__name__} has no {name}"
        if not name.startswith("_"):
            near = nearest(name, self.__all__)
            problem += f"; perhaps you meant {near}" if near else f"; it has {', '.join(dir(self))}"
        raise AttributeError(problem, name=name, obj=None)


def offer_only_all(module: str) -> None:
    """Let a module, which calls this with its name, show its `__all__` alone."""
    sys.modules[module].__class__ = _Offering


def _paths_at_home(value: Any) -> Any:
    return type(value)(map(at_home, value)) if type(value) in (list, tuple) else at_home(value)


def named_arguments(*others: str) -> Callable[[Callable[Arguments, Answer]], Callable[Arguments, Answer]]:
    """Let a function raise ValueError with the nearest name for an argument that it does not have.

    Paths that begin with ~ are in the home folder.

    `others` are the names that it takes as `**options`.
    """

    def decorate(function: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
        parameters = inspect.signature(function).parameters
        names = [name for name, each in parameters.items() if each.kind != each.VAR_KEYWORD] + [*others]

        @functools.wraps(function)
        def checked(*arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
            for name in options:
                if name not in names:
                    raise unknown(f"argument of {function.__name__}", name, names)
            given = [*map(_paths_at_home, arguments)]
            return function(*given, **{name: _paths_at_home(value) for name, value in options.items()})

        return checked

    return decorate
