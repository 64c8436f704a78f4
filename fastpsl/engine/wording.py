"""The words for options: flags on a command line, names of arguments in a call from Python."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_HELP = re.compile(r"; see [^;]*--help$")
_FLAG = re.compile(r"`[^`]*`|\(fastpsl [^)]*\)|(?<![\w./-])--([a-z][a-z-]*)")  # commands stay as they are
_called_from_python = ContextVar("called_from_python", default=False)


def in_words_of_python(text: str) -> str:
    """Return a message with options as Python names them: batch_size instead of --batch-size."""
    text = _HELP.sub("", text).replace("the same command", "the same call")
    return _FLAG.sub(lambda match: match[1].replace("-", "_") if match[1] else match[0], text)


def worded(text: str) -> str:
    """Return a line to print with options as they were given: as flags, or as arguments of a call."""
    return in_words_of_python(text) if _called_from_python.get() else text


@contextmanager
def words_of_python() -> Iterator[None]:
    """Let errors (ValueError), warnings and lines that are printed name options as Python does."""
    token, show = _called_from_python.set(True), warnings.showwarning

    def show_worded(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if category is UserWarning:
            message = UserWarning(in_words_of_python(str(message)))
        show(message, category, *rest, **more)

    warnings.showwarning = show_worded
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:
            error.args = (in_words_of_python(str(error)),)
        raise
    finally:
        warnings.showwarning = show
        _called_from_python.reset(token)
