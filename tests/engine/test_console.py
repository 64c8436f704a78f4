"""Progress bars: on a terminal one line that is drawn in place, elsewhere what `operation` prints."""

import io
import re
import sys
from collections.abc import Callable

import pytest
from typing_extensions import override

from fastpsl.console import progress as beats
from fastpsl.console import screen as module
from fastpsl.console.screen import Progress, status


class Terminal(io.StringIO):
    """A terminal on which text is collected."""

    @override
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, width: int, term: str = "xterm") -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", str(width))
    return stream


def without_styles(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_bar_fits_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(beats, "_heartbeat", beats.Heartbeat())
    monkeypatch.setattr(beats.threading.Thread, "start", lambda thread: None)
    stream = terminal(monkeypatch, width)
    with Progress("images", 1_281_167, "training on features") as progress:
        now[0] += 10
        progress.update(640_000)
        assert beats._heartbeat.redraw is not None
        beats._heartbeat.redraw("reading headers: 0:00:06 so far")
    assert beats._heartbeat.redraw is None
    text = without_styles(stream)
    assert "…" not in text and "reading headers: 0:00:06 so far" in text
    lines = [line for line in re.split(r"[\r\n]|\x1b\[2K", text) if "640,000" in line]
    assert lines and max(map(len, lines)) <= width
    assert ("64,000 images/s, ETA 0:00:10" in lines[0]) == (width >= 60)
    assert ("training on features" in lines[0]) == (width >= 80)
    assert text.count("\x1b[2K") >= 2  # it is removed at the end


def test_a_bar_without_a_total_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch, 80)
    with Progress("images", 0):
        pass
    assert "0 images" in without_styles(stream)


def test_a_changing_line_takes_what_takes_long_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, 80)
    monkeypatch.setattr(beats, "_heartbeat", beats.Heartbeat())
    with status("measuring"):
        assert beats._heartbeat.log is not beats._to_stderr
    assert beats._heartbeat.log is beats._to_stderr
    with pytest.raises(ZeroDivisionError), status("measuring"):
        _ = 1 / 0
    assert beats._heartbeat.log is beats._to_stderr


@pytest.mark.parametrize("make", [lambda: Progress("images", 10), lambda: status("measuring")])
def test_a_dumb_terminal_gets_the_lines_of_a_file(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Progress]
) -> None:
    stream = terminal(monkeypatch, 80, "dumb")
    with make():
        assert beats._heartbeat.redraw is None and beats._heartbeat.log is beats._to_stderr
        assert not beats._heartbeat._operations[-1].quiet
    assert not stream.getvalue()


def test_a_console_of_a_file_writes_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("images", 10) as progress:
        progress.update(5)
    assert not stream.getvalue()
