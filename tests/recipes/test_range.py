"""A run on images of more than 8 bits: its records and resume, and what is done with its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import tifffile

import fastpsl
from fastpsl.engine.run import open_both
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from fastpsl.pipelines.views import Input
from fastpsl.scripts.recipe_files import find_recipe
from tests.cli import Cli
from tests.pipelines.test_depth import by_hand
from tests.pipelines.test_measured import pixels, scans
from tests.programs import newest_checkpoint

VALUES: dict[str, Any] = {
    "size_px": 32, "batch_size": 8, "workers": 1, "tensorboard": False, "warmup_epochs": 0, "epochs": 1,
    "backbone": "resnet18", "max_steps_per_stage": 1, "checkpoint_steps": 1,
}  # fmt: skip
RANGE = Reading((0, 4095))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of `train`, values from 0 to 4,095, and of `val`, half of them brighter."""
    root = tmp_path_factory.mktemp("data")
    scans(root / "train", 16)
    _, images = scans(root / "val", 16)
    for i, path in enumerate(sorted((root / "val").rglob("*.tif"))):
        tifffile.imwrite(path, images[i] * (1 + i % 2))
    return root


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    with pytest.warns(UserWarning, match="8 of 16 images looked at have values outside of range 0:4095"):
        return fastpsl.pretrain(
            "simclr", out=data / "run", data=data / "train", val=data / "val", range="auto", **VALUES
        ).folder


def test_the_range_is_in_the_records_and_must_not_differ_on_resume(data: Path, run: Path) -> None:
    checkpoint = newest_checkpoint(run)
    assert checkpoint["science"]["range"] == checkpoint["input"]["range"] == [0, 4095]
    assert json.loads((run / "config.json").read_text())["science"]["range"] == [0, 4095]
    values = VALUES | {"data": data / "train", "out": run, "resume": "auto"}
    fastpsl.pretrain("simclr", **values, val=data / "val", range="0:4095")  # the same, as a number
    with pytest.raises(
        ValueError, match=r"another experiment: .*range \(\[0\.0, 4095\.0\] there, \[0\.0, 9\.0\] now"
    ):
        fastpsl.pretrain("simclr", **values, val=data / "val", range="0:9")
    with pytest.raises(ValueError, match=r"another experiment: .*range \(\[0\.0, 4095\.0\] there, None now"):
        fastpsl.pretrain("simclr", **values, val=data / "val")


def test_records_without_a_range_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    run = fastpsl.pretrain("simclr", out=tmp_path / "run", **VALUES).folder
    checkpoint = newest_checkpoint(run)
    assert not {"range", "bands"} & (checkpoint["science"].keys() | checkpoint["machine"].keys())
    assert checkpoint["input"].keys() == {"channels", "mean", "std", "size_px"}
    assert Input.from_dict(checkpoint["input"]).reading == PLAIN


def test_evaluations_take_the_range_of_the_weights(data: Path, run: Path, cli: Cli) -> None:
    recipe: Any = find_recipe("knn")
    options = recipe.parse([str(run), "--data", str(data / "train"), "--val", str(data / "val")])
    with pytest.warns(UserWarning, match="have values outside of --range 0:4095"):
        train, val = open_both(options)
    images = [tifffile.imread(path) for path in sorted((data / "val").rglob("*.tif"))]
    assert val is not None and train.reading == val.reading == RANGE
    np.testing.assert_array_equal(pixels(val), np.stack([by_hand(image, 0, 4095) for image in images]))
    own = recipe.parse([str(run), "--data", str(data / "train"), "--val", "none", "--range", "auto"])
    assert own.reading() == (Reading(measures=True), "")
    for each in (train, val):
        each.close()
    made = {}
    cli("data", "write", data / "train", data / "same.beton", "--range", "auto", "--mode", "raw")
    cli("data", "write", data / "train", data / "other.beton", "--range", "0:2000", "--mode", "raw")
    for name in ("train", "same.beton", "other.beton"):
        outcome = cli("features", run, "--data", data / name, "--out", data / f"{name}.npy", "--workers", 1)
        assert outcome.code == 0, outcome
        line = "was written with --range 0:2000, the weights' images had --range 0:4095"
        assert (line in outcome.err) == (name == "other.beton"), outcome.err
        made[name] = np.load(data / f"{name}.npy")
    np.testing.assert_array_equal(made["train"], made["same.beton"])
    assert (made["train"] != made["other.beton"]).any()


def test_models_read_images_by_the_range_of_their_training(data: Path, run: Path) -> None:
    model, path = fastpsl.load(run), min((data / "train").rglob("*.tif"))
    assert model.input.reading == RANGE
    expected = model.transform(by_hand(tifffile.imread(path), 0, 4095))
    assert (model.transform(path) == expected).all()
    features, _ = fastpsl.embed(model, data / "train", batch_size=8)
    by_name, _ = fastpsl.embed(model, batch_size=8)  # of the run's own images
    np.testing.assert_array_equal(features, by_name)


def test_exports_tell_the_range(run: Path, tmp_path: Path) -> None:
    model = fastpsl.load(run)
    words = "for values of more than 8 bits clipped to 0 to 4095 and scaled to 0 to 1"
    assert words in model.input.in_words()
    model.export(tmp_path / "x.pth")
    assert load_pretrained(tmp_path / "x.pth").input == model.input != Input(size_px=model.input.size_px)
    model.export(tmp_path / "hf", to="hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["fastpsl"]["input"]["range"] == [0, 4095]
    card = (tmp_path / "hf" / "README.md").read_text()
    assert words in card and "No transform of timm makes this network's input" in card
    model.export(tmp_path / "x.safetensors", to="safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert "4095" in str(file.metadata())
