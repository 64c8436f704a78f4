"""Test the block probe as a user runs it: recorded scores, kill and resume, two ranks, and errors."""

import runpy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastpsl.engine.optim.schedules import Moment
from fastpsl.evaluation.few_labels import FewLabels
from fastpsl.evaluation.result import read_result
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.geometry import Flip, Shift
from fastpsl.pipelines.sample.betons import sample_paths
from tests.pipelines.labelled import write_labelled
from tests.programs import ROOT, digests, newest_checkpoint, run, run_until
from tests.recipes.in_process import Start, refused, starter

RECIPE = ROOT / "recipes" / "block_probe.py"
DATA = ("--data", sample_paths().train_32, "--val", sample_paths().test_32)
# A quarter of the images' positions, because there are two cores.
SMALL = ("--size-px", "16", "--batch-size", "16", "--workers", "1", "--no-tensorboard")
RANDOM = ("--random-weights", "--backbone", "nin4")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("block_probe", monkeypatch, capsys)


def test_a_run_puts_every_head_on_record(recipe: Start, tmp_path: Path) -> None:
    heads = ("conv_B2", "conv_B3", "fc1_B3", "fc2_B2")
    outcome = recipe(*RANDOM, *DATA, *SMALL, "--heads", *heads, "--epochs", "1", "--out", tmp_path)
    assert outcome.code == 0, outcome
    record = read_result(tmp_path / "result.json")
    assert (record["protocol"], record["recipe"], record["cut"]) == ("block_probe", "block_probe", False)
    numbers = record["numbers"]
    assert list(numbers) == [f"top{k}_{head}" for head in heads for k in (1, 5)]
    checkpoint = newest_checkpoint(tmp_path)
    val = checkpoint["position"]["summaries"][0]["val"]
    for name, value in numbers.items():
        assert value == pytest.approx(100 * val[name], abs=1e-3) and 0 <= value <= 100
    assert max(numbers[f"top1_{head}"] for head in heads) > 30  # chance is 12.5
    settings = record["settings"]
    assert (settings["heads"], settings["epochs"], settings["labels_per_class"]) == ([*heads], 1, None)
    assert (settings["lr"], settings["intervals"], settings["weight_decay"]) == (0.1, [100, 50, 50], 5e-4)
    assert (settings["momentum"], settings["nesterov"], settings["decay_biases"]) == (0.9, True, True)
    assert "Shift(max_px=2" in settings["train_view"] and "shorter_px=16" in settings["val_view"]
    mean = (numbers["top1_conv_B2"] + numbers["top1_conv_B3"]) / 2
    assert f"average of conv_B2, conv_B3: {mean:.1f} %" in outcome.out
    line = next(line for line in outcome.err.splitlines() if line.startswith("blocks (level"))
    assert all(f"{head} {numbers[f'top1_{head}']:.1f}" in line for head in heads)
    with Image.open(tmp_path / "result.png") as chart:
        assert chart.size[0] > 600
    # The weights of all blocks are still the random ones.
    fresh = (
        runpy.run_path(str(RECIPE))["RECIPE"]
        .with_paper(random_weights=True, backbone="nin4")
        .pretrained()
        .backbone
    )
    assert all(torch.equal(value, checkpoint["backbone"][k]) for k, value in fresh.state_dict().items())


