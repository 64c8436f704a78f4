"""The screen of training: a table that changes with what is being done below it, and plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from fastpsl.engine import console as module
from fastpsl.engine.console import Screen
from fastpsl.pipelines import doing as voices

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
    written = io.StringIO()
    screen = Screen(Console(file=written, force_terminal=True, width=120))
    screen.show(RECORD)
    voices._voice.say("S1: step 4 of 90, [for which] much is compiled: 0:00:10 so far")
    shown = written.getvalue()
    assert "S1: step 4 of 90, [for which] much is compiled: 0:00:10 so far" in shown and "0:01:01" in shown
    written.seek(written.truncate(0))
    screen.show(RECORD | {"step": 4})
    assert "4/90" in written.getvalue() and "so far" not in written.getvalue()
    voices._voice.say("S1: held-out pass: 0:00:10 so far")
    written.seek(written.truncate(0))
    screen.say("a line for good")
    assert "a line for good" in written.getvalue() and "so far" not in written.getvalue()
    voices._voice.say("S1: ending the stage: 0:00:10 so far")
    written.seek(written.truncate(0))
    screen.close()
    assert "so far" not in written.getvalue() and voices._voice.say is voices._to_stderr


def test_plain_lines_and_the_voice_do_not_speak_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of looks twice a second a line comes before ten seconds are over: the voice has nothing to say."""
    now, written = [100.0], io.StringIO()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(voices, "_voice", voice := voices.Voice())
    monkeypatch.setattr(voices.threading.Thread, "start", lambda thread: None)
    screen = Screen(Console(file=written, width=200))
    with voices.doing("S1: step 4 of 90"):
        for _ in range(120):
            now[0] += 0.5
            assert voice.line(now[0]) is None
            screen.show(RECORD)
        assert written.getvalue().count("loss 2.5") == 7  # of a minute
        now[0] += 9.9
        said = voice.line(now[0])
    assert said is not None and said.startswith("S1: step 4 of 90: 0:01:")
