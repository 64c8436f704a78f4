"""The threads of loaders. The test runner starts threads of its own, so all threads cannot be counted."""

import threading


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastpsl-loader")]
