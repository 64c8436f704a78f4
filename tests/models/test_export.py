"""Exported weights: torchvision and timm compute our features, and Detectron2's names are checked."""

import copy
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastpsl.cli import main
from fastpsl.evaluation.result import write_result
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.models.export import export
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.state_dict_files import key_table
from fastpsl.models.weights import random_weights
from fastpsl.pipelines.views import Input
from tests.slow import slow

safetensors_torch = pytest.importorskip("safetensors.torch")
SEEN = Input("RGB", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 48)
SCIENCE = {"recipe": "jigsaw_r50", "plan": "psl", "epochs": [1], "data_digest": "abc"}


def checkpoint(folder: Path, backbone: str, input_record: Input = SEEN) -> nn.Module:
    """Write a checkpoint as the trainer does; return its backbone, with random statistics, in eval mode."""
    torch.manual_seed(7)
    network = random_weights(backbone, 7, input_record).backbone
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    summary = {"num_steps": 5, "num_steps_planned": 5}
    state = {
        "backbone": network.state_dict(), "science": SCIENCE | {"backbone": backbone},
        "input": input_record.as_dict(), "num_stages": 1, "position": {"run_step": 5, "summaries": [summary]},
        "train_step": {"optimiser": torch.zeros(3)},
    }  # fmt: skip
    CheckpointManager(folder / "checkpoints").save(5, state)
    return network.eval()


@torch.no_grad()
def assert_same_features(ours: nn.Module, theirs: nn.Module, channels: int = 3) -> None:
    """Check that `theirs`, which pools and has an identity as classifier, computes our features.

    In double precision, because float32's rounding depends on the CPU: of VGG16 it exceeds 1e-6 on some.
    """
    images = torch.randn(2, channels, 64, 48, dtype=torch.float64)
    expected = copy.deepcopy(ours).double()(images).mean((2, 3))
    assert expected.std() > 0
    computed = copy.deepcopy(theirs).double().eval()(images)
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-6)


def torchvisions(name: str, path: Path) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None)
    missing, unexpected = model.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"] and not unexpected
    model.fc = nn.Identity()
    return model


def with_ten_classes(output: str, start: str, **names: Any) -> nn.Module:
    """Run the line of an export's output that makes a network of ten classes, and remove its classifier."""
    (line,) = (line.strip() for line in output.splitlines() if line.startswith(f"  {start}"))
    exec(line if line.startswith("model") else f"model = {line}", names)  # noqa: S102  (it is to be run as it is printed)
    model: Any = names["model"]
    assert model.fc.out_features == 10
    model.fc = nn.Identity()
    return model  # type: ignore[no-any-return]


def test_torchvision_computes_our_features(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, network = run
    out = tmp_path / "resnet18.pth"
    output = export(folder, "torchvision", out)
    assert_same_features(network, torchvisions("resnet18", out))
    start = "model = torchvision.models.resnet18("
    assert_same_features(network, with_ten_classes(output, start, torchvision=torchvision, torch=torch))
    state = torch.load(out, weights_only=True)
    assert len(state) == 120 and all(isinstance(value, Tensor) for value in state.values())
    size = sum(value.nbytes for value in state.values()) / 1e6
    assert f"{out}: 120 tensors, {size:.1f} MB, for torchvision" in output
    assert "our pooled features: model(x), with model.fc = torch.nn.Identity()" in output
    assert "      40  layer1-4.0-1.bn1.*" in output


def test_timm_computes_our_features(run: tuple[Path, nn.Module], tmp_path: Path, timm: Any) -> None:
    folder, network = run
    for to, name in (("timm", "resnet18.pth"), ("safetensors", "resnet18.safetensors")):
        output = export(folder, to, tmp_path / name)
        if to == "timm":
            assert_same_features(network, with_ten_classes(output, "timm.create", timm=timm))
            assert "our pooled features: model(x), with num_classes=0" in output
        # With num_classes=0, timm loads strictly.
        model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(tmp_path / name))
        assert_same_features(network, model)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_convs", "res2"), [("resnet50", 3, 256), ("resnet34", 2, 64)])
