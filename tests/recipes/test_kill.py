"""recipes/jigsaw_r50.py itself, its real decoder, killed and resumed: equal to never killed, bit for bit."""

import random
import signal
from pathlib import Path

import pytest

from tests.commands import ROOT, digests, newest_checkpoint, newest_step, run, run_until

RECIPE = ROOT / "recipes" / "jigsaw_r50.py"
SMALL = (
    *("--checkpoint-steps", "2", "--batch-size", "8", "--num-threads", "2", "--no-tensorboard"),
    *("--shorter-px", "60", "--cell-px", "18", "--tile-px", "16", "--counts", "4", "8", "16"),
)


def kill_and_compare(folder: Path, backbone: str, num_kills: int, steps_per_stage: int) -> None:
    """Kill a run again and again until it ends; checkpoints stand at even steps, kills fall anywhere after one."""
    arguments = (*SMALL, "--backbone", backbone, "--max-steps-per-stage", steps_per_stage)
    whole, out = folder / "whole", folder / "killed"
    done = run(RECIPE, *arguments, "--out", whole, timeout=1200)
    assert done.returncode == 0, done.stderr
    chance, stages_hit = random.Random(num_kills), set()
    num_steps = 3 * steps_per_stage
    for kill in range(num_kills):
        target = max(newest_step(out) + 1, (2 * kill + 1) * num_steps // (2 * num_kills))
        code, output = run_until(
            RECIPE,
            *(*arguments, "--out", out),
            folder=out,
            step=target,
            number=signal.SIGKILL,
            delay_s=chance.uniform(0, 0.3),
        )
        assert code == -signal.SIGKILL, output
        stages_hit.add(newest_checkpoint(out)["position"]["stage"])
    assert stages_hit == {0, 1, 2}
    done = run(RECIPE, *arguments, "--out", out, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole))
    metrics = [(path / "metrics.jsonl").read_text() for path in (whole, out)]
    assert metrics[0] == metrics[1] and metrics[0].count("\n") == num_steps


def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, "resnet18", num_kills=3, steps_per_stage=12)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_leave_no_trace(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, "resnet50", num_kills=20, steps_per_stage=50)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (*SMALL, "--backbone", "resnet18", "--out", out)
    code, output = run_until(RECIPE, *arguments, folder=out, step=2, number=signal.SIGINT)
    assert code == 75, output
    assert "Traceback" not in output and f"--out {out} goes on from there" in output
    assert '"preempted"' in (out / "status.json").read_text()
