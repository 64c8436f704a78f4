"""Steps with gradients that are not finite: the lines about them, and the end of a run of them."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine import reporter
from fastpsl.engine.reporter import FIRST_STEPS, WINDOW, SkippedSteps
from fastpsl.engine.trainer import pretrain
from tests.engine.test_trainer import lines, tiny_experiment
from tests.engine.tiny import tiny_run


def told(*fetches: str) -> list[str]:
    """Return the line of each fetch, a text with an x for a skipped step and a dot for another one."""
    steps, texts, num, first = SkippedSteps(), list[str](), 0, 1
    for marks in fetches:
        nums = [num := num + (mark == "x") for mark in marks]
        texts.append(steps.line(nums, first).split(" gradients")[0])
        first += len(marks)
        steps.require_effect()
    return texts


def test_each_fetch_with_skipped_steps_has_a_line() -> None:
    assert told("x", "x..x.....x", "." * 10, "xxxxx") == [
        "1 of steps 1 to 1 had", "3 of steps 2 to 11 had", "", "5 of steps 22 to 26 had"
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 7, 250])
def test_a_hundred_in_a_row_are_the_end(length: int) -> None:
    def fetches(marks: str) -> list[str]:
        return [marks[start : start + length] for start in range(0, len(marks), length)]

    told(*fetches("x" * 99 + "." + "x" * 99))
    with pytest.raises(
        ValueError, match=r"diverged: the last 10\d steps had" if length == 7 else "the last 100 "
    ):
        told(*fetches("." + "x" * 100))


@pytest.mark.parametrize("length", [1, 7, 250])
def test_more_than_half_of_two_hundred_are_the_end(length: int) -> None:
    """The first steps of a stage do not count, because fp16 looks for its scale in them."""
    some, most = "x." * (WINDOW // 2), "xx." * (WINDOW // 2)
    for marks in ("xx." * (FIRST_STEPS // 3) + "." + some * 3, "xx." * 65 + "." * 200 + some):
        told(*[marks[start : start + length] for start in range(0, len(marks), length)])
    marks = "." * FIRST_STEPS + some + most
    with pytest.raises(ValueError, match=r"diverged: 1\d\d of the last 200 steps had"):
        told(*[marks[start : start + length] for start in range(0, len(marks), length)])


def test_a_diverged_run_ends_and_its_losses_are_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite rate spoils the weights in the first step, and no later one has finite gradients."""
    monkeypatch.setattr(reporter, "WINDOW", 14)
    run = tiny_run(tmp_path, log_steps=3)
    with pytest.raises(ValueError, match="the last 8 steps had gradients that are not finite"):
        pretrain(replace(tiny_experiment(), schedule=lambda _: float("inf")), run)
    run.close()
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 10)) and rows[0]["loss"] == rows[0]["loss"]
    assert all(row["loss"] != row["loss"] for row in rows[1:])


def test_a_checkpoint_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    """A running variance overflows in step 5, while the gradients stay finite. A mask was never finite."""
    run = tiny_run(tmp_path, checkpoint_steps=2, max_steps_per_stage=8)
    experiment = tiny_experiment()
    experiment.backbone.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    norm, after_step, steps = (
        experiment.backbone.get_submodule("parts.0.1"),
        experiment.task.after_step,
        list[int](),
    )

    def spoil(extras: Any) -> None:
        after_step(extras)
        steps.append(1)
        if len(steps) == 5:
            norm.running_var[0] = torch.inf  # type: ignore[index,operator]

    experiment.task.after_step = spoil  # type: ignore[method-assign]
    good = "step-00000004.pt"
    words = (
        f"after step 6 of the run, 1 of its weights .* such as parts.0.1.running_var; the last good .*{good};"
    )
    with closing(run), pytest.raises(ValueError, match=words):
        pretrain(experiment, run)
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == good
