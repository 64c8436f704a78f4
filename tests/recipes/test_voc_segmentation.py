"""Test recipes/voc_segmentation.py as a user runs it: protocols, kill and resume, learning, and errors."""

import json
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastpsl.console.installed import install
from fastpsl.engine.dataset_pass import read_predictions
from fastpsl.engine.optim.schedules import Moment
from fastpsl.evaluation.result_file import read_result
from fastpsl.pipelines.datasets.voc.annotations import mask_png
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.transfer.segmentation.task import PROTOCOLS, changed, mask_scores, with_background
from tests.pipelines.voc_folders import sbd, voc_2012
from tests.programs import newest_checkpoint
from tests.recipes.in_process import goes_on, refused, start

RECIPE = "voc_segmentation"
recipe = partial(start, RECIPE)
RANDOM = ("--random-weights", "--backbone", "resnet18")
QUICK = ("--workers", "1", "--no-tensorboard")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc") / "VOCdevkit"
    return draw_voc(folder, 2, 2, side_px=40, num_train_masks=9, num_test_masks=5)


def test_a_run_puts_scores_masks_and_figures_on_record(drawn: Path, tmp_path: Path) -> None:
    outcome = recipe(*RANDOM, *QUICK, "--data", drawn, "--out", tmp_path, "--epochs 1 --batchnorm train").ok()
    record = read_result(tmp_path / "result.json")
    assert (record["protocol"], record["recipe"]) == ("segmentation/sslpp", "voc_segmentation")
    with VOC(drawn, ("2012_val",), "masks") as val:
        expected = mask_scores(
            read_predictions(tmp_path / "predictions.npz")["confusion"], with_background(val)
        )
        assert record["data"]["val"] == val.digest() and record["data"]["num_val"] == 5
    assert record["numbers"] == {name: round(value, 4) for name, value in expected.items()}
    assert record["data"]["num_train"] == 9 and not record["cut"]
    settings = record["settings"]
    assert (settings["epochs"], settings["batchnorm"], settings["batch_size"]) == (1, "train", 2)
    for name, value in expected.items():
        assert f"{name.replace('_', ' ')} {value:.1f} %" in outcome.out
    assert len(list((tmp_path / "masks").glob("*.png"))) == 5
    with Image.open(tmp_path / "masks.png") as sheet:
        assert sheet.size[0] > 300
    assert (tmp_path / "contact-sheet-G1.png").exists()
    assert newest_checkpoint(tmp_path)["input"]["channels"] == "RGB"


