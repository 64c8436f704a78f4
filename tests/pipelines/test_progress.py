"""Progress lines of long work, by the test's own clock, and once by the real thread."""

import importlib
import io
import queue
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typing_extensions import override

from fastpsl.console import progress as module
from fastpsl.console.progress import SILENCE_S, Heartbeat, note_output, operation, redraw_with, report_to


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the current time as [seconds], which tests change; there is no thread that writes by itself."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def voice(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Heartbeat:
    voice = Heartbeat()
    monkeypatch.setattr(module, "_heartbeat", voice)
    monkeypatch.setattr(module.threading.Thread, "start", lambda thread: None)
    return voice


Said = Callable[[float], str | None]


@pytest.fixture
def said(voice: Heartbeat, clock: list[float]) -> Said:
    """Return a function that lets seconds pass, and returns the line that is then due."""

    def after(seconds: float) -> str | None:
        clock[0] += seconds
        return voice.line(clock[0])

    return after


def test_ten_seconds_of_silence_are_ended_by_the_innermost(said: Said, clock: list[float]) -> None:
    assert SILENCE_S == 10
    with operation("opening the data"):
        clock[0] += 6
        with operation("DATA: listing", "files", 1200) as progress:
            assert said(3.9) is None
            assert said(0.1) == "DATA: listing: 0 of 1,200 files, began 0:00:04 ago"
            progress.update(400)
            assert said(9.9) is None
            progress.update(700, 3)
            assert said(0.1) == "DATA: listing: 700 of 1,200 files, 50 files/s, ETA 0:00:10, 3 bad"
        assert said(10) == "opening the data: began 0:00:30 ago"
        progress = operation("a step")
        with progress:
            clock[0] += 9
            note_output()  # as after a line of training
            assert said(9) is None
            progress.rename("the next step")
            assert progress.line(clock[0]) == "the next step"
            assert said(1) == "the next step: began 0:00:01 ago"
        with operation("its own bar", quiet=True):
            assert said(100) is None
    assert said(100) is None  # because nothing is in progress


def test_an_early_operation_is_named_after_five_seconds_and_then_every_ten(said: Said) -> None:
    with operation("S1") as progress:
        progress.rename("S1: step 1 of 90", early=True)
        assert said(4.9) is None
        assert said(0.1) == "S1: step 1 of 90: began 0:00:05 ago"
        assert said(9.9) is None
        assert said(0.1) == "S1: step 1 of 90: began 0:00:15 ago"
        progress.rename("S1: step 2 of 90")
        assert said(9.9) is None


def test_a_display_names_what_lasts_five_seconds(voice: Heartbeat, clock: list[float]) -> None:
    assert voice.caption(clock[0]) is None
    with operation("outer") as outer:
        clock[0] += 4.9
        assert voice.caption(clock[0]) is None
        clock[0] += 0.1
        assert voice.caption(clock[0]) == "outer: began 0:00:05 ago"
        with operation("its own bar", quiet=True):
            clock[0] += 100
            assert voice.caption(clock[0]) is None
        outer.rename("next")
        assert voice.caption(clock[0]) is None


def test_a_display_is_drawn_by_the_thread_and_no_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.01)
    monkeypatch.setattr(module, "EARLY_S", 0.0)
    monkeypatch.setattr(module, "_POLL_EVERY_S", 0.01)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert redraw_with(lines.put) is None
    try:
        with operation("compiling"):
            assert {str(lines.get(timeout=60))[:9] for _ in range(3)} == {"compiling"}
    finally:
        assert redraw_with(None) == lines.put
    assert not stderr.getvalue()


def test_an_hour_between_two_things_is_no_silence_of_the_second(said: Said, clock: list[float]) -> None:
    with operation("one"):
        pass
    clock[0] += 3600
    with operation("other"):
        assert said(9) is None


def test_blocks_may_end_in_any_order(said: Said) -> None:
    outer, inner = operation("outer"), operation("inner", "images")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__()
    assert [*inner.track(range(3), each=64)] == [0, 1, 2]
    assert said(12) == "inner: 192 images, 16 images/s"
    inner.__exit__()


def test_counts_end_at_the_total() -> None:
    progress = operation("validation pass", "images", 100)
    assert [progress.num_done for _ in progress.track(range(2), each=64)] == [0, 64]
    assert progress.num_done == 100


def test_a_thread_says_it_on_rank_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.01)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    report_to(lines.put)
    try:
        monkeypatch.setenv("RANK", "1")
        with operation("compiling on rank 1"):
            for _ in range(3):  # times at which it would write
                before = module._heartbeat.last_output
                while module._heartbeat.last_output == before:
                    time.sleep(0.001)
        assert lines.empty()
        monkeypatch.setenv("RANK", "0")
        with operation("compiling"):
            assert re.fullmatch(r"compiling(: began 0:0\d:\d\d ago)?", lines.get(timeout=60))
    finally:
        report_to(None)


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


def test_a_package_that_is_being_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is asked for in a thread, as the heartbeat does, while the main thread imports."""
    (tmp_path / "slow_package").mkdir()
    (tmp_path / "slow_package" / "__init__.py").write_text("from slow_package import part\n")
    (tmp_path / "slow_package" / "part.py").write_text(
        "import threading\nfrom fastpsl.console.progress import operation\nlines = []\n"
        "def ask(): lines.append(operation('train').line(0.0))\n"
        "thread = threading.Thread(target=ask)\nthread.start()\nthread.join()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    slow = importlib.import_module("slow_package.part")
    slow.ask()
    assert slow.lines == ["train: loading slow_package", "train"]


def test_units_of_an_earlier_run_count_for_no_speed(voice: Heartbeat, clock: list[float]) -> None:
    with operation("a.beton: writing", "images", 1000) as progress:
        clock[0] += 60  # reads what is there
        progress.begin_at(600)
        assert progress.line(clock[0]) == "a.beton: writing: 600 of 1,000 images, began 0:00:00 ago"
        clock[0] += 10
        progress.update(800, 1, "80 of about 100 MB")
        assert progress.line(clock[0]) == (
            "a.beton: writing: 800 of 1,000 images, 20 images/s, ETA 0:00:10, 80 of about 100 MB, 1 bad"
        )
