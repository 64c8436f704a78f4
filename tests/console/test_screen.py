"""What a person sees of long work: on a terminal, in a notebook and in a file."""

import io
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from typing_extensions import override

from fastpsl.console import progress
from fastpsl.console import screen as module
from fastpsl.console.screen import Numbers, Progress, Screen, TrainingLines, plain_line, status, text_lines

NUMBERS = Numbers("S1", 1, 1, 3, 30, 3, 90, {"loss": 2.5}, 0.1, 64.0, 1.0, 61.0, 610.0)


def on_terminal(**options: Any) -> tuple[Screen, io.StringIO]:
    stream = io.StringIO()
    return Screen(
        Console(file=stream, force_terminal=True, width=100, highlight=False, _environ={}, **options)
    ), stream


def redraw(caption: str | None) -> None:
    """Draw anew, as the thread does that watches for silence."""
    assert progress._heartbeat.redraw is not None
    progress._heartbeat.redraw(caption)


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
    redraw("S1: step 4 of 90, [the first]: began 0:00:06 ago")
    output = newest(stream)
    assert "S1: step 4 of 90, [the first]: began 0:00:06 ago" in output and "stage ETA 0:01:01" in output
    screen.show(replace(NUMBERS, step=4))
    output = newest(stream)
    assert "step 4 of 90" in output and "began" not in output
    redraw("S1: validation pass: began 0:00:10 ago")
    newest(stream)
    screen.log("a [line] for good")
    output = newest(stream)
    assert "a [line] for good" in output and "began" not in output
    redraw("S1: ending the stage: began 0:00:10 ago")
    newest(stream)
    screen.close()
    assert "began" not in newest(stream) and progress._heartbeat.redraw is None


