"""The threads of loaders, and calls in a forked process."""

import os
import pickle
import threading
from collections.abc import Callable
from typing import Any


# The test runner starts threads of its own, so all threads cannot be counted.
def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastpsl-loader")]


def wait_for_the_end_of_loader_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("fastpsl-loader"):
            thread.join(240)
            assert not thread.is_alive()


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
