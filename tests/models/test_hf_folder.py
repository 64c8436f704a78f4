"""Folders for the Hugging Face Hub: timm loads them as its own."""

import json
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from fastpsl.models.export import export
from fastpsl.models.weights import load_pretrained
from fastpsl.pipelines.views import Input
from tests.cheaper import publish_resnets
from tests.models.test_export import SEEN, assert_same_features, checkpoint
from tests.slow import slow

timm = pytest.importorskip("timm")
pytest.importorskip("safetensors")

EXPORT_PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_to" / "export.md"
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module", autouse=True)
def published_resnets() -> Iterator[None]:
    """Make ResNets as wide as timm's."""
    with pytest.MonkeyPatch.context() as patch:
        publish_resnets(patch)
        yield


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", refuse)


def refuse(*_: object) -> None:
    raise AssertionError("a connection to the network")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("run")
    return folder, checkpoint(folder, "resnet18")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def from_folder(folder: Path, **options: Any) -> nn.Module:
    model: nn.Module = timm.create_model(
        f"local-dir:{folder}", pretrained=True, **({"num_classes": 0} | options)
    )
    return model


def test_timm_loads_the_folder_and_its_transform(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    out = tmp_path / "resnet18"
    output = export(run[0], "hf", out)
    assert names(tmp_path) == ["resnet18"] and names(out) == FILES
    model = from_folder(out)
    assert_same_features(run[1], model)
    settings = timm.data.resolve_model_data_config(model)
    assert (tuple(settings["mean"]), tuple(settings["std"])) == (SEEN.mean, SEEN.std)
    assert tuple(settings["input_size"]) == (3, 48, 48) and settings["crop_pct"] == 224 / 256
    assert f'timm.create_model("local-dir:{out}", pretrained=True, num_classes=0)' in output
    assert "has 0 evaluations (--results RUNS finds them)" in output
    # Ours reads the weights, too.
    result = load_pretrained(out / "model.safetensors")
    assert result.input == SEEN and result.record["run_step"] == 5
    assert out.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_hubs_way_loads_it_from_the_cache(
    run: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    place = tmp_path / "models--someone--resnet18"
    (place / "snapshots").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    export(run[0], "hf", place / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = timm.create_model(
        "hf-hub:someone/resnet18", pretrained=True, num_classes=0, cache_dir=str(tmp_path)
    )
    assert_same_features(run[1], model)


def test_a_step_of_fine_tuning_as_documented(
    run: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(run[0], "hf", Path("resnet18-rotation"))
    (code,) = re.findall(r"```python\n(import timm\n.*?)```", EXPORT_PAGE.read_text(), re.DOTALL)
    Path("snippet.py").write_text(code)
    names = runpy.run_path("snippet.py")
    model = names["model"]
    assert torch.equal(model.conv1.weight, run[1].state_dict()["conv1.weight"])
    image = names["transform"](Image.new("RGB", (90, 60), "red"))
    images, labels = torch.stack([image, -image]), torch.tensor([3, 9])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    before = nn.functional.cross_entropy(model(images), labels)
    before.backward()
    optimiser.step()
    assert nn.functional.cross_entropy(model(images), labels) < before


@pytest.mark.parametrize(("channels", "num"), [("L", 1), slow("Sobel", 3), slow("SobelXY", 2)])
def test_networks_of_other_channels_keep_their_first_convolution(
    channels: str, num: int, tmp_path: Path
) -> None:
    network = checkpoint(tmp_path, "resnet18", Input.usual(channels, 48))
    export(tmp_path, "hf", tmp_path / "hf")
    assert_same_features(network, from_folder(tmp_path / "hf"), channels=num)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "No transform of timm makes this network's input" in card and "create_transform" not in card
    assert Input.usual(channels, 48).in_words() in card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_other_resnets(name: str, tmp_path: Path) -> None:
    network = checkpoint(tmp_path, name)
    export(tmp_path, "hf", tmp_path / "hf")
    model = from_folder(tmp_path / "hf")
    assert_same_features(network, model)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_features"] == model.num_features


@pytest.mark.slow
def test_the_mlp_is_left_out(tmp_path: Path) -> None:
    network = checkpoint(tmp_path, "resnet50_mlp")
    assert "left out: mlp.*, which hf has not" in export(tmp_path, "hf", tmp_path / "hf")
    assert_same_features(nn.Sequential(*network.blocks()[:5]), from_folder(tmp_path / "hf"))  # type: ignore[operator]


@pytest.mark.slow
def test_vgg16(tmp_path: Path, published_widths: None) -> None:
    network = checkpoint(tmp_path, "vgg16")
    export(tmp_path, "hf", tmp_path / "hf")
    model = from_folder(tmp_path / "hf")
    assert_same_features(network, model)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_features"] == model.num_features
