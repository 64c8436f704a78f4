"""Steps with gradients that are not finite: the lines about them, and the end of a run of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastpsl.engine import skipped_steps
from fastpsl.engine.skipped_steps import MAX_IN_A_ROW, SkippedSteps
from fastpsl.engine.trainer import pretrain
from tests.engine.test_trainer import lines, tiny_experiment
from tests.engine.tiny import tiny_run


def told(*fetches: tuple[int, int]) -> list[str]:
    """Return the line of each fetch (the steps since the last one, and how many of them were skipped)."""
    steps, texts, num, last = SkippedSteps(), list[str](), 0, 0
    for length, num_new in fetches:
        num, first, last = num + num_new, last + 1, last + length
        texts.append(steps.line(num, first, last).split(" gradients")[0])
        steps.require_effect()
    return texts


def test_each_fetch_with_skipped_steps_has_a_line() -> None:
    assert told((1, 1), (10, 3), (10, 0), (5, 5)) == [
        "1 of steps 1 to 1 had", "3 of steps 2 to 11 had", "", "5 of steps 22 to 26 had"
    ]  # fmt: skip


@pytest.mark.parametrize("log_steps", [1, 7, 10, 250])
def test_a_hundred_in_a_row_are_the_end(log_steps: int) -> None:
    num = -(-MAX_IN_A_ROW // log_steps)
    all_skipped = (log_steps, log_steps)
    told(*[all_skipped] * (num - 1), (log_steps, log_steps - 1), *[(1, 1)] * (MAX_IN_A_ROW - 1))
    with pytest.raises(ValueError, match=f"diverged: the last {num * log_steps} steps had"):
        told((log_steps, log_steps - 1), *[all_skipped] * num)


def test_a_diverged_run_ends_and_its_losses_are_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite rate spoils the weights in the first step, and no later one has finite gradients."""
    monkeypatch.setattr(skipped_steps, "MAX_IN_A_ROW", 7)
    run = tiny_run(tmp_path, log_steps=3)
    with pytest.raises(ValueError, match="the last 8 steps had gradients that are not finite"):
        pretrain(replace(tiny_experiment(), schedule=lambda _: float("inf")), run)
    run.close()
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 10)) and rows[0]["loss"] == rows[0]["loss"]
    assert all(row["loss"] != row["loss"] for row in rows[1:])
