"""The loader's threads where the process may have no more."""

import threading

import pytest

from fastpsl.pipelines.workers import Workers


def test_too_few_threads_are_said_in_one_line_and_those_that_started_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def start_three(thread: threading.Thread) -> None:
        if thread.name == "many-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_three)
    words = r"64 threads many were asked for, and 3 could be started \(can't start new thread\): .*--workers"
    with pytest.raises(ValueError, match=words) as error:
        Workers(64, "many")
    assert "\n" not in str(error.value)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("many-")]
