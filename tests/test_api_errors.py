"""Errors of `fastpsl.pretrain`, `load`, `embed` and `evaluate`: one line that says what to do."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import fastpsl
from fastpsl.pipelines.views import Input
from fastpsl.scripts import recipe_process
from tests import api_runs
from tests.api_runs import pretrain, state

run, model, images = api_runs.run, api_runs.model, api_runs.images


def test_an_error_of_the_training_is_noted_and_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def train(*_: object) -> None:
            raise error

        return train

    before = state()
    with monkeypatch.context() as patch:
        patch.setattr(recipe_process, "pretrain", failing(RuntimeError("a bug")))
        with pytest.raises(RuntimeError, match="a bug"):
            pretrain(tmp_path)
    assert state() == before
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == "RuntimeError: a bug"
    with monkeypatch.context() as patch:
        patch.setattr(recipe_process, "pretrain", failing(MemoryError()))
        with pytest.raises(
            ValueError,
            match=f"^out of this machine's memory .* batch_size; the same call with out {tmp_path} ",
        ):
            pretrain(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(recipe_process, "pretrain", failing(ValueError("bad labels")))
        with pytest.raises(ValueError, match="bad labels"):
            pretrain(tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "bad labels")
    assert len(pretrain(tmp_path).metrics) == 2  # the folder's lock is free


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recipe": "jigsw"}, "no recipe called 'jigsw'; perhaps you meant jigsaw$"),
        ({"recipe": "zzz"}, "there are jigsaw, rotation, .*supervised"),
        ({"batchsize": 3}, "no option of jigsaw_r50 called 'batchsize'; perhaps you meant batch_size$"),
        ({"precision": "fp8"}, "^precision fp8: allowed are auto, fp32, bf16, fp16$"),
        ({"lr": "abc"}, "^lr abc: give a number$"),
        ({"lr": True}, "lr is True: give a value other than True and False$"),
        ({"apex": 1}, "apex is 1: give True or False$"),
        ({"counts": ("--help",)}, "counts .* a value cannot begin with --$"),
        ({"data": "nothere"}, "^nothere: no such file or folder; give a folder of images, a .beton file"),
        ({"data": 3}, "data is int, not a path: give the path of a folder"),
        ({"val": "nothere"}, "^val nothere without data"),
        ({"backbone": "resnet1"}, "^backbone resnet1: allowed are alexnet, "),
        ({"epochs": ()}, "give one or more, each of at least 1 epoch$"),
        ({"batch_size": 1000}, "^480 training images are fewer than one batch of 1000: lower batch_size,"),
        ({"out": __file__}, "^out .* is a file: give a folder"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        fastpsl.pretrain(**{"recipe": "jigsaw", "out": tmp_path / "out", **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_data_and_runs_are_not_mistaken(run: fastpsl.Trained, images: Path, model: fastpsl.Model) -> None:
    is_run = "is a run's folder; give images, not what was trained$"
    for call in (
        lambda: fastpsl.pretrain("jigsaw", run),
        lambda: fastpsl.pretrain("jigsaw", images, val=run),
        lambda: fastpsl.embed(model, run),
        lambda: fastpsl.evaluate.knn(model, images, run),
        lambda: fastpsl.plot.views(run),
    ):
        with pytest.raises(ValueError, match=is_run):
            call()
    for wrong, words in (
        (images, "holds no checkpoint: give a run's folder, or a file of weights$"),
        (images / "class 0" / "0.png", "no readable file of weights"),
        (
            "nothere",
            "^nothere: no such file or folder; give a checkpoint, a run's folder, or a file of weights$",
        ),
    ):
        for function in (fastpsl.load, fastpsl.embed, fastpsl.evaluate.knn, fastpsl.plot.neighbours):
            with pytest.raises(ValueError, match=words):
                function(wrong)  # type: ignore[operator]
    with pytest.raises(ValueError, match="has no metrics.jsonl: give the folder of a run$"):
        fastpsl.plot.curve(images)
    with pytest.raises(ValueError, match="no folder of PASCAL VOC"):
        fastpsl.evaluate.svm(model, images)


def test_a_process_group_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="a process group already"):
            pretrain(tmp_path / "run")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.features(torch.zeros(1, 3, 32, 32), "B9"), "^block B9: this backbone has B1 to B5"),
        (lambda m: m.features(torch.zeros(3, 32, 32)), r"reads \[B, 3, H, W\], such as model.transform"),
        (lambda m: m(torch.zeros(1, 1, 32, 32)), r"reads \[B, 3, H, W\]"),
        (lambda m: m.transform(np.zeros((4, 4), np.float32)), "an array float32 .* give uint8"),
        (lambda m: m.transform(np.zeros((4, 4, 4), np.uint8)), "give uint8"),
        (lambda m: m.transform(torch.zeros(3, 4, 4)), "give uint8"),
        (lambda m: m.transform("nothere.jpg"), "^nothere.jpg cannot be read as an image"),
        (lambda m: m.transform(__file__), "cannot be read as an image .* image file$"),
        (lambda m: m.transform(3), "int is no image"),
        (lambda m: m.transform(Image.new("F", (9, 9))), "^the PIL image cannot be read .*floating-point"),
        (lambda m: m.export("x.pth", to="nobody"), "to nobody"),
        (lambda m: fastpsl.load("nothere", size_px=0), "size_px is 0"),
        (lambda m: fastpsl.load(m.record["path"], "vgg16"), "resnet18, not vgg16; leave out backbone$"),
        (lambda m: fastpsl.load(m.record["path"], input_channels="RGB"), "input_std belong together"),
        (lambda m: fastpsl.embed(m, block="B9"), "^block B9"),
        (lambda m: fastpsl.embed(m, size_px=0), "images of 0 px"),
        (lambda m: fastpsl.embed(m, 3), "data is int, not a path"),  # type: ignore[arg-type]
        (lambda m: fastpsl.evaluate.knn(m, kk=3), "no option of knn called 'kk'; perhaps you meant k$"),
        (lambda m: fastpsl.evaluate.knn(m, k=(0,)), "^k 0: give one or more numbers"),
    ],
)  # fmt: skip
def test_wrong_calls_of_a_model_are_one_line(call: Any, words: str, model: fastpsl.Model) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_weights_of_others_need_their_input(tmp_path: Path, model: fastpsl.Model) -> None:
    torch.save(model.backbone.state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="give backbone, input_channels, input_mean and input_std"):
        fastpsl.load(tmp_path / "foreign.pth")
    loaded = fastpsl.load(
        tmp_path / "foreign.pth",
        "resnet18",
        input_channels="RGB",
        input_mean=(0.5,) * 3,
        input_std=(0.2,) * 3,
    )
    assert loaded.input == Input("RGB", (0.5,) * 3, (0.2,) * 3) and loaded.transform.size_px == 224


def test_what_is_missing_is_named(
    model: fastpsl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    for function, name in (
        (fastpsl.evaluate.detection, "pycocotools"), (fastpsl.evaluate.segmentation, "torchmetrics"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}.*pip install"):
            function(model, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
