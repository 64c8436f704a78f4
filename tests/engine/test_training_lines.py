"""The lines of the training screen at every width: what fits stands there whole."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from fastpsl.console.screen import Numbers, Part, TrainingLines, fitted, plain_line

METRICS = {
    "loss": 5.12345,
    "loss_task": 1.45678,
    "accuracy": 0.23456,
    "loss_labels": 3.11999,
    "accuracy_labels": 0.0234567,
}
LARGE = Numbers(
    "S1", 1, 1, 3, 5_005, 12_345_678, 300_300_300, METRICS, 0.0123,
    images_per_s=12_345.6, data_wait_percent=12.3, eta_s=360_000.0, run_eta_s=1_360_000.0,
    gpu_bytes=123 * 2**30,
)  # fmt: skip
USUAL = Numbers(
    "S2", 2, 2, 3, 5_005, 12_345, 300_300, {"loss": 5.12345, "accuracy": 0.5}, 0.01,
    images_per_s=6_712.3, data_wait_percent=1.2, eta_s=360.0, run_eta_s=13_600.0, gpu_bytes=12 * 2**30,
)  # fmt: skip

WORDS = "stage level epoch step of ETA run learning rate lr images/s img/s wait data GPU memory GiB %"


def shown(numbers: Numbers, width: int, caption: str | None = None) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=True, _environ={}).print(TrainingLines(numbers, caption))
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()).splitlines()]


@pytest.mark.parametrize("numbers", [LARGE, USUAL])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200, *range(41, 200, 7)])
def test_no_number_and_no_name_is_cut(numbers: Numbers, width: int) -> None:
    """Check each text against a list of all that may stand there."""
    words = {*WORDS.split()}
    words |= numbers.metrics.keys()
    for name in ("stage", "number", "num_stages", "step", "num_steps", "epoch", "num_epochs"):
        value = getattr(numbers, name)
        words.add(f"{value:,}" if isinstance(value, int) else value)
    one, of = f"{numbers.number}/{numbers.num_stages}", f"{numbers.step:,}/{numbers.num_steps:,}"
    words |= {one, of, f"{numbers.epoch:,}/{numbers.num_epochs:,}", f"G{numbers.level}"}
    words |= {f"({numbers.stage},", f"G{numbers.level})"}
    words |= {"5.123", "1.457", "23.5", "3.120", "2.3", "50.0"}
    words |= {f"{numbers.lr:.3g}", "4", "12,346", "6,712", "12", "1", "123.0", "12.0"}
    words |= {"100:00:00", "377:46:40", "0:06:00", "3:46:40"}
    lines = shown(numbers, width)
    assert len(lines) == 3 and max(map(len, lines)) <= width
    for line in lines:
        assert "…" not in line
        assert set(line.replace("━", "").replace("╸", "").replace("╺", "").split()) <= words


def columns(line: str) -> list[str]:
    """Return the parts of a line without its bar."""
    return [part for part in re.split(r" {2,}", line.lstrip("━╸╺ ")) if part]


def test_what_is_left_out_by_width() -> None:
    place = {width: columns(shown(LARGE, width)[0]) for width in (40, 60, 80, 100)}
    assert place[40] == ["step 12,345,678 of 300,300,300"]
    assert place[60] == ["stage 1 of 3 (S1, level G1)", "step 12,345,678 of 300,300,300"]
    assert place[80] == [
        "stage 1 of 3 (S1, level G1)", "epoch 2,467/60,001", "step 12,345,678 of 300,300,300",
    ]  # fmt: skip
    assert place[100] == [
        "stage 1 of 3 (S1, level G1)", "epoch 2,467 of 60,001", "step 12,345,678 of 300,300,300",
    ]  # fmt: skip
    pace = {width: columns(shown(LARGE, width)[1]) for width in (40, 60, 80, 100, 120, 200)}
    assert pace[40] == ["4 %", "ETA 100:00:00"]
    assert pace[60] == ["4 %", "ETA 100:00:00", "run 377:46:40", "12,346 img/s"]
    assert pace[80] == [*pace[60], "wait 12 %"]
    assert pace[100] == [
        "4 %", "ETA 100:00:00", "run 377:46:40", "12,346 images/s", "wait 12 %", "GPU 123.0 GiB",
    ]  # fmt: skip
    assert pace[200] == [
        "4 %", "stage ETA 100:00:00", "run ETA 377:46:40", "12,346 images/s", "data wait 12 %",
        "GPU memory 123.0 GiB",
    ]  # fmt: skip
    learning = {width: columns(shown(LARGE, width)[2]) for width in (40, 60, 80, 100, 120)}
    assert learning[40] == ["loss 5.123", "loss_task 1.457", "lr 0.0123"]
    assert learning[60] == ["loss 5.123", "loss_task 1.457", "accuracy 23.5 %", "lr 0.0123"]
    assert learning[80] == [*learning[60][:-1], "loss_labels 3.120", "lr 0.0123"]
    assert learning[120] == [
        *learning[80][:-1], "accuracy_labels 2.3 %", "learning rate 0.0123",
    ]  # fmt: skip


def test_80_columns_hold_all_of_a_usual_run() -> None:
    place, pace, learning = shown(USUAL, 80)
    assert place == "stage 2 of 3 (S2, level G2)  epoch 3 of 60  step 12,345 of 300,300"
    assert pace == "━━━━━━━━━━    4 %  ETA 0:06:00  run 3:46:40  6,712 img/s  wait 1 %  GPU 12.0 GiB"
    assert learning == "loss 5.123  accuracy 50.0 %  learning rate 0.01"


def test_a_run_of_one_stage_on_the_cpu_before_its_speed_is_known() -> None:
    first = Numbers("linear", 1, 1, 1, 10, 0, 25)
    place, pace = shown(first, 80)
    assert place == "linear, level G1  epoch 1 of 3  step 0 of 25"
    assert columns(pace) == ["0 %"] and pace.count("━") == 40
    last = replace(first, step=25, eta_s=0.0, images_per_s=0.123)
    assert columns(shown(last, 80)[0])[1:] == ["epoch 3 of 3", "step 25 of 25"]
    assert columns(shown(last, 80)[1]) == ["100 %", "ETA 0:00:00", "0.12 images/s"]


def test_what_is_being_done_is_wrapped_and_not_cut() -> None:
    caption = "S1: step 1 of 90, the first: torch.compile builds the step, for a minute or so: 0:00:15 so far"
    lines = shown(USUAL, 40, caption)[3:]
    assert " ".join(lines) == caption and max(map(len, lines)) <= 40
    assert shown(USUAL, 40, "a [bold]path[/bold]")[3:] == ["a [bold]path[/bold]"]


def test_epochs_are_those_of_the_steps_made() -> None:
    steps = [replace(USUAL, steps_per_epoch=15, step=step, num_steps=40) for step in (0, 1, 15, 16, 40)]
    assert [numbers.epoch for numbers in steps] == [1, 1, 1, 2, 3] and steps[0].num_epochs == 3


def test_parts_are_dropped_from_the_least_important_on() -> None:
    parts = [Part(2, "ccc", "cccccc"), Part(0, "a", "aaaa"), Part(1, "bbbbb", "bbbbbb"), Part(3, "d", "d")]
    assert fitted(parts, 0) == []
    assert fitted(parts, 1) == ["a"] and fitted(parts, 4) == ["aaaa"]
    assert fitted(parts, 8) == ["a", "bbbbb"]
    # "d" would fit 12 columns beside these, but is less important than "ccc", which does not.
    assert fitted(parts, 12) == ["aaaa", "bbbbbb"]
    assert fitted(parts, 13) == ["ccc", "a", "bbbbb"]
    assert fitted(parts, 16) == ["ccc", "a", "bbbbb", "d"]
    assert fitted(parts, 100, 16) == ["ccc", "a", "bbbbb", "d"]
    assert fitted(parts, 100) == ["cccccc", "aaaa", "bbbbbb", "d"]
    assert fitted([], 10) == []


def test_a_plain_line_has_all_that_is_known() -> None:
    assert plain_line(USUAL) == (
        "stage S2 level G2  step 12345/300300  loss 5.123  accuracy 50.0 %  lr 0.01  img/s 6712  "
        "data wait 1 %  ETA 0:06:00  run ETA 3:46:40  GPU memory 12.0 GiB  epoch 3/60"
    )
    assert plain_line(Numbers("E", 3, 1, 1, 4, 1, 4, {"loss": 2.0}, 0.1)) == (
        "stage E level G3  step 1/4  loss 2  lr 0.1  epoch 1/1"
    )
