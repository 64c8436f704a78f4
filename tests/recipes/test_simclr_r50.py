"""Test the SimCLR recipe as a user runs it: errors, runs of one and two ranks, and resume."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from tests.programs import ROOT, digests, newest_checkpoint, run
from tests.slow import slow

RECIPE = ROOT / "recipes" / "simclr_r50.py"
SMALL = ("--batch-size", "8", "--size-px", "32", "--workers", "1", "--no-tensorboard")


def images_of_32_px() -> tuple[object, ...]:
    """Return options for the sample's training images, with values between the paper's and the sample's."""
    epochs = ("--epochs", 2, 2, 2, "--warmup-epochs", 1)
    return ("--data", sample_paths().train_32, "--backbone", "resnet18", *epochs)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the recipe in this process: `recipe("--flag", …) → (code, out, err)`."""
    script = find_recipe("simclr_r50")

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            launch(script, [*map(str, arguments)])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return start


@pytest.mark.parametrize(("backbone", "width"), [("resnet18", 64), slow("resnet50", 256)])
def test_smallest_run_ends_with_lines_and_figures(
    recipe: Any, tmp_path: Path, backbone: str, width: int
) -> None:
    """Check that the head is as wide as the last block of each stage."""
    out = tmp_path / "out"
    code, printed, err = recipe(*SMALL, "--max-steps-per-stage", 1, "--backbone", backbone, "--out", out)
    assert code == 0, err
    lines = printed.splitlines()
    assert lines[0].startswith("the embedded sample: ") and "batch_size 8 (paper 256)" in lines[0]
    ends = [line for line in err.splitlines() if "validation accuracy" in line]
    assert [line[:13] for line in ends] == ["S1 (level G1)", "S2 (level G2)", "S3 (level G3)"]
    assert all("(chance 6.7 %)" in line for line in ends)
    sheets = [Path(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("contact sheet ")]
    assert [p.name for p in sheets] == [f"contact-sheet-G{level}.png" for level in (1, 2, 3)]
    head = newest_checkpoint(out)["train_step"]["head"]
    assert head["layers.0.weight"].shape == (width, width) and head["layers.3.weight"].shape == (128, width)
    rates = [json.loads(line)["lr"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] == 0 < rates[2] < rates[1]  # because only the run's first epoch warms up


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch-size", "1"), ("--batch-size 1", "2 or more")),
        (("--batch-size", "32", "--accumulate", "2"), ("--accumulate 2", "negatives", "more GPUs")),
        (("--apex",), ("--apex: there is no such option",)),
        (("--temperature", "0"), ("--temperature 0",)),
        (("--lr", "-1"), ("above 0",)),
        (("--weight-decay", "-1"), ("weight_decay -1",)),
        (("--embedding-width", "0"), ("--embedding-width 0",)),
        (("--levels", "1", "2", "4"), ("4",)),
        (("--partition", "1-2", "4-5", "3-5"), ("partition",)),
        (("--backbone", "lenet"), ("lenet", "resnet50")),
        (("--batch-size", "1000"), ("480", "1000")),
        (("--sync-batchnorm",), ("CUDA",)),
    ],
)
def test_impossible_requests_are_refused(
    recipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, _, err = recipe(*arguments, "--workers", "1", "--out", tmp_path / "out")
    last = err.strip().splitlines()[-1]
    assert code == 2 and "Traceback" not in err
    assert last.startswith("simclr_r50: ")
    for word in words:
        assert word in last, last


@pytest.mark.slow
def test_a_run_goes_on_from_any_checkpoint_as_if_never_stopped(recipe: Any, tmp_path: Path) -> None:
    """Remove the later ones of six checkpoints, as a kill would, and compare the end of the resumed run."""
    out = tmp_path / "out"
    often = ("--checkpoint-steps", 1, "--keep-checkpoints", 20)
    arguments = (*SMALL, *images_of_32_px(), *often, "--max-steps-per-stage", 2)
    code, _, err = recipe(*arguments, "--out", out)
    assert code == 0, err
    whole = newest_checkpoint(out)
    metrics = (out / "metrics.jsonl").read_text()
    buffers = [s["momentum_buffer"] for s in whole["train_step"]["optimiser"]["state"].values()]
    assert len(buffers) > 40 and sum(bool(b.any()) for b in buffers) > 40
    checkpoints = sorted((out / "checkpoints").glob("step-*.pt"))
    assert len(checkpoints) == 6
    for step in (1, 3):  # in the warm-up, and in the second stage
        for path in checkpoints[step:]:
            path.unlink()
        code, _, err = recipe(*arguments, "--out", out)
        assert code == 0, err
        assert digests(newest_checkpoint(out)) == digests(whole)
        assert (out / "metrics.jsonl").read_text() == metrics
    rates = [json.loads(line)["lr"] for line in metrics.splitlines()]
    assert rates[0] == 0 and rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] > 0


@pytest.mark.slow
def test_two_ranks_train_all_stages(tmp_path: Path) -> None:
    """Train to the end, with validation images; test_nt_xent.py compares the loss with one rank's."""
    out = tmp_path / "out"
    arguments = (*SMALL, *images_of_32_px(), "--val", sample_paths().test_32)
    done = run(RECIPE, *arguments, "--max-steps-per-stage", 1, "--out", out, ranks=2, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("validation accuracy") == 3, done.stderr
    state = newest_checkpoint(out)
    assert state["position"]["run_step"] == 3
    assert all(torch.isfinite(p).all() for p in state["backbone"].values())
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)
