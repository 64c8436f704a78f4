"""Test supervised training as a user runs it: its record, its schedule, and errors."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine.optim.schedules import Moment
from fastpsl.evaluation.result import read_result
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.models.weights import load_pretrained
from fastpsl.pipelines.sample.betons import sample_paths
from tests.programs import ROOT, newest_checkpoint
from tests.recipes.in_process import Start, refused, starter

SMALL = (
    *("--data", sample_paths().train_32, "--size-px", "32", "--batch-size", "32", "--workers", "1"),
    *("--no-tensorboard", "--backbone", "resnet18", "--epochs", "2", "--max-steps-per-stage", "2"),
)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("supervised", monkeypatch, capsys)


def test_a_run_is_on_record_and_its_weights_can_be_probed(recipe: Start, tmp_path: Path) -> None:
    outcome = recipe(*SMALL, "--val", sample_paths().test_32, "--out", tmp_path)
    assert outcome.code == 0, outcome
    record = read_result(tmp_path / "result.json")
    val = newest_checkpoint(tmp_path)["position"]["summaries"][0]["val"]
    assert record["numbers"] == pytest.approx({name: 100 * val[name] for name in ("top1", "top5")})
    assert (record["protocol"], record["recipe"], record["cut"]) == ("supervised", "supervised", True)
    checkpoint = record["checkpoint"]
    assert (checkpoint["kind"], checkpoint["run_step"], checkpoint["cut"]) == ("fastpsl", 2, True)
    assert checkpoint["science"]["lr"] == 0.1 and record["settings"]["epochs"] == [2]
    loaded = load_pretrained(tmp_path)
    assert loaded.record == checkpoint and loaded.input.size_px == 32
    trained = newest_checkpoint(tmp_path)["backbone"]
    assert all(torch.equal(value, trained[name]) for name, value in loaded.backbone.state_dict().items())


def test_without_validation_images_it_trains_and_says_so(recipe: Start, tmp_path: Path) -> None:
    outcome = recipe(*SMALL, "--out", tmp_path)
    assert outcome.code == 0 and "no result: without --val" in outcome.out
    assert not (tmp_path / "result.json").exists()


def test_the_schedule_is_the_usual_one() -> None:
    parts: dict[str, Any] = runpy.run_path(str(ROOT / "recipes" / "supervised.py"))
    experiment = parts["build"](parts["RECIPE"].with_paper(backbone="resnet18", batch_size=512))
    (stage,) = experiment.stages
    assert (stage.level, stage.first_learning, stage.last_block, stage.epochs) == (1, 1, 5, 90)
    for epoch in range(90):
        rate = experiment.schedule(Moment(epoch * 10, 900, 0, 90, 90))
        assert rate == pytest.approx(0.2 * 0.1 ** ((epoch >= 30) + (epoch >= 60) + (epoch >= 80)))
    named = [(name, torch.nn.Parameter(torch.zeros(3))) for name in ("a.weight", "a.bias")]
    decayed, rest = experiment.optimiser(iter(named)).param_groups
    assert len(decayed["params"]) == 2 and not rest["params"]
    assert (decayed["weight_decay"], decayed["momentum"], decayed["nesterov"]) == (1e-4, 0.9, False)


def test_small_images_are_padded_and_scored_whole() -> None:
    parts: dict[str, Any] = runpy.run_path(str(ROOT / "recipes" / "supervised.py"))
    for crop, train, val, ops in (
        ("random_resized", RandomResizedCrop(32), ShorterSideCrop(37, 32, "center"), ["Flip"]),
        ("padded", ShorterSideCrop(32, 32, "center"), ShorterSideCrop(32, 32, "center"), ["Shift", "Flip"]),
    ):
        options = parts["RECIPE"].with_paper(
            backbone="nin4", size_px=32, crop=crop, plan="end_to_end", epochs=(1,)
        )
        experiment = parts["build"](options)
        assert (experiment.task.train_view.crop, experiment.task.val_view.crop) == (train, val)
        assert [type(op).__name__ for op in experiment.task.train_view.ops] == ops
        assert options.science()["crop"] == crop and not experiment.task.has_own_order


def test_a_nin_learns_from_few_labels_and_goes_on_as_it_began(recipe: Start, tmp_path: Path) -> None:
    nin = (
        *SMALL[:2],
        "--val",
        sample_paths().test_32,
        "--size-px",
        "16",
        "--batch-size",
        "16",
        "--workers",
        "1",
    )
    steps = ("--no-tensorboard", "--backbone", "nin3", "--epochs", "1", "--max-steps-per-stage", "3")
    chosen = ("--crop", "padded", "--labels-per-class", "2")
    outcome = recipe(*nin, *steps, *chosen, "--out", tmp_path / "out")
    assert outcome.code == 0 and "crop padded (default random_resized)" in outcome.out, outcome
    record = read_result(tmp_path / "out" / "result.json")
    science = record["checkpoint"]["science"]
    assert (science["crop"], science["labels_per_class"]) == ("padded", 2)
    assert (record["settings"]["crop"], record["data"]["num_train"]) == ("padded", 480)
    assert "3 of 30 steps" in outcome.err  # as many steps as with all 480 images in batches of 16
    refused(
        recipe(*nin, *steps, "--out", tmp_path / "out"),
        "supervised",
        "crop (padded there, random_resized now)",
    )
    refused(
        recipe(*nin, *steps, "--labels-per-class", "61", "--out", tmp_path / "b"),
        "supervised",
        "has 60 images",
    )


def test_impossible_requests_are_refused(recipe: Start, tmp_path: Path) -> None:
    refused(recipe(*SMALL, "--backbone", "vgg", "--out", tmp_path / "a"), "supervised", "vgg")
    refused(recipe(*SMALL, "--partition", "1-2", "4-5", "--out", tmp_path / "b"), "supervised", "--partition")