def test_resnets_in_all_three(tmp_path: Path, timm: Any, name: str, num_convs: int, res2: int) -> None:
    network = checkpoint(tmp_path, name)
    export(tmp_path, "torchvision", tmp_path / "r.pth")
    assert_same_features(network, torchvisions(name, tmp_path / "r.pth"))
    reference = timm.create_model(name, num_classes=0, checkpoint_path=str(tmp_path / "r.pth"))
    assert_same_features(network, reference)
    export(tmp_path, "detectron2", tmp_path / "r.pkl")
    assert_detectron2s(tmp_path / "r.pkl", network, num_convs, units=(3, 4, 6, 3))
    (tmp_path / "r.pkl").with_name("theirs.pkl").write_bytes((tmp_path / "r.pkl").read_bytes())
    read = load_pretrained(tmp_path / "r.pkl"), load_pretrained(tmp_path / "theirs.pkl", name, Input())
    assert [each.record["kind"] for each in read] == ["export", "detectron2"]
    for key, tensor in network.state_dict().items():
        assert all(torch.equal(each.backbone.state_dict()[key], tensor) for each in read), key
    record = json.loads((tmp_path / "r.pkl.json").read_text())["detectron2"]
    depth = int(name.removeprefix("resnet"))
    assert (record["MODEL.RESNETS.DEPTH"], record["MODEL.RESNETS.RES2_OUT_CHANNELS"]) == (depth, res2)


@pytest.mark.parametrize("channels", ["L", "SobelXY"])
def test_a_network_keeps_its_channels(tmp_path: Path, timm: Any, channels: str) -> None:
    num = 1 if channels == "L" else 2
    record = Input(channels, (0.5,) * num, (0.25,) * num, 48)
    network = checkpoint(tmp_path, "resnet18", record)
    output = export(tmp_path, "timm", tmp_path / "l.pth")
    reference = timm.create_model("resnet18", num_classes=0, in_chans=num)
    reference.load_state_dict(torch.load(tmp_path / "l.pth", weights_only=True))
    assert_same_features(network, reference, channels=num)
    assert_same_features(network, with_ten_classes(output, "timm.create", timm=timm), channels=num)
    assert load_pretrained(tmp_path / "l.pth").input == record


