"""The screen of training: a live table with the present work below it, or plain lines without a terminal."""

import io

import pytest
from rich.console import Console

from fastpsl.engine import console as module
from fastpsl.engine.console import Screen
from fastpsl.pipelines import doing

RECORD = {
    "stage": "S1",
    "level": 1,
    "step": 3,
    "num_steps": 90,
    "metrics": {"loss": 2.5},
    "lr": 0.1,
    "images_per_s": 64.0,
    "data_wait_percent": 1.0,
    "eta_s": 61.0,
}


def test_what_is_done_stands_below_the_table_until_it_changes() -> None:
    stream = io.StringIO()
    screen = Screen(Console(file=stream, force_terminal=True, width=120))
    screen.show(RECORD)
    doing._heartbeat.log("S1: step 4 of 90, [for which] much is compiled: 0:00:10 so far")
    output = stream.getvalue()
    assert "S1: step 4 of 90, [for which] much is compiled: 0:00:10 so far" in output and "0:01:01" in output
    stream.seek(stream.truncate(0))
    screen.show(RECORD | {"step": 4})
    assert "4/90" in stream.getvalue() and "so far" not in stream.getvalue()
    doing._heartbeat.log("S1: held-out pass: 0:00:10 so far")
    stream.seek(stream.truncate(0))
    screen.log("a line for good")
    assert "a line for good" in stream.getvalue() and "so far" not in stream.getvalue()
    doing._heartbeat.log("S1: ending the stage: 0:00:10 so far")
    stream.seek(stream.truncate(0))
    screen.close()
    assert "so far" not in stream.getvalue() and doing._heartbeat.log is doing._to_stderr


def test_plain_lines_and_the_voice_do_not_speak_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If numbers arrive twice a second, a plain line comes within ten seconds, and the voice stays silent."""
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(doing, "_heartbeat", voice := doing.Heartbeat())
    monkeypatch.setattr(doing.threading.Thread, "start", lambda thread: None)
    screen = Screen(Console(file=stream, width=200))
    with doing.doing("S1: step 4 of 90"):
        for _ in range(120):
            now[0] += 0.5
            assert voice.line(now[0]) is None
            screen.show(RECORD)
        assert stream.getvalue().count("loss 2.5") == 7  # in a minute
        now[0] += 9.9
        line = voice.line(now[0])
    assert line is not None and line.startswith("S1: step 4 of 90: 0:01:")
