"""Test recipes/voc_classification.py: its files, resume, and errors."""

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastpsl.engine.dataset_pass import NAME, read_predictions
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.evaluation.result_file import read_result
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.transfer.classification.task import PROTOCOLS, label_scores
from tests.programs import digests, newest_checkpoint, records
from tests.recipes.in_process import goes_on, ran, refused, start, words
from tests.slow import slow

RECIPE = "voc_classification"
recipe = partial(start, RECIPE)
RANDOM = ("--random-weights", "--backbone", "resnet18")
SMALL = words("--size-px 32 --batch-size 4 --workers 1 --decoder pillow --no-tensorboard --device", "cpu")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of 20 trainval images, ten of them train's, and 39 test images."""
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit"
    return draw_voc(root, 20, 39, side_px=48, num_train_masks=2, num_test_masks=2)


@pytest.mark.parametrize(
    ("name", "num_train", "num_steps"), [("deepcluster", 20, 80_000), slow("sslpp", 10, 400)]
)
def test_a_result_says_its_protocol(
    voc: Path, tmp_path: Path, name: str, num_train: int, num_steps: int
) -> None:
    """Compare the recorded values with the protocol, and the numbers with predictions.npz."""
    arguments = ("--protocol", name, "--data", voc, "--max-steps-per-stage", "2", "--out", tmp_path)
    outcome = recipe(*RANDOM, *SMALL, *arguments).ok()
    record = read_result(tmp_path / "result.json")
    assert (record["recipe"], record["protocol"]) == ("voc_classification", f"classification/{name}")
    row = asdict(PROTOCOLS[name])
    row = {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}
    rate = row.pop("all") | {"lr_batch": 16}  # type: ignore[operator]
    assert row.pop("fc6_8") != rate
    settings = record["settings"]
    assert {key: settings[key] for key in row} == row
    assert {key: settings[key] for key in rate} == rate | {"intervals": list(PROTOCOLS[name].all.intervals)}
    assert (settings["layers"], settings["num_scored"]) == ("all", 39)
    assert (record["data"]["num_train"], record["data"]["num_val"]) == (num_train, 39)
    assert record["cut"] and f"2 of {num_steps:,} steps" in outcome.out
    with VOC(voc, ("2007_test",), "boxes") as test:
        assert record["data"]["val"] == test.digest() and test.class_names == ["cross", "disc", "triangle"]
        predictions = read_predictions(tmp_path / NAME)
        expected = label_scores(predictions, test.targets(), test.class_names)
    assert set(expected) == {"mAP", "AP_cross", "AP_disc", "AP_triangle"}
    assert record["numbers"] == {key: round(value, 4) for key, value in expected.items()}
    assert f"mAP {expected['mAP']:.1f} %" in outcome.out
    with Image.open(tmp_path / "result.png") as chart:
        assert chart.size[0] > 600


def test_what_the_command_line_changes_is_on_record(voc: Path, tmp_path: Path) -> None:
    arguments = ("--data", voc, "--steps", "5", "--lr", "0.02", "--out", tmp_path)
    recipe(*RANDOM, *SMALL, *arguments).ok()
    record = read_result(tmp_path / "result.json")
    settings = record["settings"]
    assert (settings["steps"], settings["epochs"], settings["lr"], record["cut"]) == (5, 0, 0.02, False)
    rates = [line["lr"] for line in records(tmp_path / "metrics.jsonl")]
    # The rate is .02 for a batch of 16, and drops after 1.25, 2.5 and 3.75 steps.
    assert rates == pytest.approx([0.005, 0.005, 0.0025, 0.00125, 0.000625])
    # Resume from another process's checkpoint, within an epoch of five steps and after the last one.
    whole = digests(newest_checkpoint(tmp_path))
    again = recipe(*RANDOM, *SMALL, *arguments)
    assert again.code == 0 and digests(newest_checkpoint(tmp_path)) == whole
    assert read_result(tmp_path / "result.json")["numbers"] == record["numbers"]
    refused(recipe(*RANDOM, *SMALL, *arguments, "--layers fc6_8"), "no fc6")
    refused(recipe(*RANDOM, *SMALL, *arguments, "--protocol sslpp"), "protocol")


@pytest.mark.slow
def test_killed_and_resumed_it_says_the_same(voc: Path, tmp_path: Path) -> None:
    """Resume within training; tests/transfer/test_classification.py stops in the test images, too."""
    arguments = (RECIPE, *RANDOM, *SMALL, "--data", voc, "--steps 7 --lr 0.02 --keep-checkpoints 9")
    start(*arguments, "--checkpoint-steps 1 --out", tmp_path / "whole").ok()
    goes_on(*arguments, whole=tmp_path / "whole", steps=(3, 6), files=(NAME, "metrics.jsonl"))


@pytest.mark.slow
def test_two_ranks(voc: Path, tmp_path: Path) -> None:
    ran(RECIPE, *RANDOM, *SMALL, "--data", voc, "--steps 3 --out", tmp_path, ranks=2)
    assert read_predictions(tmp_path / NAME)["image"].tolist() == list(range(39))
    assert not read_result(tmp_path / "result.json")["cut"]


@pytest.mark.parametrize(("protocol", "is_new"), [("deepcluster", True), slow("sslpp", False)])
def test_alexnets_fc6_to_fc8_learn_alone(protocol: str, is_new: bool) -> None:
    """Check that conv1 to conv5 keep the weights, and so do fc6 and fc7 unless the protocol resets them."""
    script: Any = find_recipe(RECIPE)
    options = script.with_paper(
        protocol=protocol, layers="fc6_8", random_weights=True, backbone="alexnet", batch_size=16,
        device="cpu",
    )  # fmt: skip
    weights = {name: value.clone() for name, value in options.pretrained().backbone.state_dict().items()}
    torch.manual_seed(1)
    experiment = script.build(options)
    for name, value in experiment.backbone.state_dict().items():
        assert torch.equal(value, weights[name]) == (name.startswith("features") or not is_new), name
    (stage,) = experiment.stages
    blocks = StageBlocks(experiment.backbone, stage, batchnorm=experiment.batchnorm)
    learning = {name for name, parameter in experiment.backbone.named_parameters() if parameter.requires_grad}
    assert learning == {f"classifier.{n}.{kind}" for n in (1, 4) for kind in ("weight", "bias")}
    assert (len(blocks.frozen), len(blocks.learning), experiment.clip_norm) == (5, 2, 10.0)
    dropouts = [part for part in blocks.modules() if isinstance(part, torch.nn.Dropout)]
    assert len(dropouts) == 2 and all(part.training for part in dropouts)
    group = experiment.optimiser([("head.2.bias", torch.nn.Parameter(torch.zeros(3)))]).param_groups[0]
    decay = PROTOCOLS[protocol].weight_decay
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, decay, False)


def test_half_a_data_set_is_refused(voc: Path, tmp_path: Path) -> None:
    half = tmp_path / "half" / "VOCdevkit"
    shutil.copytree(voc, half)
    (half / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    outcome = recipe(*SMALL, *RANDOM, "--data", half, "--out", tmp_path / "out")
    refused(outcome, "test.txt")
    assert not (tmp_path / "out").exists(), "nothing is written"


@pytest.mark.slow
def test_a_training_that_diverges_is_no_result(voc: Path, tmp_path: Path) -> None:
    outcome = recipe(*RANDOM, *SMALL, "--data", voc, "--steps 12 --lr 1e9 --out", tmp_path)
    assert outcome.code == 1 and "lower --lr" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "result.json").exists()