# Values of SSL++, Table II, of Zhang et al. with FCN, and of MMSelfSup.
ROWS: dict[str, dict[str, Any]] = {
    "sslpp": {
        "epochs": 50, "steps": None, "batch_size": 2, "lr": 0.001, "momentum": 0.9, "weight_decay": 5e-4,
        "intervals": [1], "power": None, "scales": None, "needs_sbd": False, "decay_biases": False,
        "batchnorm": "eval", "train": ["2012_train"], "test": ["2012_val"],
    },
    "fcn_alexnet": {
        "epochs": 0, "steps": 150_000, "batch_size": 20, "accumulate": 20, "lr": 1e-4,
        "intervals": [1, 1, 1], "momentum": 0.9, "weight_decay": 5e-4, "scales": None, "needs_sbd": True,
        "decay_biases": False, "batchnorm": "eval", "train": ["2012_train"], "test": ["2012_val"],
    },
    "mmseg": {
        "epochs": 0, "steps": 20_000, "batch_size": 16, "lr": 0.01, "power": 0.9, "end_lr": 1e-4,
        "momentum": 0.9, "weight_decay": 5e-4, "scales": [0.5, 2.0], "size_px": 512, "auxiliary_weight": 0.4,
        "needs_sbd": True, "max_share": 0.75, "decay_biases": True, "batchnorm": "train",
        "train": ["2012_train"], "test": ["2012_val"],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "protocol", [pytest.param(name, marks=() if name == "sslpp" else pytest.mark.slow) for name in ROWS]
)
def test_a_protocols_values_are_on_record(tmp_path: Path, protocol: str) -> None:
    """Run one step with all values, on a folder in the layout of VOC's and SBD's archives."""
    root = tmp_path / "VOCdevkit"
    voc_2012(root)
    smaller = () if protocol == "sslpp" else ("--batch-size", "2", "--accumulate", "1", "--size-px", "48")
    sbd_arguments = () if protocol == "sslpp" else ("--sbd", sbd(tmp_path, root / "VOC2012" / "JPEGImages"))
    arguments = (
        "--protocol", protocol, "--data", root, "--max-steps-per-stage", "1", *smaller, *sbd_arguments,
    )  # fmt: skip
    recipe(*RANDOM, *QUICK, *arguments, "--out", tmp_path / "out").ok()
    record = read_result(tmp_path / "out" / "result.json")
    assert record["protocol"] == f"segmentation/{protocol}" and record["cut"]
    settings = {"batch_size": 2, "accumulate": 1, "size_px": 48} if smaller else {}
    assert {name: record["settings"][name] for name in ROWS[protocol]} == {
        name: settings.get(name, value) for name, value in ROWS[protocol].items()
    }
    assert record["settings"]["sbd"] == (str(sbd_arguments[1]) if sbd_arguments else None)
    assert record["data"]["num_train"] == (4 if sbd_arguments else 2) and record["data"]["num_val"] == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["lr"] == ROWS[protocol]["lr"]
    heads = {name.split(".")[0] for name in newest_checkpoint(tmp_path / "out")["train_step"]["head"]}
    assert heads == ({"0", "1"} if protocol == "mmseg" else {"0"})


@pytest.mark.parametrize("protocol", list(ROWS))
def test_without_more_words_the_values_are_the_protocols(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    arguments = ["--data", "x", "--sbd", "y", "--protocol", protocol, *RANDOM]
    options = find_recipe("voc_segmentation").parse(arguments)
    assert options.constants() == PROTOCOLS[protocol]
    chosen = json.loads(json.dumps(asdict(options.constants()) | {"size_px": options.size_px}))
    assert {name: chosen[name] for name in ROWS[protocol]} == ROWS[protocol]


def test_another_rate_falls_to_the_same_share_of_itself() -> None:
    protocol = changed(PROTOCOLS["mmseg"], None, 0.05, None)
    assert (protocol.lr, protocol.end_lr) == pytest.approx((0.05, 5e-4))
    rates = [protocol.schedule()(Moment(step, 20_000, 0, 1, 1)) for step in (0, 10_000, 20_000)]
    assert rates == pytest.approx([0.05, 5e-4 + 0.0495 * 0.5**0.9, 5e-4])
    assert changed(PROTOCOLS["mmseg"], None, None, None) == PROTOCOLS["mmseg"]


@pytest.mark.slow
def test_killed_and_resumed_is_never_killed(drawn: Path, tmp_path: Path) -> None:
    """Compare weights, optimiser, predictions and masks bit for bit, with the head's dropout."""
    arguments = (RECIPE, *QUICK, *RANDOM, "--epochs 2 --batchnorm train --data", drawn)
    start(*arguments, "--checkpoint-steps 4 --keep-checkpoints 9 --out", tmp_path / "whole").ok()
    assert len(list(tmp_path.glob("whole/masks/*.png"))) == 5
    goes_on(*arguments, whole=tmp_path / "whole", steps=(4,), files=("predictions.npz", "masks/*.png"))


def learned(root: Path, out: Path, *arguments: object) -> float:
    """Return the mIoU, 0 to 1, of a training from random weights."""
    asked = ("--batchnorm", "train", "--batch-size", "4", "--lr", "0.03", *arguments)
    recipe(*RANDOM, "--no-tensorboard", *asked, "--data", root, "--out", out).ok()
    return float(read_result(out / "result.json")["numbers"]["mIoU"]) / 100


def shuffled(root: Path, to: Path) -> Path:
    """Return a copy in which each training mask is that of the next image, stretched to its size."""
    shutil.copytree(root, to)
    place = to / "VOC2012"
    names = (place / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    masks = [Image.open(root / "VOC2012" / "SegmentationClass" / f"{name}.png") for name in names]
    for name, mask, size in zip(names, masks[1:] + masks[:1], [m.size for m in masks], strict=True):
        stretched = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        (place / "SegmentationClass" / f"{name}.png").write_bytes(mask_png(stretched))
    return to


@pytest.mark.nightly
@pytest.mark.usefixtures("published_widths")
def test_it_learns_and_of_shuffled_masks_nothing(tmp_path: Path) -> None:
    """Train on a part of the sample.

    Predicting the background alone would have 0.24, and 0.42 was measured. The whole sample, 160 images of
    128 px, has 0.83.
    """
    root = draw_voc(tmp_path / "VOCdevkit", 2, 2, side_px=64, num_train_masks=64, num_test_masks=24)
    assert learned(root, tmp_path / "out", "--epochs", "8") >= 0.34
    assert learned(shuffled(root, tmp_path / "other"), tmp_path / "no", "--epochs", "8") <= 0.3


def test_without_torchmetrics_nothing_is_trained(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    outcome = recipe(*QUICK, *RANDOM, "--data", drawn, "--out", tmp_path / "refused")
    refused(outcome, install("transfer"))
    assert not (tmp_path / "refused").exists()
