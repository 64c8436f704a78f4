"""recipes/jigsaw_r50.py itself, its real decoder, killed and resumed: equal to never killed, bit for bit."""

import random
import signal
from pathlib import Path

import pytest

from tests.commands import ROOT, digests, newest_checkpoint, run, run_until

RECIPE = ROOT / "recipes" / "jigsaw_r50.py"
STEPS_PER_STAGE = 7
SMALL = (
    *("--max-steps-per-stage", STEPS_PER_STAGE, "--checkpoint-steps", "2", "--keep-checkpoints", "30"),
    *("--batch-size", "8", "--num-threads", "2", "--no-tensorboard"),
    *("--shorter-px", "60", "--cell-px", "18", "--tile-px", "16", "--counts", "4", "8", "16"),
)


def kill_and_compare(folder: Path, backbone: str, num_kills: int) -> None:
    arguments = (*SMALL, "--backbone", backbone)
    done = run(RECIPE, *arguments, "--out", folder / "whole")
    assert done.returncode == 0, done.stderr
    chance = random.Random(num_kills)
    last = 3 * STEPS_PER_STAGE
    targets = sorted(chance.choices([p for p in range(2, last, 2)], k=num_kills))
    out = folder / "killed"
    for target in targets:
        # checkpoints stand at even steps and at each stage's end; the delay moves the kill off the checkpoint
        checkpoint = out / "checkpoints" / f"step-{target:08d}.pt"
        delay = chance.uniform(0, 0.4)
        if checkpoint.exists():
            delay += 6.0  # its first steps after resuming, or still before them
        code, output = run_until(
            RECIPE, *arguments, "--out", out, checkpoint=checkpoint, number=signal.SIGKILL, delay_s=delay
        )
        assert code in (-signal.SIGKILL, 0), output
        assert not list(out.glob("checkpoints/*.pt.tmp")) or code != 0
    done = run(RECIPE, *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(folder / "whole"))
    metrics = [(path / "metrics.jsonl").read_text() for path in (folder / "whole", out)]
    assert metrics[0] == metrics[1] and metrics[0].count("\n") == last


def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, "resnet18", num_kills=3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_leave_no_trace(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, "resnet50", num_kills=20)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (*SMALL, "--backbone", "resnet18", "--out", out)
    code, output = run_until(
        RECIPE, *arguments, checkpoint=out / "checkpoints" / "step-00000002.pt", number=signal.SIGINT
    )
    assert code == 75, output
    assert "Traceback" not in output and f"--out {out} goes on from there" in output
    assert '"preempted"' in (out / "status.json").read_text()
