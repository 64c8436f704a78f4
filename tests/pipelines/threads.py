"""The threads of loaders. The test runner starts threads of its own, so all threads cannot be counted."""

import threading


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastpsl-loader")]


def wait_for_the_end_of_loader_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("fastpsl-loader"):
            thread.join(240)
            assert not thread.is_alive()
