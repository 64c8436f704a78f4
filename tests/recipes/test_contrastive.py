"""The recipes of SimCLR and MoCo v2 as a user runs them: to their ends, on two ranks, killed and resumed."""

import json
from pathlib import Path

import pytest
import torch

from fastpsl.engine import gpu
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from tests.programs import digests, newest_checkpoint
from tests.recipes.in_process import differences, goes_on, ran, start, words
from tests.slow import slow

SIMCLR = "simclr_r50"
SMALL_SIMCLR = ("--batch-size", "8", "--size-px", "32", "--workers", "1", "--no-tensorboard")


def images_of_32_px() -> tuple[object, ...]:
    """Return options for the sample's training images, with values between the paper's and the sample's."""
    return words("--data", sample_paths().train_32, "--backbone resnet18 --epochs 2 2 2 --warmup-epochs 1")


@pytest.mark.parametrize(("backbone", "width"), [("resnet18", 64), slow("resnet50", 256)])
def test_smallest_run_ends_with_lines_and_figures(tmp_path: Path, backbone: str, width: int) -> None:
    """Check that the head is as wide as the last block of each stage."""
    out = tmp_path / "out"
    short = "--max-steps-per-stage 1 --probe-every 1 --levels 1 2 3"
    arguments = (*SMALL_SIMCLR, short, "--backbone", backbone, "--out", out)
    _, _, printed, err = start(SIMCLR, *arguments).ok()
    lines = printed.splitlines()
    assert err.index("untrained: kNN B3 ") < err.index("S1 (level G1): ")
    (end,), (done,) = ([line for line in lines if line.startswith(word)] for word in ("S3 ", "done: kNN "))
    assert "(untrained " in done and end.endswith(f", {done.removeprefix('done: ')}")
    assert differences(out)["batch_size"] == [8, 256]
    assert err.startswith("the embedded sample: 480 training images")
    ends = [line for line in err.splitlines() if "validation accuracy" in line]
    assert [line[:13] for line in ends] == ["S1 (level G1)", "S2 (level G2)", "S3 (level G3)"]
    assert all("(chance 6.7 %)" in line for line in ends)
    sheets = [Path(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("contact sheet ")]
    assert [p.name for p in sheets] == [f"contact-sheet-G{level}.png" for level in (1, 2, 3)]
    head = newest_checkpoint(out)["train_step"]["head"]
    assert head["layers.0.weight"].shape == (width, width) and head["layers.3.weight"].shape == (128, width)
    rates = [json.loads(line)["lr"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] == 0 < rates[2] < rates[1]  # because only the run's first epoch warms up


def test_a_run_in_bf16_goes_on_so_and_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps are down to one pixel. A CPU without the instructions goes on in bf16, and tells it."""
    monkeypatch.setattr(gpu, "cpu_has_bf16", lambda: True)
    small = ("--batch-size 8 --size-px 16 --workers 1 --no-tensorboard --max-steps-per-stage 3",)
    arguments = (SIMCLR, *images_of_32_px(), *small)
    first = start(*arguments, "--out", tmp_path / "out").ok()
    assert ", in bf16 on the CPU" in first.err
    start(*arguments, "--out", tmp_path / "again").ok()
    assert digests(newest_checkpoint(tmp_path / "again")) == digests(newest_checkpoint(tmp_path / "out"))
    monkeypatch.setattr(gpu, "cpu_has_bf16", lambda: False)
    resumed = start(*arguments, "--out", tmp_path / "out").ok()
    assert "computes in bf16, as the run began; a new run here would take fp32" in resumed.err
    assert json.loads((tmp_path / "out/config.json").read_text())["science"]["precision"] == "bf16"


@pytest.mark.slow
def test_a_run_goes_on_from_any_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    """Resume in the warm-up, and in the second stage."""
    often = "--checkpoint-steps 1 --keep-checkpoints 20 --max-steps-per-stage 2"
    arguments = (SIMCLR, *SMALL_SIMCLR, *images_of_32_px(), often)
    out = tmp_path / "out"
    start(*arguments, "--out", out).ok()
    states = newest_checkpoint(out)["train_step"]["optimiser"]["state"].values()
    buffers = [state["momentum_buffer"] for state in states]
    assert len(buffers) > 40 and sum(bool(b.any()) for b in buffers) > 40
    goes_on(*arguments, whole=out, steps=(1, 3), files=("metrics.jsonl",))
    rates = [json.loads(line)["lr"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] == 0 and rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] > 0


@pytest.mark.slow
def test_two_ranks_train_all_stages(tmp_path: Path) -> None:
    """Train to the end, with validation images; test_nt_xent.py compares the loss with one rank's."""
    out = tmp_path / "out"
    arguments = (*SMALL_SIMCLR, *images_of_32_px(), "--val", sample_paths().test_32)
    done = ran(SIMCLR, *arguments, "--max-steps-per-stage", 1, "--out", out, ranks=2)
    assert done.stderr.count("validation accuracy") == 3, done.stderr
    state = newest_checkpoint(out)
    assert state["position"]["run_step"] == 3
    assert all(torch.isfinite(p).all() for p in state["backbone"].values())
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)


MOCO = "mocov2_r50"
SMALL_MOCO = words(
    "--backbone resnet18 --size-px 32 --batch-size 8 --queue-size 24 --key-group 2",
    "--workers 1 --no-tensorboard --checkpoint-steps 3 --keep-checkpoints 9 --data",
    sample_paths().train_32,
    "--momentum 0.9",
)


def queue_of(out: Path, step: int) -> torch.Tensor:
    state = torch.load(out / "checkpoints" / f"step-{step:08}.pt", weights_only=True)
    queue: torch.Tensor = state["task"]["queue"]
    assert state["task"]["num_filled"] == len(queue) == 24
    assert torch.allclose(queue.norm(dim=1), torch.ones(24), atol=1e-5)
    return queue


@pytest.mark.slow
def test_killed_and_with_two_ranks(tmp_path: Path) -> None:
    whole, steps = tmp_path / "whole", "--max-steps-per-stage 2"
    arguments = (MOCO, *SMALL_MOCO, steps, "--val", sample_paths().test_32)
    outcome = start(*arguments, "--out", whole).ok()
    printed = outcome.err + outcome.out
    assert printed.count("3 batches without a step first") == 3, printed
    assert outcome.out.count("(chance 4.0 %)") == outcome.err.count("(chance 4.0 %)") == 3
    for level in (1, 2, 3):
        assert (whole / f"contact-sheet-G{level}.png").stat().st_size > 0
    assert not torch.equal(queue_of(whole, 2), queue_of(whole, 3))
    assert newest_checkpoint(whole)["task"]["key_encoder"]
    goes_on(*arguments, whole=whole, steps=(3,), files=("metrics.jsonl",))

    # Only keys of the first step are equal: the queries' BatchNorm is per rank, so weights differ after it.
    one_step = "--plan end_to_end --max-steps-per-stage 1"
    ran(MOCO, *SMALL_MOCO, one_step, "--out", tmp_path / "two", ranks=2)
    start(MOCO, *SMALL_MOCO, one_step, "--out", tmp_path / "one").ok()
    assert torch.allclose(queue_of(tmp_path / "two", 1), queue_of(tmp_path / "one", 1), atol=1e-5)
