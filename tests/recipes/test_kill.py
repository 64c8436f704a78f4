"""Kill recipes/jigsaw_r50.py with its real decoder and resume it: the result is equal bit for bit."""

import random
import signal
from pathlib import Path

import pytest

from tests.programs import ROOT, digests, newest_checkpoint, newest_step, run, run_until

RECIPE = ROOT / "recipes" / "jigsaw_r50.py"
SMALL = (
    *("--checkpoint-steps", "2", "--batch-size", "8", "--workers", "2", "--no-tensorboard"),
    *("--short-side", "60", "--cell-px", "18", "--tile-px", "16", "--counts", "4", "8", "16"),
)


@pytest.mark.slow
def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    """Kill at any time after a checkpoint, mostly in each stage; `make faults` does so hundreds of times."""
    num_kills, steps_per_stage = 3, 12
    arguments = (*SMALL, "--backbone", "resnet18", "--max-steps-per-stage", steps_per_stage)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    done = run(RECIPE, *arguments, "--out", whole)
    assert done.returncode == 0, done.stderr
    chance, codes = random.Random(num_kills), []
    num_steps = 3 * steps_per_stage
    for kill in range(num_kills):
        target = max(newest_step(out) + 1, (2 * kill + 1) * num_steps // (2 * num_kills))
        code, output = run_until(
            RECIPE,
            *(*arguments, "--out", out),
            folder=out,
            step=target,
            number=signal.SIGKILL,
            delay_s=chance.uniform(0, 0.1),
        )
        codes.append(code)
        assert code in (-signal.SIGKILL, 0), output  # it may have ended before
    assert codes[0] == -signal.SIGKILL
    done = run(RECIPE, *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole))
    metrics = [(path / "metrics.jsonl").read_text() for path in (whole, out)]
    assert metrics[0] == metrics[1] and metrics[0].count("\n") == num_steps


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (*SMALL, "--backbone", "resnet18", "--out", out)
    code, output = run_until(RECIPE, *arguments, folder=out, step=2, number=signal.SIGINT)
    assert code == 75, output
    assert "Traceback" not in output and f"--out {out} goes on from there" in output
    assert '"preempted"' in (out / "status.json").read_text()
