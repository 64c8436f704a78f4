"""Exported ONNX files: onnxruntime computes our features and maps, for every backbone and any size."""

import json
import re
import runpy
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.installed import install
from fastpsl.models import onnx_file
from fastpsl.models.backbone import Backbone
from fastpsl.models.export import export
from fastpsl.models.names import BACKBONES
from fastpsl.models.onnx_file import onnx_bytes
from fastpsl.models.weights import Pretrained, random_weights
from fastpsl.pipelines.views import Input
from tests.models.test_export import checkpoint
from tests.slow import nightly, slow

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

VECTORS = {"alexnet", "alexnet_rotnet", "resnet50_mlp", "vgg16"}
OFTEN = {"resnet18", "alexnet_rotnet"}
QUICK = {"nin3", "alexnet"}  # alexnet pools to 6 x 6, which ONNX has no operator for


def computed(model: bytes | Path, images: Tensor) -> dict[str, np.ndarray]:
    """Run a model as its users do."""
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


@torch.no_grad()
def assert_same(model: bytes | Path, network: nn.Module, images: Tensor) -> None:
    outputs, maps = computed(model, images), network.eval()(images)
    scale = float(maps.abs().max())
    torch.testing.assert_close(
        torch.tensor(outputs["features"]), maps.flatten(2).mean(2), rtol=0, atol=1e-4 * scale
    )
    if "map" in outputs:
        torch.testing.assert_close(torch.tensor(outputs["map"]), maps, rtol=0, atol=1e-4 * scale)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, nn.Module, str]]:
    """Return a function that exports a backbone once: to a file, with the network and the output."""

    @cache
    def export_once(name: str) -> tuple[Path, nn.Module, str]:
        folder = tmp_path_factory.mktemp(name)
        network = checkpoint(folder, name, Input(size_px=36))
        return folder / "model.onnx", network, export(folder, "onnx", folder / "model.onnx")

    return export_once


@pytest.mark.parametrize(
    "name", [name if name in QUICK else slow(name) if name in OFTEN else nightly(name) for name in BACKBONES]
)
def test_every_backbone_computes_our_features_for_any_size(name: str, exported: Any) -> None:
    out, network, output = exported(name)
    assert isinstance(network, Backbone)
    assert f"height and width of {network.min_px} px or more" in output
    (given,) = onnxruntime.InferenceSession(str(out)).get_inputs()
    assert (given.name, given.type, given.shape) == (
        "images", "tensor(float)", ["batch", 3, "height", "width"]
    )  # fmt: skip
    side = max(36, network.min_px)
    for shape in ((1, 3, side, side), (3, 3, side + 13, side), (2, 3, network.min_px, 2 * side + 1)):
        images = torch.randn(shape)
        assert ("map" in computed(out, images)) == (name not in VECTORS)
        assert_same(out, network, images)
    assert sorted(path.name for path in out.parent.iterdir()) == ["checkpoints", "model.onnx"]


def test_the_documented_code_runs(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported("nin3")[0], "resnet18.onnx")
    page = Path(__file__).resolve().parents[2] / "docs" / "how_to" / "weights.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "import onnxruntime\n" in block]
    Path("snippet.py").write_text(code)
    names = runpy.run_path("snippet.py")
    assert names["images"].shape == (2, 3, 224, 224)
    assert names["features"].shape == (2, 192) and names["maps"].shape == (2, 192, 56, 56)
    assert capsys.readouterr().out.startswith(
        "RGB in [0, 1], minus mean 0.485 0.456 0.406, divided by std 0.229 0.224 0.225; height and width"
    )


def test_the_metadata_says_what_the_network_is_and_wants(tmp_path: Path) -> None:
    sobel = Input("SobelXY", (0.0, 0.0), (0.03, 0.03), 32)
    network = checkpoint(tmp_path, "nin3", sobel)
    out = tmp_path / "model.onnx"
    export(tmp_path, "onnx", out)
    metadata = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    record = json.loads(metadata["fastpsl"])
    assert record["input"] == sobel.as_dict() and record["outputs"] == ["features", "map"]
    assert (record["to"], record["backbone"], record["run_step"]) == ("onnx", "nin3", 5)
    assert record["source"]["name"] == "step-00000005.pt"
    assert metadata["images"] == (
        "gx and gy of (R + G + B) / 3 in [0, 1], two channels (gx = [1 2 1]^T [-1 0 1] / 8, "
        "gy = [-1 0 1]^T [1 2 1] / 8, the border repeated), minus mean 0 0, divided by std 0.03 0.03; "
        "height and width of 4 px or more"
    )
    assert_same(out, network, torch.randn(2, 2, 21, 40))
    # torch would note the files and lines that made each node, with their folders.
    data = out.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in data and b"backbone.py" not in data


@pytest.mark.parametrize("side", [2, 6, 7])
@pytest.mark.parametrize("shape", [(1, 1), (6, 7), (5, 13), (14, 12), (31, 2)])
def test_the_pool_by_matrices_is_torchs(side: int, shape: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *shape, dtype=torch.float64)
    expected = nn.AdaptiveAvgPool2d(side)(maps)
    torch.testing.assert_close(onnx_file._Pool(side)(maps), expected, rtol=0, atol=1e-12)


class Ruled(nn.Conv2d):
    """A convolution with a rule about its input."""

    def __init__(self, rule: str):
        super().__init__(3, 4, 3)
        self.rule = rule

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.rule == "20 px":
            torch._assert(input.shape[2] == 20 and input.shape[3] == 20, "20 px alone")
        elif self.rule == "by values" and input.sum() > 0:
            return -super().forward(input)
        return super().forward(input)


class Small(Backbone):
    """A backbone of one block."""

    name, channels, block_names = "small", (4,), ("conv",)

    def __init__(self, rule: str):
        super().__init__()
        self.conv = Ruled(rule)

    @override
    def blocks(self) -> list[nn.Module]:
        return [self.conv]


def small(rule: str) -> Pretrained:
    return Pretrained(Small(rule).eval(), Input(size_px=20), {"backbone": "small"})


def test_a_network_of_one_size_keeps_it_and_says_so() -> None:
    pretrained = small("20 px")
    data, lines = onnx_bytes(pretrained, {})
    assert lines[0] == "  input images: float32, any batch, 20 x 20 px alone; outputs features and map"
    assert onnxruntime.InferenceSession(data).get_inputs()[0].shape == ["batch", 3, 20, 20]
    assert_same(data, pretrained.backbone, torch.randn(5, 3, 20, 20))


def test_a_network_that_cannot_be_traced_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"torch .* cannot trace small \(.*; --to safetensors") as excinfo:
        onnx_bytes(small("by values"), {})
    assert "\n" not in str(excinfo.value)


def test_a_difference_is_refused_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path, "nin3")
    right = onnx_file._with_free_pools

    def wrong(network: nn.Module) -> nn.Module:
        network = right(network)
        next(module for module in network.modules() if isinstance(module, nn.Conv2d)).weight.data *= 1.01
        return network

    monkeypatch.setattr(onnx_file, "_with_free_pools", wrong)
    out = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="onnxruntime differs from torch by .* 1 images of 48 x 48 px"):
        export(tmp_path, "onnx", out)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        return None if name in ("onnxscript", "onnxruntime") else name

    monkeypatch.setattr(onnx_file, "find_spec", find_spec)
    with pytest.raises(ValueError, match="onnxscript and onnxruntime") as excinfo:
        onnx_bytes(random_weights("nin3", 0), {})
    assert install("onnx") in str(excinfo.value)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"by their ending; call it \*\.onnx"):
        export(tmp_path, "onnx", tmp_path / "model.pt")
