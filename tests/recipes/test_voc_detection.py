"""Test recipes/voc_detection.py as a user runs it: its record, kill and resume, errors, and learning."""

import json
import re
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.console.installed import install
from fastpsl.engine.dataset_pass import read_predictions
from fastpsl.engine.optim.schedules import Moment
from fastpsl.evaluation.result_file import read_result
from fastpsl.models.weights import random_weights
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc, drawn_voc
from fastpsl.transfer.detection.box_scores import box_scores
from fastpsl.transfer.detection.protocols import PROTOCOLS
from tests.programs import newest_checkpoint
from tests.recipes.in_process import goes_on, refused, start, words

RECIPE = "voc_detection"
recipe = partial(start, RECIPE)
RANDOM = ("--random-weights", "--backbone", "resnet18")
TINY = words("--protocol small --short-side 48 --batch-size 4 --steps 4 --anchor-px 12 24 --workers 1")
TINY = (*TINY, "--no-tensorboard")


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_voc(tmp_path_factory.mktemp("voc") / "VOCdevkit", 8, 5, side_px=64)


def test_a_run_puts_its_scores_and_its_protocol_on_record(devkit: Path, tmp_path: Path) -> None:
    outcome = recipe("--data", devkit, *RANDOM, *TINY, "--out", tmp_path).ok()
    record = read_result(tmp_path / "result.json")
    found = record["protocol"], record["recipe"], record["cut"]
    assert found == ("detection/small", "voc_detection", False)
    data = VOC(devkit, ("2007_test",), "boxes")
    stored = read_predictions(tmp_path / "predictions.npz")
    assert record["numbers"] == {name: round(value, 4) for name, value in box_scores(stored, data).items()}
    assert {"AP", "AP50", "AP75", "coco_AP", "coco_AP50", "coco_AP75", "AP50_disc"} <= set(record["numbers"])
    changed = {"short_side": [48], "anchor_px": [12, 24], "steps": 4, "warmup_steps": 0}
    expected = json.loads(json.dumps(asdict(PROTOCOLS["small"]))) | changed
    assert {name: record["settings"][name] for name in expected} == expected
    assert record["settings"]["batch_size"] == 4 and record["settings"]["backbone"] == "resnet18"
    assert (record["data"]["num_train"], record["data"]["num_val"]) == (8, 5)
    assert record["data"]["val"] == data.digest()
    for name in ("contact-sheet-G1.png", "detections.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 90
        assert name in outcome.out
    first = newest_checkpoint(tmp_path)["backbone"]
    before = random_weights("resnet18", 0).backbone.state_dict()
    assert not any(torch.equal(first[name], before[name]) for name in before if name.endswith("conv1.weight"))


@pytest.mark.slow
def test_fixed_batchnorm_and_the_first_blocks_stay_bit_for_bit(devkit: Path, tmp_path: Path) -> None:
    few = ("--short-side", "32", "--batch-size", "1", "--steps", "1", "--workers", "1", "--no-tensorboard")
    recipe("--data", devkit, *RANDOM, "--protocol pirl", *few, "--out", tmp_path).ok()
    before, after = random_weights("resnet18", 0).backbone, newest_checkpoint(tmp_path)["backbone"]
    norms = {name for name, part in before.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
    for name, value in before.state_dict().items():
        stays = name.rpartition(".")[0] in norms or name.startswith(("conv1", "layer1"))
        assert torch.equal(value, after[name]) == stays, name


@pytest.mark.slow
def test_fast_r_cnn_reads_published_proposals(devkit: Path, tmp_path: Path) -> None:
    files = [devkit / "proposals" / f"voc_2007_{split}.mat" for split in ("trainval", "test")]
    options = words("--protocol fast_rcnn --short-side 64 --steps 2 --workers 1 --no-tensorboard")
    alexnet = ("--random-weights", "--backbone", "alexnet", "--input-channels", "SobelXY")
    alexnet += ("--input-mean", "0", "0", "--input-std", "0.028", "0.028")  # type: ignore[assignment]
    recipe("--data", devkit, *alexnet, *options, "--proposals", *files, "--out", tmp_path).ok()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["lr"] == 0.001 and "loss_objectness" not in lines[0]
    assert read_result(tmp_path / "result.json")["settings"]["boxes_from"] == "published"
    assert newest_checkpoint(tmp_path)["input"]["channels"] == "SobelXY"
    # Other files make another experiment; the same files at another place do not.
    copies = [shutil.copy(file, tmp_path / file.name) for file in files]
    recipe("--data", devkit, *alexnet, *options, "--proposals", *copies, "--out", tmp_path).ok()
    again = ("--data", devkit, *alexnet, *options, "--out", tmp_path)
    copies[0].write_bytes(copies[1].read_bytes())  # type: ignore[union-attr]
    outcome = recipe(*again, "--proposals", *copies)
    refused(outcome, copies[0].name)  # type: ignore[union-attr]


# Protocols


def rate(name: str, step: int, num_steps: int, batch_size: int = 16) -> float:
    return PROTOCOLS[name].schedule(batch_size)(Moment(step, num_steps, 0, num_steps, num_steps))


def test_schedules_are_the_published_ones() -> None:
    for name, lr, warmup in (("pirl", 0.002, 1000), ("vissl", 0.02, 100)):
        found = PROTOCOLS[name]
        assert (found.steps, found.lr_batch, found.weight_decay) == (25_000, 16, 1e-4)
        for step, value in ((0, lr / 1000), (warmup, lr), (16_999, lr), (17_000, lr / 10)):
            assert rate(name, step, 25_000) == pytest.approx(value)
        assert rate(name, warmup, 25_000, 8) == pytest.approx(lr / 2)
    for step, value in ((17_999, 0.02), (18_000, 0.002), (22_000, 0.0002)):
        assert rate("moco", step, 24_000) == pytest.approx(value)
    assert PROTOCOLS["moco"].steps == 24_000
    for step, value in ((0, 0.001), (29_999, 0.001), (30_000, 0.0001)):
        assert rate("fast_rcnn", step, 40_000, 2) == pytest.approx(value)
    assert {name: p.epochs for name, p in PROTOCOLS.items() if p.epochs} == {"sslpp": 12}
    assert PROTOCOLS["sslpp"].lr_batch == 2
    assert rate("sslpp", 0, 100, 2) == rate("sslpp", 99, 100, 2) == 0.001


def test_what_learns_and_on_what_is_as_published() -> None:
    told = {
        name: (p.train_sets, p.test_sets, p.first_learning, p.batchnorm, p.extra_norm, p.boxes_from)
        for name, p in PROTOCOLS.items()
    }
    both, test = ("2007_trainval", "2012_trainval"), ("2007_test",)
    assert told["pirl"] == told["vissl"] == (both, test, 3, "fixed", False, "rpn")
    assert told["moco"] == (both, test, 1, "train", True, "rpn")
    assert told["fast_rcnn"] == (("2007_trainval",), test, 1, "fixed", False, "published")
    assert told["sslpp"] == (("2007_train",), test, 1, "fixed", False, "rpn")
    assert PROTOCOLS["pirl"].short_side == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (PROTOCOLS["pirl"].max_long_px, PROTOCOLS["sslpp"].short_side, PROTOCOLS["sslpp"].max_long_px) == (
        1333,
        (600,),
        1000,
    )
    fast = PROTOCOLS["fast_rcnn"]
    assert (fast.short_side, fast.max_long_px, fast.steps, fast.lr_batch) == ((600,), 1000, 40_000, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Detectron2's values for VOC, C4.
        *((name, ((32, 64, 128, 256, 512), (12_000, 2000), (6000, 1000), 512, 0.0, 0.5, True, True, 1e-4))
          for name in ("pirl", "vissl", "moco")),
        # Girshick, "Fast R-CNN", section 2.3 and its code: 64 RoIs of an image, backgrounds from 0.1 on.
        ("fast_rcnn", (None, None, None, 64, 0.1, 0.3, False, False, 5e-4)),
        # Ren et al., "Faster R-CNN", section 3.3 and its code.
        ("sslpp", ((128, 256, 512), (12_000, 2000), (6000, 300), 128, 0.0, 0.3, False, False, 5e-4)),
    ],
)  # fmt: skip
def test_boxes_and_decay_are_the_published_ones(name: str, expected: tuple[Any, ...]) -> None:
    p = PROTOCOLS[name]
    of_rpn = (p.anchor_px, p.rpn_train, p.rpn_test) if p.boxes_from == "rpn" else (None,) * 3
    heads = (p.num_rois, p.min_background_iou, p.nms, p.with_difficult, p.decay_biases, p.weight_decay)
    assert (*of_rpn, *heads) == expected and p.roi_side == 14


def test_another_length_warms_up_for_the_same_share() -> None:
    options: dict[str, Any] = {"lr": None, "short_side": (), "anchor_px": ()}
    changed = PROTOCOLS["pirl"].changed(steps=2500, **options)
    assert (changed.steps, changed.warmup_steps, changed.lr) == (2500, 100, 0.002)
    changed = PROTOCOLS["sslpp"].changed(steps=7, **options)
    assert (changed.steps, changed.epochs) == (7, 0)
    assert PROTOCOLS["moco"].changed(steps=None, **options) == PROTOCOLS["moco"]


# Errors


def test_pycocotools_is_asked_for_before_training(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    outcome = recipe("--data", devkit, *RANDOM, *TINY, "--out", tmp_path / "out")
    refused(outcome, "pycocotools", install("transfer"))
    assert not (tmp_path / "out").exists()


def test_half_a_devkit_is_refused(devkit: Path, tmp_path: Path) -> None:
    shutil.copytree(devkit / "VOC2007", tmp_path / "VOCdevkit" / "VOC2007")
    outcome = recipe("--data", tmp_path / "VOCdevkit", *RANDOM, "--protocol pirl --out", tmp_path / "out")
    refused(outcome, "VOC2012")


# Resume


@pytest.mark.slow
def test_a_kill_in_mid_training_leaves_no_trace(devkit: Path, tmp_path: Path) -> None:
    arguments = (RECIPE, "--data", devkit, *RANDOM, *TINY, "--keep-checkpoints 9")
    start(*arguments, "--checkpoint-steps 2 --out", tmp_path / "whole").ok()
    goes_on(*arguments, whole=tmp_path / "whole", steps=(2,), files=("metrics.jsonl", "predictions.npz"))


# It learns


def shuffled(devkit: Path, folder: Path) -> Path:
    """Return the same images with each other's annotations, scaled to their sizes."""
    copy = Path(shutil.copytree(devkit, folder / "VOCdevkit"))
    names = (copy / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    texts = [(devkit / "VOC2007" / "Annotations" / f"{name}.xml").read_text() for name in names]
    order = np.random.default_rng(0).permutation(len(names))
    for name, text, source in zip(names, texts, (texts[i] for i in order), strict=True):
        size, source_size = (
            {side: int(pixels) for side, pixels in re.findall(r"<(width|height)>(\d+)<", t)}
            for t in (text, source)
        )

        def fitted(
            match: re.Match[str], size: dict[str, int] = size, source_size: dict[str, int] = source_size
        ) -> str:
            axis = "width" if match[1].startswith("x") else "height"
            scale = size[axis] / source_size[axis]
            value = int(match[2])
            moved = int((value - 1) * scale) + 1 if match[1].endswith("min") else -int(-value * scale // 1)
            return f"<{match[1]}>{min(max(moved, 1), size[axis])}<"

        objects = source[source.index("<object>") :]
        objects = re.sub(r"<([xy](?:min|max))>(\d+)<", fitted, objects)
        made = text[: text.index("<object>")] + objects
        (copy / "VOC2007" / "Annotations" / f"{name}.xml").write_text(made)
    return copy


@pytest.mark.nightly
@pytest.mark.parametrize("annotations", ["true", "shuffled"])
@pytest.mark.usefixtures("published_widths")
def test_it_learns_to_detect_and_by_chance_it_does_not(tmp_path: Path, annotations: str) -> None:
    """Train on the recipe's sample at 96 px for 60 steps.

    AP50 of 31 % was measured. The whole sample run, 250 steps at 160 px, has 92 %.
    """
    data = drawn_voc() if annotations == "true" else shuffled(drawn_voc(), tmp_path)
    few = ("--steps", "60", "--short-side", "96", "--anchor-px", "12", "24", "48")
    small = ("--data", data, *RANDOM, "--protocol", "small", "--workers", "1", "--no-tensorboard")
    recipe(*small, *few, "--out", tmp_path / "out").ok()
    ap50 = read_result(tmp_path / "out" / "result.json")["numbers"]["AP50"]
    assert ap50 >= 15 if annotations == "true" else ap50 <= 5, ap50
