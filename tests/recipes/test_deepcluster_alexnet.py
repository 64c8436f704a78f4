"""Test the DeepCluster recipe as a user runs it: on the sample, with two ranks, and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.pipelines.sample.betons import sample_paths
from tests.programs import ROOT, epoch_records, newest_checkpoint, run
from tests.recipes.in_process import Start, refused, starter

RECIPE = ROOT / "recipes" / "deepcluster_alexnet.py"
# Small images and a small network, because a step of AlexNet's 57 million parameters takes seconds.
SMALL = (
    *("--data", sample_paths().train_32, "--backbone", "resnet18_cifar", "--size-px", "32"),
    *("--input-channels", "SobelXY", "--num-clusters", "16", "--pca-width", "32", "--batch-size", "60"),
    *("--workers", "1", "--no-tensorboard", "--epochs", "2", "--max-steps-per-stage", "1"),
)  # fmt: skip


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("deepcluster_alexnet", monkeypatch, capsys)


@pytest.mark.usefixtures("published_widths")
@pytest.mark.slow
def test_the_sample_by_one_step(recipe: Start, tmp_path: Path) -> None:
    outcome = recipe("--max-steps-per-stage", "1", "--no-tensorboard", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert "labels.npz" in outcome.out and "labels.png" in outcome.out
    with np.load(tmp_path / "out" / "labels.npz") as file:
        assert file["labels"].shape == (480,) and np.unique(file["labels"]).tolist() == list(range(16))
    (line,) = epoch_records(tmp_path / "out")
    assert line["nmi_true"] > line["nmi_true_shuffled"] and line["nmi_previous"] is None
    head = newest_checkpoint(tmp_path / "out")["train_step"]["head"]
    assert sorted(value.shape for value in head.values()) == [(16,), (16, 4096)]


@pytest.mark.slow
@pytest.mark.usefixtures("published_widths")
def test_two_ranks_cluster_as_one(recipe: Start, tmp_path: Path) -> None:
    """Compare the labels before the first step, which are equal except for rounding at a border."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes of tests.programs
    assert recipe(*SMALL, "--out", tmp_path / "one").code == 0
    torch.set_num_threads(before)
    done = run(RECIPE, *SMALL, "--out", tmp_path / "two", ranks=2)
    assert done.returncode == 0, done.stderr
    one_rank, both_ranks = (np.load(tmp_path / name / "labels.npz")["labels"] for name in ("one", "two"))
    assert (one_rank != both_ranks).sum() <= 2
    (epoch,), (epoch_of_two,) = epoch_records(tmp_path / "one"), epoch_records(tmp_path / "two")
    assert epoch["distance"] == pytest.approx(epoch_of_two["distance"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num-clusters", "481"), ("--num-clusters 481", "480 training images")),
        (("--pca-width", "0"), ("--pca-width 0", "1 or more")),
        (("--order", "quasi_random"), ("--order quasi_random",)),
        (("--dropout", "0.5"), ("--dropout 0.5", "resnet18_cifar has no dropout")),
    ],
)
def test_impossible_requests_are_refused(
    recipe: Start, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(recipe(*SMALL, *arguments, "--out", tmp_path / "out"), "deepcluster_alexnet", *words)
