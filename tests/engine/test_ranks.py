"""The task of docs/tutorials/example_task.py under torchrun: preempted and resumed."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.programs import ROOT, digests, newest_checkpoint, run, run_fresh, torchrun_until

RECIPE = ROOT / "tests" / "tasks" / "nearest_key_recipe.py"
ARGUMENTS = ("--workers", "1", "--no-tensorboard", "--checkpoint-minutes", "0")
LONG = ("--epochs", "12", "12", "12")


@pytest.mark.slow
def test_two_ranks_preempted_in_mid_epoch_end_as_never_stopped(tmp_path: Path) -> None:
    """480 images in batches of 64 make 7 steps per epoch and 252 in all. Ranks confer once per second."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    process = run(RECIPE, *ARGUMENTS, *LONG, "--out", whole, ranks=2)
    assert process.returncode == 0, process.stderr
    slow = ("--checkpoint-steps", "1", "--keep-checkpoints", "5")  # leaves time for a signal within a stage
    _, output = torchrun_until(
        RECIPE,
        *ARGUMENTS,
        *LONG,
        *slow,
        "--out",
        stopped,
        folder=stopped,
        step=17,
        number=signal.SIGTERM,
        ranks=2,
    )
    status = json.loads((stopped / "status.json").read_text())
    assert status["state"] == "preempted", output
    position = newest_checkpoint(stopped)["position"]
    assert 17 <= position["run_step"] < 252 and status["step"] == position["step"]
    process = run(RECIPE, *ARGUMENTS, *LONG, "--out", stopped, ranks=2)
    assert process.returncode == 0, process.stderr
    state, whole_state = newest_checkpoint(stopped), newest_checkpoint(whole)
    assert (whole_state["task"]["nearest"] >= 0).sum() > 400 and whole_state["task"]["queue"].shape == (
        64,
        16,
    )
    assert digests(state) == digests(whole_state)
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[11:14]) < 3 * max(
        losses[:3]
    )  # the first step's loss is low, because the queue is noise


@pytest.mark.nightly
def test_ranks_do_not_each_compile(tmp_path: Path) -> None:
    """With an empty numba cache, only one of two ranks saves each compiled function."""
    arguments = (*ARGUMENTS, "--decoder", "ffcv", "--max-steps-per-stage", "1", "--out", tmp_path / "out")
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DEBUG_CACHE": "1"}
    process = run_fresh(RECIPE, *arguments, ranks=2, environment=cache)
    assert process.returncode == 0, process.stderr
    saved = re.findall(r"data saved to '([^']+)'", process.stdout)
    assert saved and len(saved) == len(set(saved)), sorted(saved)
    assert "data loaded from" in process.stdout


@pytest.mark.slow
def test_a_rank_that_hangs_in_a_step_leaves_the_step_before(tmp_path: Path) -> None:
    """Rank 0 hangs in step 5 of stage 1 and ignores signals. Rank 1 waits for it."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    short = (*ARGUMENTS, "--max-steps-per-stage", "8")
    assert run(RECIPE, *short, "--out", whole, ranks=2).returncode == 0
    hanging = ROOT / "tests" / "engine" / "hanging_recipe.py"
    environment = {"HANG_AT": "5", "PYTHONPATH": str(ROOT)}  # it imports from `tests`
    process = run_fresh(hanging, *short, "--out", stopped, ranks=2, environment=environment)
    status = json.loads((stopped / "status.json").read_text())
    assert status == {"state": "preempted", "stage": 1, "step": 4, "reason": "interrupted"}, process.stderr
    assert newest_checkpoint(stopped)["position"]["run_step"] == 4
    assert "after 4 steps of the run, without waiting" in process.stdout and "rank 1" not in process.stderr
    process = run(RECIPE, *short, "--out", stopped, ranks=2)
    assert process.returncode == 0, process.stderr
    assert digests(newest_checkpoint(stopped)) == digests(newest_checkpoint(whole))
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
