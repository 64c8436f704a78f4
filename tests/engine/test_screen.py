"""The screen of a training on a terminal, in a notebook and in a file."""

import io
import re
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from fastpsl.console import progress
from fastpsl.console import screen as module
from fastpsl.console.screen import Numbers, Screen

NUMBERS = Numbers("S1", 1, 1, 3, 30, 3, 90, {"loss": 2.5}, 0.1, 64.0, 1.0, 61.0, 610.0)


def on_terminal(**options: Any) -> tuple[Screen, io.StringIO]:
    stream = io.StringIO()
    return Screen(
        Console(file=stream, force_terminal=True, width=100, highlight=False, _environ={}, **options)
    ), stream


def newest(stream: io.StringIO) -> str:
    """Return what was written since the last call, without styles."""
    text = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    stream.seek(stream.truncate(0))
    return text


def rows(text: str) -> list[str]:
    """Return what a terminal shows after `text`: lines go up, are erased and written anew."""
    lines, row = [""], 0
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    for control, letters in re.findall(r"\x1b\[([\d?]*[A-Za-z])|([^\x1b]+)", text):
        if control.endswith("A"):
            row -= int(control[:-1])
        elif control == "2K":
            lines[row] = ""
        for letter in letters:
            if letter == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif letter != "\r":
                lines[row] += letter
    return [line.rstrip() for line in lines if line.strip()]


def test_what_is_done_stands_below_the_numbers_until_it_changes() -> None:
    screen, stream = on_terminal()
    screen.show(NUMBERS)
    redraw = progress._heartbeat.redraw
    assert redraw is not None
    redraw("S1: step 4 of 90, [the first]: 0:00:06 so far")
    output = newest(stream)
    assert "S1: step 4 of 90, [the first]: 0:00:06 so far" in output and "stage ETA 0:01:01" in output
    screen.show(replace(NUMBERS, step=4))
    output = newest(stream)
    assert "step 4 of 90" in output and "so far" not in output
    redraw("S1: validation pass: 0:00:10 so far")
    newest(stream)
    screen.log("a [line] for good")
    output = newest(stream)
    assert "a [line] for good" in output and "so far" not in output
    redraw("S1: ending the stage: 0:00:10 so far")
    newest(stream)
    screen.close()
    assert "so far" not in newest(stream) and progress._heartbeat.redraw is None


def test_a_stage_leaves_its_summary_alone_and_a_stopped_one_its_last_numbers() -> None:
    screen, stream = on_terminal()
    screen.begin(replace(NUMBERS, step=0))
    screen.show(NUMBERS)
    screen.end_stage()
    screen.log("S1 (level G1): 90 steps")
    screen.begin(replace(NUMBERS, stage="S2", number=2, step=0))
    with screen.aside():
        screen.console.print("a bar")
    screen.show(replace(NUMBERS, stage="S2", number=2))
    screen.close()
    screen.close()
    screen.log("stopped")
    summary, bar, place, pace, learning, stopped = rows(stream.getvalue())
    assert (summary, bar, stopped) == ("S1 (level G1): 90 steps", "a bar", "stopped")
    assert place.startswith("stage 2 of 3 (S2, level G1)") and "images/s" in pace and "loss" in learning


def test_numbers_come_back_after_what_was_drawn_aside() -> None:
    screen, stream = on_terminal()
    screen.show(NUMBERS)
    with screen.aside():
        screen.console.print("a bar")
        assert rows(stream.getvalue()) == ["a bar"]
    bar, place, *_ = rows(stream.getvalue())
    assert bar == "a bar" and place.startswith("stage 1 of 3")
    screen.close()


def test_steps_are_counted_between_their_numbers_and_drawn_once() -> None:
    screen, stream = on_terminal()
    screen.reach(1)  # before any stage
    screen.show(NUMBERS)
    redraw = progress._heartbeat.redraw
    assert redraw is not None
    newest(stream)
    screen.reach(31)
    redraw(None)
    output = newest(stream)
    assert "step 31 of 90" in output and "epoch 2 of 3" in output and "loss 2.5" in output
    redraw(None)
    assert not newest(stream)
    screen.console.width = 50
    redraw(None)
    assert "step 31 of 90" in newest(stream)
    screen.close()


