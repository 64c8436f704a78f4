"""The words for options: flags on a command line, names of arguments in a call from Python."""

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

_HELP = re.compile(r"; see [^;]*--help$")
_FLAG = re.compile(r"`[^`]*`|\(fastpsl [^)]*\)|(?<![\w./-])--([a-z][a-z-]*)")  # commands stay as they are
_called_from_python = ContextVar("called_from_python", default=False)
# What warnings.showwarning was before each call under way. The last one that ends puts the first one back.
_shows, _lock = list[Callable[..., None]](), threading.Lock()


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
    token = _called_from_python.set(True)
    with _lock:
        _shows.append(warnings.showwarning)
        if len(_shows) == 1:
            warnings.showwarning = partial(_show_worded, _shows[0])
    try:
        yield
    except ValueError as error:
        if type(error) is ValueError:
            error.args = (in_words_of_python(str(error)),)
        raise
    finally:
        with _lock:
            show = _shows.pop()
            if not _shows:
                warnings.showwarning = show
        _called_from_python.reset(token)


def _show_worded(
    show: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any, **more: Any
) -> None:
    if category is UserWarning:
        message = UserWarning(in_words_of_python(str(message)))
    show(message, category, *rest, **more)
