"""What is said while something takes long: by a clock of the test's own, and once by the thread that says it."""

import io
import queue
import re
import sys
import time

import pytest
from typing_extensions import override

from fastpsl.pipelines import doing as module
from fastpsl.pipelines.doing import SILENCE_S, Voice, doing, heard, speak_by


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[now], in seconds; a voice that has no thread, so that it says nothing by itself."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def voice(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Voice:
    voice = Voice()
    monkeypatch.setattr(module, "_voice", voice)
    monkeypatch.setattr(module.threading.Thread, "start", lambda thread: None)
    return voice


def test_ten_seconds_of_silence_are_ended_by_the_innermost(voice: Voice, clock: list[float]) -> None:
    assert SILENCE_S == 10
    with doing("opening the data"):
        clock[0] += 6
        with doing("DATA: listing", "files", 1200) as told:
            clock[0] += 3.9
            assert voice.line(clock[0]) is None
            clock[0] += 0.1
            assert voice.line(clock[0]) == "DATA: listing: 0 of 1,200 files, 0:00:04 so far"
            told.update(400)
            clock[0] += 9.9
            assert voice.line(clock[0]) is None
            clock[0] += 0.1
            told.update(700, 3)
            assert voice.line(clock[0]) == (
                "DATA: listing: 700 of 1,200 files, 50 files/s, ETA 0:00:10, 3 broken"
            )
        clock[0] += 10
        assert voice.line(clock[0]) == "opening the data: 0:00:30 so far"
        told = doing("a step")
        with told:
            clock[0] += 9
            heard()  # such as a line of training
            clock[0] += 9
            assert voice.line(clock[0]) is None
            told.turn_to("the next step")
            assert told.line(clock[0]) == "the next step"
            clock[0] += 1
            assert voice.line(clock[0]) == "the next step: 0:00:01 so far"
        with doing("its own bar", quiet=True):
            clock[0] += 100
            assert voice.line(clock[0]) is None
    clock[0] += 100
    assert voice.line(clock[0]) is None  # nothing is being done


def test_an_hour_between_two_things_is_no_silence_of_the_second(voice: Voice, clock: list[float]) -> None:
    with doing("one"):
        pass
    clock[0] += 3600
    with doing("other"):
        clock[0] += 9
        assert voice.line(clock[0]) is None


def test_blocks_may_end_in_any_order(voice: Voice, clock: list[float]) -> None:
    outer, inner = doing("outer"), doing("inner", "images")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__()
    assert [*inner.over(range(3), each=64)] == [0, 1, 2]
    clock[0] += 12
    assert voice.line(clock[0]) == "inner: 192 images, 16 images/s"
    inner.__exit__()


def test_counts_end_at_the_total() -> None:
    told = doing("held-out pass", "images", 100)
    assert [told.num_done for _ in told.over(range(2), each=64)] == [0, 64]
    assert told.num_done == 100


def test_a_thread_says_it_on_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.01)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    speak_by(said.put)
    try:
        monkeypatch.setenv("RANK", "1")
        with doing("compiling on rank 1"):
            for _ in range(3):  # times that it would speak
                before = module._voice.last_heard
                while module._voice.last_heard == before:
                    time.sleep(0.001)
        assert said.empty()
        monkeypatch.setenv("RANK", "0")
        with doing("compiling"):
            assert re.fullmatch(r"compiling(: 0:0\d:\d\d so far)?", said.get(timeout=60))
    finally:
        speak_by(None)


class Closed(io.StringIO):
    @override
    def flush(self) -> None:
        raise BrokenPipeError


def test_without_a_reader_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    no_more = io.StringIO()
    no_more.close()
    for stream in (None, no_more, Closed()):
        monkeypatch.setattr(sys, "stderr", stream)
        module._to_stderr("line")