def detectron2_layers(
    model: nn.Module, num_convs: int, units: tuple[int, ...]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield Detectron2's names of a ResNet's layers, by its stem, res2-5, units and shortcuts."""
    yield "stem.conv1", model.get_submodule("conv1")
    yield "stem.conv1.norm", model.get_submodule("bn1")
    for stage, num_units in enumerate(units):
        for unit in range(num_units):
            block = model.get_submodule(f"layer{stage + 1}")[unit]  # type: ignore[index]
            for conv in range(1, num_convs + 1):
                yield f"res{stage + 2}.{unit}.conv{conv}", getattr(block, f"conv{conv}")
                yield f"res{stage + 2}.{unit}.conv{conv}.norm", getattr(block, f"bn{conv}")
            if block.downsample is not None:
                yield f"res{stage + 2}.{unit}.shortcut", block.downsample[0]
                yield f"res{stage + 2}.{unit}.shortcut.norm", block.downsample[1]


def assert_detectron2s(path: Path, ours: nn.Module, num_convs: int, units: tuple[int, ...]) -> None:
    with open(path, "rb") as file:
        data = pickle.load(file, encoding="latin1")  # as Detectron2's DetectionCheckpointer does
    assert data["matching_heuristics"] is True and data["__author__"] == "fastpsl"
    expected = {
        f"{name}.{part}": tensor
        for name, layer in detectron2_layers(ours, num_convs, units)
        for part, tensor in layer.state_dict().items()
    }
    assert data["model"].keys() == expected.keys()
    for name, tensor in expected.items():
        assert isinstance(data["model"][name], np.ndarray)
        np.testing.assert_array_equal(data["model"][name], tensor.numpy())


def test_detectron2_finds_every_layer_under_its_name(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, network = run
    output = export(folder, "detectron2", tmp_path / "r18.pkl")
    assert_detectron2s(tmp_path / "r18.pkl", network, num_convs=2, units=(2, 2, 2, 2))
    assert "layer2-4.0.downsample.1.*       res3-5.0.shortcut.norm.*" in output
    record = json.loads((tmp_path / "r18.pkl.json").read_text())
    assert record["detectron2"] == {
        "MODEL.PIXEL_MEAN": [102.0, 127.5, 153.0], "MODEL.PIXEL_STD": [51.0, 63.75, 76.5],
        "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "INPUT.FORMAT": "RGB",
    }  # fmt: skip


def test_the_input_record_goes_along_and_comes_back(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, network = run
    first = load_pretrained(folder)
    for to, name in (("torchvision", "a.pth"), ("safetensors", "a.safetensors")):
        export(folder, to, tmp_path / name)
        result = load_pretrained(tmp_path / name)
        assert result.input == SEEN and result.record["kind"] == "export"
        for key in ("backbone", "run_step", "science", "cut"):
            assert result.record[key] == first.record[key], key
        for key, tensor in network.state_dict().items():
            assert torch.equal(result.backbone.state_dict()[key], tensor)
    record = json.loads((tmp_path / "a.pth.json").read_text())
    sha256 = first.record["sha256"]
    assert record["source"] == {"name": "step-00000005.pt", "sha256": sha256, "kind": "fastpsl"}
    assert not (tmp_path / "a.safetensors.json").exists()
    with pytest.raises(ValueError, match="another backbone: resnet18, not resnet50"):
        load_pretrained(tmp_path / "a.pth", "resnet50")
    with pytest.raises(ValueError, match="input channels RGB, not Sobel"):
        load_pretrained(tmp_path / "a.pth", None, replace(SEEN, channels="Sobel"))


def test_a_record_of_other_weights_is_not_believed(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    export(run[0], "torchvision", tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth")
    torch.save(state | {"bn1.weight": state["bn1.weight"] + 1}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="does not say which backbone it holds"):
        load_pretrained(tmp_path / "a.pth")


@pytest.mark.slow
def test_revnet_goes_as_safetensors_alone(tmp_path: Path) -> None:
    network = checkpoint(tmp_path, "revnet50")
    with pytest.raises(ValueError, match="detectron2 has no revnet50: --to safetensors writes it"):
        export(tmp_path, "detectron2", tmp_path / "r.pkl")
    output = export(tmp_path, "safetensors", tmp_path / "r.safetensors")
    loaded = safetensors_torch.load_file(tmp_path / "r.safetensors")
    assert loaded.keys() == network.state_dict().keys() and f"{len(loaded)} tensors" in output
    result = load_pretrained(tmp_path / "r.safetensors").backbone.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(result(images), network(images))


@pytest.mark.slow
@torch.no_grad()
def test_the_mlp_stays_here_and_libraries_get_the_resnet(tmp_path: Path) -> None:
    network = checkpoint(tmp_path, "resnet50_mlp")
    images = torch.randn(2, 3, 64, 48)
    expected = images
    for block in network.blocks()[:5]:  # type: ignore[operator]
        expected = block(expected)
    for to, name in (("torchvision", "m.pth"), ("detectron2", "m.pkl")):
        output = export(tmp_path, to, tmp_path / name)
        assert f"left out: mlp.*, which {to} has not" in output
    reference = torchvisions("resnet50", tmp_path / "m.pth").eval()
    torch.testing.assert_close(reference(images), expected.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert_detectron2s(tmp_path / "m.pkl", network, num_convs=3, units=(3, 4, 6, 3))
    result = load_pretrained(tmp_path / "m.pth")
    assert result.record["backbone"] == "resnet50" and result.record["left_out"] == ["mlp.*"]
    torch.testing.assert_close(result.backbone.eval()(images), expected)
    output = export(tmp_path, "safetensors", tmp_path / "m.safetensors")
    assert "left out" not in output
    whole = load_pretrained(tmp_path / "m.safetensors")
    assert whole.record["backbone"] == "resnet50_mlp"
    assert torch.equal(whole.backbone.eval()(images), network(images))


def test_the_small_resnet_says_what_torchvisions_needs(tmp_path: Path) -> None:
    network = checkpoint(tmp_path, "resnet18_cifar")
    output = export(tmp_path, "torchvision", tmp_path / "c.pth")
    model_text = json.loads((tmp_path / "c.pth.json").read_text())["model"]
    assert model_text in output
    model, conv1, maxpool = re.fullmatch(  # type: ignore[union-attr]
        r"(torchvision\.models\.resnet18\(\)) with conv1 = (.*) and maxpool = (.*)", model_text
    ).groups()
    reference = eval(model)
    reference.conv1, reference.maxpool = eval(conv1), eval(maxpool)
    missing, unexpected = reference.load_state_dict(torch.load(tmp_path / "c.pth"), strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"] and not unexpected
    reference.fc = nn.Identity()
    assert_same_features(network, reference)
    assert load_pretrained(tmp_path / "c.pth").record["backbone"] == "resnet18_cifar"
    for to, name in (("timm", "t.pth"), ("detectron2", "c.pkl")):
        with pytest.raises(ValueError, match=f"{to} has no resnet18_cifar: --to safetensors writes it"):
            export(tmp_path, to, tmp_path / name)


@pytest.mark.slow
def test_vgg16_in_torchvision_and_timm(tmp_path: Path, timm: Any) -> None:
    network = checkpoint(tmp_path, "vgg16")
    outputs = {to: export(tmp_path, to, tmp_path / f"{to}.pth") for to in ("torchvision", "timm")}
    assert "features.0-41.*" in outputs["torchvision"] and "classifier.0-3.*" in outputs["torchvision"]
    assert "pre_logits.fc2.*" in outputs["timm"]
    with torch.device("meta"):
        reference = torchvision.models.vgg16_bn()  # has one more layer
    state = torch.load(tmp_path / "torchvision.pth")
    assert set(reference.state_dict()) - set(state) == {"classifier.6.weight", "classifier.6.bias"}
    reference.classifier[0], reference.classifier[3] = nn.Linear(25088, 32), nn.Linear(32, 32)
    reference.classifier[6] = nn.Identity()
    reference.features.to_empty(device="cpu")
    reference.load_state_dict(state)
    assert_same_features(network, reference)
    timm_model = timm.create_model("vgg16_bn", num_classes=0)
    timm_model.load_state_dict(torch.load(tmp_path / "timm.pth"))
    assert_same_features(network, timm_model)
    images = torch.randn(1, 3, 64, 64)
    for to in ("torchvision", "timm"):
        result = load_pretrained(tmp_path / f"{to}.pth")
        assert result.record["backbone"] == "vgg16"
        assert torch.equal(result.backbone.eval()(images), network(images))
    with pytest.raises(ValueError, match="detectron2 has no vgg16: --to safetensors writes it"):
        export(tmp_path, "detectron2", tmp_path / "v.pkl")


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["alexnet", "alexnet_rotnet", "nin4", *map(slow, ("nin3", "nin5", "resnet34_iic"))]
)
def test_other_networks_go_as_safetensors_alone(name: str, tmp_path: Path) -> None:
    is_alexnet = name.startswith("alexnet")
    input_record = Input("SobelXY", (0.0, 0.0), (0.03, 0.03), 48) if is_alexnet else SEEN
    network = checkpoint(tmp_path, name, input_record)
    for to, ending in (("torchvision", "pth"), ("timm", "pth"), ("detectron2", "pkl")):
        with pytest.raises(ValueError, match=f"{to} has no {name}: --to safetensors writes it") as excinfo:
            export(tmp_path, to, tmp_path / f"n.{ending}")
        assert "\n" not in str(excinfo.value)
    export(tmp_path, "safetensors", tmp_path / "n.safetensors")
    result = load_pretrained(tmp_path / "n.safetensors")
    images = torch.randn(1, 2, 64, 64) if is_alexnet else torch.randn(2, 3, 32, 32)
    assert result.input == input_record and result.record["backbone"] == name
    assert torch.equal(result.backbone.eval()(images), network(images))


def test_the_command(run: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = str(run[0]), str(tmp_path / "x.pth")

    def command(*words: str) -> tuple[int, str, str]:
        code: Any = 0
        try:
            main(["export", *words])
        except SystemExit as end:
            code = end.code or 0
        output = capsys.readouterr()
        return code, output.out, output.err

    code, output, _ = command(folder, "--to", "timm", out)
    assert code == 0
    assert "resnet18 (fastpsl, 5 steps); input RGB, mean 0.4 0.5 0.6, std 0.2 0.25 0.3" in output
    for words, error in (
        ((folder, "--to", "timm", out), f"{out}: exists already"),
        ((folder, "--to", "detectron2", str(tmp_path / "x.pth2")), "call it *.pkl"),
        ((folder, "--to", "timm", str(tmp_path / "no" / "x.pth")), "cannot be written"),
        ((folder, "--to", "onxn", out), "hf; perhaps you meant onnx"),
        ((folder, "--to", "tensorflow", out), "allowed are torchvision, timm, detectron2, safetensors, onnx"),
        ((folder, "--to", "onnx", out), "call it *.onnx"),
        ((folder, "--to", "timm", str(tmp_path)), f"{tmp_path} is a folder: name a file in it, such as"),
        ((folder, "--to", "hf", out), "x.pth is a file, and --to hf writes a folder"),
        ((folder, "--to", "hf", str(tmp_path)), "exists already; give --overwrite"),
        ((folder, "--to", "timm", "--results", folder, "y"), "leave it out of --to timm"),
        ((folder, "--to", "hf", "--results", "none", str(tmp_path / "y")), "--results none: no such folder"),
        (
            (str(tmp_path / "none.pt"), "--to", "hf", str(tmp_path / "y")),
            "none.pt: no such file or folder; give a run's folder",
        ),
        ((out + ".json", "--to", "hf", str(tmp_path / "y")), "is no readable file of weights"),
        ((str(tmp_path), "--to", "timm", str(tmp_path / "y.pth")), "holds no checkpoint"),
        ((folder, "--to", "timm", str(tmp_path / "y.pth"), "--backbone", "resnet50"), "another backbone"),
    ):
        code, _, errors = command(*words)
        assert code == 2 and error in errors and errors.count("\n") == 1, errors
    before = load_pretrained(Path(out)).record["sha256"]
    assert command(folder, "--to", "timm", "--overwrite", out)[0] == 0
    assert load_pretrained(Path(out)).record["sha256"] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth", "x.pth.json"]


def test_the_command_finds_the_results_of_its_checkpoint(
    run: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sha256 = load_pretrained(run[0]).record["sha256"]
    for name, digest, score in (("mine", sha256, 41.5), ("another", "0" * 64, 77.25)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_result(
            tmp_path / "runs" / name, recipe="knn", protocol="knn", numbers={"top1_B5": score}, settings={},
            checkpoint={"sha256": digest}, data={"train": "a", "val": "b", "num_train": 9, "num_val": 6},
            seconds=1.0, cut=False,
        )  # fmt: skip
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "result.json").write_text("{")
    main(["export", str(run[0]), "--to", "hf", str(tmp_path / "hf"), "--results", str(tmp_path / "runs")])
    output = capsys.readouterr()
    assert "has 1 evaluation;" in output.out
    assert "passed over" in output.err and "damaged" in output.err and output.err.count("\n") == 1
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| knn | top1_B5 41.5 | 6 |  |" in card and "77.25" not in card


def test_others_weights_go_out_once_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command exports MoCo's checkpoint for Detectron2."""
    torch.manual_seed(1)
    reference = torchvision.models.resnet18()
    state = {f"module.encoder_q.{name}": tensor for name, tensor in reference.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "moco.pth.tar")
    numbers = ["0.485", "0.456", "0.406"]
    main(
        ["export", str(tmp_path / "moco.pth.tar"), "--to", "detectron2", str(tmp_path / "moco.pkl"),
         "--backbone", "resnet18", "--input-channels", "RGB",
         "--input-mean", *numbers, "--input-std", *numbers]
    )  # fmt: skip
    assert "resnet18 (moco)" in capsys.readouterr().out
    assert_detectron2s(tmp_path / "moco.pkl", reference, num_convs=2, units=(2, 2, 2, 2))


def test_the_table_counts_every_tensor() -> None:
    pairs = [
        ("a.weight", "b.weight"),
        ("layer1.0.bn1.weight", "res2.0.n.weight"),
        ("layer3.4.bn1.bias", "res4.4.n.bias"),
    ]
    assert key_table(pairs) == [
        "  tensors  here                there",
        "        1  a.weight            b.weight",
        "        2  layer1-3.0-4.bn1.*  res2-4.0-4.n.*",
    ]
