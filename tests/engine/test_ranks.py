"""The task of docs/add_a_task.md (queue, momentum copy, labels by index) under torchrun: preempted and resumed."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.programs import ROOT, digests, newest_checkpoint, run, run_fresh, torchrun_until

RECIPE = ROOT / "tests" / "tasks" / "nearest_key_recipe.py"
ARGUMENTS = ("--num-threads", "1", "--no-tensorboard", "--checkpoint-minutes", "0")
LONG = ("--stage-epochs", "12", "12", "12")


@pytest.mark.slow
def test_two_ranks_preempted_in_mid_epoch_end_as_never_stopped(tmp_path: Path) -> None:
    """480 pictures in batches of 64: 7 steps an epoch, 252 steps; ranks agree on stopping once a second."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = run(RECIPE, *ARGUMENTS, *LONG, "--out", whole, ranks=2)
    assert done.returncode == 0, done.stderr
    slow = ("--checkpoint-steps", "1", "--keep-checkpoints", "5")  # time to be hit in mid-stage
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
    done = run(RECIPE, *ARGUMENTS, *LONG, "--out", stopped, ranks=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = newest_checkpoint(stopped), newest_checkpoint(whole)
    assert (theirs["task"]["nearest"] >= 0).sum() > 400 and theirs["task"]["queue"].shape == (64, 16)
    assert digests(ours) == digests(theirs)
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[11:14]) < 3 * max(losses[:3])  # the first step meets a queue of noise: its loss is low


@pytest.mark.slow
def test_ranks_do_not_each_compile(tmp_path: Path) -> None:
    """With an empty numba cache, every compiled function is saved by one of the two ranks only."""
    arguments = (*ARGUMENTS, "--max-steps-per-stage", "1", "--out", tmp_path / "out")
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DEBUG_CACHE": "1"}
    done = run_fresh(RECIPE, *arguments, ranks=2, environment=cache)
    assert done.returncode == 0, done.stderr
    saved = re.findall(r"data saved to '([^']+)'", done.stdout)
    assert len(saved) > 3 and len(saved) == len(set(saved)), sorted(saved)
    assert "data loaded from" in done.stdout


@pytest.mark.slow
def test_a_rank_that_hangs_in_a_step_leaves_the_step_before(tmp_path: Path) -> None:
    """Rank 0 in step 5 of stage 1, deaf to signals; rank 1 waits for it."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    short = (*ARGUMENTS, "--max-steps-per-stage", "8")
    assert run(RECIPE, *short, "--out", whole, ranks=2).returncode == 0
    hanging = ROOT / "tests" / "engine" / "hanging_recipe.py"
    environment = {"HANG_AT": "5", "PYTHONPATH": str(ROOT)}  # it imports from `tests`
    done = run_fresh(hanging, *short, "--out", stopped, ranks=2, environment=environment)
    status = json.loads((stopped / "status.json").read_text())
    assert status == {"state": "preempted", "stage": 1, "step": 4, "reason": "stopped by a signal"}, (
        done.stderr
    )
    assert newest_checkpoint(stopped)["position"]["run_step"] == 4
    assert "after 4 steps of the run, without waiting" in done.stdout and "rank 1" not in done.stderr
    done = run(RECIPE, *short, "--out", stopped, ranks=2)
    assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(stopped)) == digests(newest_checkpoint(whole))
    assert (stopped / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