def test_lines_are_wrapped_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, stream = on_terminal()
    text = "word " * 40
    screen.log(text)
    assert max(map(len, newest(stream).splitlines())) <= 100
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("FORCE_COLOR", "1")
    Screen().log(text)
    Screen().show(NUMBERS)
    first, second = stderr.getvalue().splitlines()
    assert first == text and second.startswith("stage S1 level G1  step 3/90  loss 2.5  ")


def test_a_dumb_terminal_gets_lines_without_escapes() -> None:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, highlight=False, soft_wrap=True, _environ={"TERM": "dumb"}
    )
    screen = Screen(console)
    screen.begin(NUMBERS)
    assert not stream.getvalue()
    screen.show(NUMBERS)
    screen.log("a line")
    screen.close()
    assert "\x1b" not in stream.getvalue() and progress._heartbeat.redraw is None
    assert [line[:8] for line in stream.getvalue().splitlines()] == ["stage S1", "a line"]


def test_no_colour() -> None:
    screen, stream = on_terminal(no_color=True)
    screen.show(NUMBERS)
    screen.close()
    assert not re.search(r"\x1b\[[\d;]*(3|4|9)\dm", stream.getvalue()) and "64 images/s" in newest(stream)


def test_lines_on_stdout_stand_above_a_display_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a pipe gets them as they are."""
    for is_terminal in (True, False):
        file = io.StringIO()
        monkeypatch.setattr(file, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr("sys.stdout", file)
        screen, stream = on_terminal()
        screen.show(NUMBERS)
        print("a line of the user's")
        screen.close()
        assert ("a line of the user's" in stream.getvalue()) == is_terminal
        assert ("a line of the user's" in file.getvalue()) != is_terminal


def test_plain_lines_and_the_voice_do_not_speak_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If numbers arrive twice a second, a plain line comes within ten seconds, and the voice stays silent."""
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_heartbeat", voice := progress.Heartbeat())
    monkeypatch.setattr(progress.threading.Thread, "start", lambda thread: None)
    screen = Screen(Console(file=stream, width=200))
    with progress.operation("S1: step 4 of 90"):
        for _ in range(120):
            now[0] += 0.5
            assert voice.line(now[0]) is None
            screen.show(NUMBERS)
        assert stream.getvalue().count("loss 2.5") == 7  # in a minute
        now[0] += 9.9
        line = voice.line(now[0])
    assert line is not None and line.startswith("S1: step 4 of 90: 0:01:")


class Handle:
    """An output of a cell, as IPython returns it."""

    def __init__(self, page: Any):
        self.pages = [page]

    def update(self, page: Any) -> None:
        self.pages.append(page)


def test_a_notebook_gets_html_that_is_replaced_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Handle] = []

    def show(page: Any, display_id: bool = False) -> Handle | None:
        outputs.append(Handle(page))
        return outputs[-1] if display_id else None

    def import_ipython(name: str) -> types.SimpleNamespace:
        assert name == "IPython.display"
        return types.SimpleNamespace(display=show)

    monkeypatch.setattr(module, "import_module", import_ipython)
    screen = Screen(Console(file=io.StringIO(), force_jupyter=True, width=80))
    screen.begin(replace(NUMBERS, step=0))
    screen.show(NUMBERS)
    redraw = progress._heartbeat.redraw
    assert redraw is not None
    redraw("S1: validation pass <here>")
    screen.end_stage()
    screen.begin(replace(NUMBERS, stage="S2"))
    screen.close()
    first, second = [[page._repr_mimebundle_([], []) for page in output.pages] for output in outputs]
    html = [re.sub("<[^>]*>", "", page["text/html"]) for page in (*first, *second)]
    assert "step 0 of 90" in html[0] and "step 3 of 90" in html[1] and "loss 2.5" in first[1]["text/plain"]
    assert "validation pass &lt;here&gt;" in html[2] and html[3] == ""
    assert all("S2, level G1" in text for text in html[4:]) and len(html) > 4
    assert '<span style="' in first[0]["text/html"] and "class=" not in first[0]["text/html"]
    assert "\x1b" not in "".join(page["text/html"] + page["text/plain"] for page in (*first, *second))