FEW = (*RANDOM, *DATA, *SMALL, "--heads", "conv_B2", "fc2_B1", "--labels-per-class", "3", "--epochs", "1")


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_killed(tmp_path: Path) -> None:
    """Run with few labels, so that their order must continue where it stopped."""
    whole, out = tmp_path / "whole", tmp_path / "killed"
    done = run(RECIPE, *FEW, "--out", whole)
    assert done.returncode == 0, done.stderr
    arguments = (*FEW, "--checkpoint-steps", "2", "--out", out)
    code, output = run_until(RECIPE, *arguments, folder=out, step=5, number=signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    assert newest_checkpoint(out)["position"]["run_step"] < 30
    done = run(RECIPE, *arguments)
    assert done.returncode == 0, done.stderr
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole))
    assert newest_checkpoint(out)["position"]["run_step"] == 30  # 480 images in batches of 16
    results = [read_result(folder / "result.json") for folder in (whole, out)]
    assert results[0]["numbers"] == results[1]["numbers"] and results[0]["data"]["num_train"] == 480
    assert (whole / "metrics.jsonl").read_text() == (out / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    done = run(RECIPE, *FEW, "--max-steps-per-stage", "2", "--out", tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    record = read_result(tmp_path / "result.json")
    assert record["cut"] and len(record["numbers"]) == 4 and all(v >= 0 for v in record["numbers"].values())


def test_values_are_the_papers_and_rotnets() -> None:
    """Check the rates of each epoch, the optimiser's settings, the views, and that only needed blocks run."""
    recipe: dict[str, Any] = runpy.run_path(str(RECIPE))
    options = recipe["RECIPE"].with_paper(random_weights=True, backbone="nin4")
    assert {name: getattr(options, name) for name in recipe["PAPER"]} == recipe["PAPER"]
    assert options.batch_size == 128
    experiment = recipe["build"](options)
    (stage,) = experiment.stages
    assert (stage.first_learning, stage.last_block, stage.epochs) == (5, 4, 200)
    for epoch in range(200):
        rate = experiment.schedule(Moment(epoch * 390, 200 * 390, 0, 200, 200))
        assert rate == pytest.approx(0.1 * 0.1 ** ((epoch >= 100) + (epoch >= 150)))
    named = [(f"head.{name}", torch.nn.Parameter(torch.zeros(3))) for name in ("0.weight", "1.bias")]
    decayed, rest = experiment.optimiser(iter(named)).param_groups
    assert len(decayed["params"]) == 2 and not rest["params"]
    settings = {name: decayed[name] for name in ("momentum", "nesterov", "weight_decay")}
    assert settings == {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    (train,), (val,) = experiment.task.views(1), experiment.task.val_views(1)
    whole = ShorterSideCrop(32, 32, "center")
    assert (train.crop, train.ops, val.crop, val.ops) == (whole, (Shift(4), Flip()), whole, ())
    assert not isinstance(experiment.task, FewLabels) and not experiment.task.has_own_order
    values = {"heads": ("fc1_B2",), "whole": False, "labels_per_class": 20, "seed": 7}
    experiment = recipe["build"](recipe["RECIPE"].with_paper(random_weights=True, backbone="nin4", **values))
    assert experiment.stages[0].last_block == 2 and experiment.task.val_view.crop == ShorterSideCrop(
        37, 32, "center"
    )
    assert isinstance(experiment.task, FewLabels) and (
        experiment.task.labels_per_class,
        experiment.task.seed,
    ) == (20, 7)


def unlabelled(tmp_path: Path) -> Path:
    """Return a beton with an unlabelled last image, as STL-10 has them."""
    names = runpy.run_path(str(ROOT / "fastpsl" / "pipelines" / "sample" / "landscapes.py"))["CLASS_NAMES"]
    return write_labelled(tmp_path / "some.beton", [*(i % 8 for i in range(31)), -1], names)


def test_impossible_requests_are_refused(recipe: Start, tmp_path: Path) -> None:
    outs: list[Path] = []

    def is_refused(*arguments: object, words: tuple[str, ...]) -> None:
        outs.append(tmp_path / f"out-{len(outs)}")
        refused(recipe(*SMALL, *RANDOM, "--out", outs[-1], *arguments), "block_probe", *words)
        assert not outs[-1].exists()

    is_refused(*DATA, "--heads", "conv_B7", words=("conv_B7", "nin4 has the blocks B1 to B4"))
    is_refused(*DATA, "--heads", "linear_B2", words=("linear_B2", "allowed are conv_B<k>"))
    is_refused(*DATA, "--heads", words=("--heads without any",))
    is_refused(*DATA, "--heads", "conv_B2", "conv_B2", words=("conv_B2 2 times",))
    is_refused(*DATA, "--labels-per-class", "61", words=("has 60 images", "give 60 or fewer"))
    is_refused(*DATA, "--labels-per-class", "0", words=("--labels-per-class 0",))
    is_refused(
        *DATA, "--labels-per-class", "9", "--order", "quasi_random", words=("--order quasi_random", "labels")
    )
    is_refused(*DATA, "--epochs", "0", words=("--epochs 0",))
    is_refused(*DATA[:2], words=("give --val",))
    some = ("--data", unlabelled(tmp_path), *DATA[2:])
    is_refused(*some, words=("needs labels", "1 of 32 samples have none", "p31"))
    is_refused(*some, "--labels-per-class", "3", words=("needs labels",))
