"""Calls in a forked process."""

import os
import pickle
from collections.abc import Callable
from typing import Any


def in_a_forked_process(function: Callable[[], Any]) -> Any:
    """Return a function's result, or its error in words, in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - the parent's to look at
            result = f"{type(error).__name__}: {error}"
        os.write(writing, pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        result = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    return result