def test_a_handlers_line_stands_above_the_only_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal writes ^C behind the block. In a file, the handler writes its line itself."""
    screen, stream = on_terminal()
    monkeypatch.setattr(progress.os, "write", lambda number, text: stream.write(text.decode()))
    screen.show(NUMBERS)
    stream.write("^C")
    progress.print_in_handler("interrupted")
    screen.show(replace(NUMBERS, step=4))
    screen.close()
    progress.print_in_handler("again")
    first, place, *block, last = rows(stream.getvalue())
    assert (first, last) == ("interrupted", "again") and "step 4 of 90" in place
    assert not any("step" in line for line in block)


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
    assert line is not None and line.startswith("S1: step 4 of 90: began 0:01:")


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


METRICS = {
    "loss": 5.12345, "loss_task": 1.45678, "accuracy": 0.23456, "loss_labels": 3.11999,
    "accuracy_labels": 0.0234567,
}  # fmt: skip
LARGE = Numbers(
    "S1", 1, 1, 3, 5_005, 12_345_678, 300_300_300, METRICS, 0.0123,
    images_per_s=12_345.6, data_wait_percent=12.3, eta_s=360_000.0, run_eta_s=1_360_000.0,
    gpu_bytes=123 * 2**30,
)  # fmt: skip
USUAL = Numbers(
    "S2", 2, 2, 3, 5_005, 12_345, 300_300, {"loss": 5.12345, "accuracy": 0.5}, 0.01,
    images_per_s=6_712.3, data_wait_percent=1.2, eta_s=360.0, run_eta_s=13_600.0, gpu_bytes=12 * 2**30,
)  # fmt: skip


def shown(numbers: Numbers, width: int, caption: str | None = None) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=True, _environ={}).print(TrainingLines(numbers, caption))
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()).splitlines()]


def parts(lines: list[str]) -> list[str]:
    """Return the parts of lines without the bar."""
    return [part for line in lines for part in re.split(r" {2,}", line.strip("━╸╺ ")) if part]


SHORT = {"stage ETA": "ETA", "run ETA": "run", "data wait": "wait", "GPU memory": "GPU"}


@pytest.mark.parametrize("numbers", [LARGE, USUAL])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200, *range(41, 200, 7)])
def test_all_stands_there_whole_at_every_width(numbers: Numbers, width: int) -> None:
    lines = shown(numbers, width)
    assert max(map(len, lines)) <= width
    wide = parts(shown(numbers, 200))
    words = [re.sub("|".join(SHORT), lambda name: SHORT[name[0]], part) for part in wide]
    assert parts(lines) in (wide, words)


def test_the_parts_of_a_wide_line() -> None:
    assert parts(shown(LARGE, 200)) == [
        "stage 1 of 3 (S1, level G1)", "epoch 2,467 of 60,001", "step 12,345,678 of 300,300,300",
        "4 %", "stage ETA 100:00:00", "run ETA 377:46:40", "12,346 images/s", "data wait 12 %",
        "GPU memory 123.0 GiB",
        "loss 5.123", "loss_task 1.457", "accuracy 23.5 %", "loss_labels 3.120", "accuracy_labels 2.3 %",
        "learning rate 0.0123",
    ]  # fmt: skip


def test_80_columns_hold_all_of_a_usual_run() -> None:
    place, pace, learning = shown(USUAL, 80)
    assert place == "stage 2 of 3 (S2, level G2)  epoch 3 of 60  step 12,345 of 300,300"
    assert pace == "━━━━━━━    4 %  ETA 0:06:00  run 3:46:40  6,712 images/s  wait 1 %  GPU 12.0 GiB"
    assert learning == "loss 5.123  accuracy 50.0 %  learning rate 0.01"


def test_a_run_of_one_stage_on_the_cpu_before_its_speed_is_known() -> None:
    first = Numbers("linear", 1, 1, 1, 10, 0, 25)
    place, pace = shown(first, 80)
    assert place == "linear, level G1  epoch 1 of 3  step 0 of 25"
    assert parts([pace]) == ["0 %"] and pace.count("━") == 40
    last = replace(first, step=25, eta_s=0.0, images_per_s=0.123)
    assert parts(shown(last, 80))[1:] == [
        "epoch 3 of 3", "step 25 of 25", "100 %", "ETA 0:00:00", "0.12 images/s",
    ]  # fmt: skip


def test_what_is_being_done_is_wrapped_and_not_cut() -> None:
    caption = "S1: step 1 of 90, the first: torch.compile builds it, for a minute or so: began 0:00:15 ago"
    lines = shown(USUAL, 40, caption)[len(shown(USUAL, 40)) :]
    assert " ".join(lines) == caption and max(map(len, lines)) <= 40
    assert shown(USUAL, 40, "a [bold]path[/bold]")[-1:] == ["a [bold]path[/bold]"]


def test_epochs_are_those_of_the_steps_made() -> None:
    steps = [replace(USUAL, steps_per_epoch=15, step=step, num_steps=40) for step in (0, 1, 15, 16, 40)]
    assert [numbers.epoch for numbers in steps] == [1, 1, 1, 2, 3] and steps[0].num_epochs == 3


def test_lines_break_between_parts() -> None:
    texts = ["a b", "c", "d e f", "g"]
    for width, lines in (
        (20, "a b  c  d e f  g"),
        (12, "a b  c\nd e f  g"),
        (5, "a b\nc\nd e f\ng"),
        (1, "a b\nc\nd e f\ng"),
    ):
        assert text_lines(texts, width).plain == lines
    assert text_lines([], 10).plain == ""


def test_a_plain_line_has_all_that_is_known() -> None:
    assert plain_line(USUAL) == (
        "stage S2 level G2  step 12345/300300  loss 5.123  accuracy 50.0 %  lr 0.01  img/s 6712  "
        "data wait 1 %  ETA 0:06:00  run ETA 3:46:40  GPU memory 12.0 GiB  epoch 3/60"
    )
    assert plain_line(Numbers("E", 3, 1, 1, 4, 1, 4, {"loss": 2.0}, 0.1)) == (
        "stage E level G3  step 1/4  loss 2  lr 0.1  epoch 1/1"
    )


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
    monkeypatch.setattr(progress, "_heartbeat", progress.Heartbeat())
    monkeypatch.setattr(progress.threading.Thread, "start", lambda thread: None)
    stream = terminal(monkeypatch, width)
    with Progress("training on features", "images", 1_281_167) as shown_bar:
        now[0] += 10
        shown_bar.update(640_000)
        redraw("reading headers: began 0:00:06 ago")
    assert progress._heartbeat.redraw is None
    text = without_styles(stream)
    assert "…" not in text and "reading headers: began 0:00:06 ago" in text
    lines = re.split(r"[\r\n]|\x1b\[[\d?]*[A-Za-z]", text)
    assert max(map(len, lines)) <= width
    for words in ("640,000 of 1,281,167 images", "64,000 images/s, ETA 0:00:10", "training on features"):
        assert any(words in line for line in lines)
    assert text.count("\x1b[2K") >= 2  # it is removed at the end


def test_a_changing_line_takes_what_takes_long_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch, 80)
    monkeypatch.setattr(progress, "_heartbeat", progress.Heartbeat())
    with status("measuring"):
        assert progress._heartbeat.log is not progress._to_stderr
    assert progress._heartbeat.log is progress._to_stderr
    with pytest.raises(ZeroDivisionError), status("measuring"):
        _ = 1 / 0
    assert progress._heartbeat.log is progress._to_stderr


@pytest.mark.parametrize("make", [lambda: Progress("", "images", 10), lambda: status("measuring")])
def test_a_dumb_terminal_gets_the_lines_of_a_file(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Progress]
) -> None:
    stream = terminal(monkeypatch, 80, "dumb")
    with make():
        assert progress._heartbeat.redraw is None and progress._heartbeat.log is progress._to_stderr
        assert not progress._heartbeat._operations[-1].quiet
    assert not stream.getvalue()
