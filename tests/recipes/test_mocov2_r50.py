"""Test the MoCo v2 recipe as a user runs it: to the end, kill and resume, two ranks, and errors."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastpsl.pipelines.sample.betons import sample_paths
from tests.programs import ROOT, digests, newest_checkpoint, run, run_until
from tests.recipes.in_process import Start, refused, starter

RECIPE = ROOT / "recipes" / "mocov2_r50.py"
SMALL = (
    *("--backbone", "resnet18", "--size-px", "32", "--batch-size", "8", "--queue-size", "24"),
    *("--key-group", "2", "--workers", "1", "--no-tensorboard", "--checkpoint-steps", "3"),
    *("--keep-checkpoints", "9", "--data", sample_paths().train_32, "--momentum", "0.9"),
)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("mocov2_r50", monkeypatch, capsys)


def queue_of(out: Path, step: int) -> torch.Tensor:
    state = torch.load(out / "checkpoints" / f"step-{step:08}.pt", weights_only=True)
    queue: torch.Tensor = state["task"]["queue"]
    assert state["task"]["num_filled"] == len(queue) == 24
    assert torch.allclose(queue.norm(dim=1), torch.ones(24), atol=1e-5)
    return queue


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Set one thread as in tests.programs, because other numbers of threads change the last bits of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "published_widths")
def test_killed_and_with_two_ranks(recipe: Start, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = ("--max-steps-per-stage", "2")
    outcome = recipe(*SMALL, *steps, "--val", sample_paths().test_32, "--out", whole)
    assert outcome.code == 0, outcome
    printed = outcome.err + outcome.out
    assert printed.count("3 batches pass first, which are no steps") == 3, printed
    assert outcome.out.count("(chance 4.0 %)") == outcome.err.count("(chance 4.0 %)") == 3
    for level in (1, 2, 3):
        assert (whole / f"contact-sheet-G{level}.png").stat().st_size > 0
    assert not torch.equal(queue_of(whole, 2), queue_of(whole, 3))

    code, output = run_until(
        RECIPE, *SMALL, *steps, "--out", killed, folder=killed, step=3, number=signal.SIGKILL
    )
    assert code == -signal.SIGKILL and newest_checkpoint(killed)["position"]["stage"] >= 1, output
    outcome = recipe(*SMALL, *steps, "--val", sample_paths().test_32, "--out", killed)
    assert outcome.code == 0, outcome
    resumed, uninterrupted = (digests(newest_checkpoint(out)) for out in (killed, whole))
    resumed, uninterrupted = (
        {k: v for k, v in d.items() if "summaries" not in k} for d in (resumed, uninterrupted)
    )
    assert resumed == uninterrupted and any("task/key_encoder" in name for name in resumed)
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()

    # Only keys of the first step are equal: the queries' BatchNorm is per rank, so weights differ after it.
    one_step = ("--plan", "end_to_end", "--max-steps-per-stage", "1")
    done = run(RECIPE, *SMALL, *one_step, "--out", tmp_path / "two", ranks=2)
    assert done.returncode == 0, done.stderr
    assert recipe(*SMALL, *one_step, "--out", tmp_path / "one").code == 0
    assert torch.allclose(queue_of(tmp_path / "two", 1), queue_of(tmp_path / "one", 1), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--queue-size", "20"), ("--queue-size 20", "--batch-size 8", "16")),
        (("--queue-size", "488"), ("--queue-size 488", "480")),
        (("--key-group", "3"), ("--key-group 3", "divisor of 8")),
        (("--key-group", "4", "--accumulate", "4"), ("--key-group 4", "divisor of 2")),
        (("--key-group", "1"), ("--key-group 1",)),
        (("--momentum", "2"), ("--momentum 2",)),
        (("--temperature", "0"), ("--temperature 0",)),
    ],
)
def test_impossible_requests_are_refused(
    recipe: Start, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    outcome = recipe(*SMALL, *arguments, "--max-steps-per-stage", "1", "--out", tmp_path / "out")
    refused(outcome, "mocov2_r50", *words)
