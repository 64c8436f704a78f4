"""A module that a program gives as a backbone: its name and weights, trained, resumed and read again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

import fastpsl
from fastpsl import cli
from fastpsl.engine.distributed import World
from fastpsl.models.factory import make_backbone
from fastpsl.models.given import given
from fastpsl.models.own_backbone import Wrapped
from fastpsl.models.weights import load_pretrained, random_weights, sha256_of_tensors
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.beginning import _of_module
from fastpsl.scripts.recipe_files import find_recipe
from tests.programs import digests, newest_checkpoint
from tests.threaded_world import results_of_threads


class Net(nn.Module):
    channels = (4, 6, 8)

    def __init__(self, width: int = 6):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(4, width, 3, stride=2, padding=1)
        self.last = nn.Conv2d(width, 8, 3, stride=2, padding=1)
        self.channels = (4, width, 8)

    def blocks(self) -> list[nn.Module]:
        return [self.stem, self.middle, self.last]


NET = f"module:{__name__}.Net"
IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 64).mul(99).sin().reshape(2, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("resnet10t", {}, "timm/resnet10t"),
        ("resnet10t", {"num_classes": 7}, "timm/resnet10t"),
        ("convnext_atto", {"features_only": True}, "timm/convnext_atto"),
        ("convnext_atto", {"drop_path_rate": 0.1}, "module:timm.models.convnext.ConvNeXt"),
        ("resnet10t", {"drop_path_rate": 0.1}, "module:timm.models.resnet.ResNet"),
        ("densenet121", {"proj_drop_rate": 0.1}, "module:timm.models.densenet.DenseNet"),
        ("deit_tiny_patch16_224", {}, "timm/deit_tiny_patch16_224"),
        (
            "vit_tiny_patch16_224",
            {"num_heads": 6, "dynamic_img_size": True},
            "module:timm.models.vision_transformer.VisionTransformer",
        ),
    ],
)  # fmt: skip
def test_a_model_of_timm_has_its_name_where_that_makes_the_same_network(
    name: str, arguments: dict[str, Any], found: str
) -> None:
    model: Any = timm.create_model(name, **arguments).eval()
    before = copy.deepcopy(model.state_dict())
    backbone: Any = make_backbone(model)
    assert backbone.name == found and not model.training
    assert backbone.training
    with torch.no_grad():
        maps = backbone.eval()(IMAGES)
        if "features_only" in arguments:
            expected = model(IMAGES)[-1]
        elif "vit" in name or "deit" in name:
            network: Any = timm.create_model(name, **{**arguments, "dynamic_img_size": True}).eval()
            network.load_state_dict(model.state_dict())
            tokens = network.forward_features(IMAGES)
            expected, maps = tokens[:, 1:].mean(1), maps.mean((2, 3))[:, : tokens.shape[2]]
        else:
            expected = model.forward_features(IMAGES)
        torch.testing.assert_close(maps, expected)
    assert sha256_of_tensors(before) == sha256_of_tensors(model.state_dict())
    backbone.requires_grad_(False).add_module("more", nn.ReLU())
    assert all(each.requires_grad for each in model.parameters()) and not hasattr(model, "more")


def test_a_module_with_blocks_and_what_holds_one() -> None:
    net = Net()
    backbone = make_backbone(net)
    assert isinstance(backbone, Wrapped) and backbone.name == NET and backbone.network is not net
    assert torch.equal(backbone.network.stem.weight, net.stem.weight)  # type: ignore[arg-type, union-attr]
    compiled: Any = torch.compile(net)
    assert make_backbone(nn.DataParallel(net)).name == make_backbone(compiled).name == NET
    pretrained = random_weights("nin3", 3)
    for module in (pretrained.backbone, fastpsl.Model(pretrained)):
        again = make_backbone(module)
        assert again.name == "nin3" and sha256_of_tensors(again.state_dict()) == pretrained.record["sha256"]
    assert make_backbone(make_backbone(net)).name == NET
    assert make_backbone(net.to(torch.bfloat16)).state_dict()["stem.weight"].dtype == torch.float32
    random = random_weights(given(timm.create_model("resnet10t")), 0)  # the name alone
    assert random.record["sha256"] == random_weights("timm/resnet10t", 0).record["sha256"]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)


class Changed(Net):
    @override
    def blocks(self) -> list[nn.Module]:
        return [self.stem, self.middle]


class Kept(Net):
    @override
    def get_extra_state(self) -> dict[str, int]:
        return {}


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.LazyConv2d(6, 3)  # type: ignore[assignment]


def without_copies() -> nn.Module:
    net = Net()
    net.kept = F.relu(net.stem.weight)  # type: ignore[assignment]
    return net


def meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def spoilt() -> nn.Module:
    net = Net()
    nn.init.constant_(next(net.parameters()), torch.nan)
    return net


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (3, "is of type int: give a name, or a torch.nn.Module"),
        (Net, "is of type type"),
        (Dense(), "it has no method blocks()"),
        (Changed(), "its channels are (4, 6, 8); give a tuple of 2 whole numbers"),
        (without_copies(), "it cannot be copied ("),
        (meta(), "its weights are on the device meta"),
        (spoilt(), "it has values that are not finite, or a running_var below 0, in 1 tensor ("),
        (Kept(), "_extra_state of its state_dict() is no dense tensor of real numbers"),
        (Lazy(), "middle.weight has no shape yet; give it after it has computed once"),
        (timm.create_model("resnet10t", in_chans=1), "it reads images of 1 channels, and this"),
        (timm.create_model("vit_tiny_patch16_224", num_heads=6), "make it with dynamic_img_size=True"),
        (timm.create_model("efficientnet_b0", features_only=True), "give timm.create_model("),
        (timm.create_model("mixer_s32_224"), "it cannot be cut into blocks"),
    ],
    ids=["number", "class", "dense", "channels", "graph", "meta", "nan", "extra", "lazy", "grey", "fixed",
         "pruned", "mixer"],
)  # fmt: skip
def test_what_a_module_lacks_is_one_line_without_its_layers(module: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_backbone(module)
    text = str(caught.value)
    assert words in text and "\n" not in text and "(conv1)" not in text and "(stem)" not in text, text
    with pytest.raises(ValueError) as caught:
        fastpsl.pretrain("simclr", backbone=module)
    assert str(caught.value) == text.removeprefix("--")


def pretrain(out: Path, backbone: Any, **options: Any) -> fastpsl.Trained:
    paths = sample_paths()
    values: dict[str, Any] = {
        "size_px": 32,
        "batch_size": 16,
        "epochs": 1,
        "workers": 1,
        "tensorboard": False,
    }
    values |= {"max_steps_per_stage": 4, "checkpoint_steps": 2, "warmup_epochs": 0, "data": paths.train_32}
    return fastpsl.pretrain("simclr", out=out, backbone=backbone, **{**values, **options})


def test_a_training_begins_from_the_weights_and_resumes_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, paths = Net(), sample_paths()
    before = copy.deepcopy(net)
    still = pretrain(tmp_path / "still", net, lr=1e-30, max_steps_per_stage=1).load()
    assert sha256_of_tensors(still.backbone.state_dict()) == sha256_of_tensors(net.state_dict())
    assert "the backbone begins from the weights of the module that was given" in capsys.readouterr().err
    run = pretrain(tmp_path / "run", net)
    assert sha256_of_tensors(net.state_dict()) == sha256_of_tensors(before.state_dict())
    config = json.loads((run.folder / "config.json").read_text())
    assert run.backbone == config["options"]["backbone"] == NET
    assert config["science"]["initial_weights"]["sha256"] == sha256_of_tensors(net.state_dict())
    assert config["science"]["module"].startswith(f"{__name__}.Net, 6 tensors, shapes ")
    whole, early = newest_checkpoint(run.folder), run.folder / "checkpoints" / "step-00000002.pt"

    again = pretrain(tmp_path / "again", Net(), resume=early)
    assert "the weights of the module given now are not used" in capsys.readouterr().err
    assert digests(newest_checkpoint(again.folder)) == digests(whole)
    with pytest.raises(ValueError, match=r"belongs to another experiment: module \(.*Net, 6 tensors"):
        pretrain(tmp_path / "other", Net(7), resume=early)

    assert fastpsl.embed(run, paths.test_32, size_px=32)[0].shape[1] == 8
    line = f"has a module of a program as its backbone, {__name__}.Net; in Python, give backbone="
    with pytest.raises(ValueError, match=line):
        load_pretrained(run.folder)
    model = fastpsl.load(run.folder, backbone=Net())
    assert torch.equal(model.backbone.state_dict()["last.bias"], whole["backbone"]["last.bias"])
    (tmp_path / "net.py").write_text(f"from {__name__} import Net")
    assert load_pretrained(run.folder, f"{tmp_path}/net.py:Net").record["run_step"] == 4
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(run.folder), str(tmp_path / "a.safetensors"), "--to", "safetensors"])
    assert line in capsys.readouterr().err
    script: Any = find_recipe("simclr_r50")
    with pytest.warns(UserWarning, match="its run began from the weights of a module"):
        assert script.parse(["--config", str(run.folder)]).backbone == NET


def test_a_run_of_a_model_of_timm_is_read_by_its_name(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t")
    run = pretrain(tmp_path / "run", model, max_steps_per_stage=1)
    science = newest_checkpoint(run.folder)["science"]
    assert science["backbone"] == "timm/resnet10t" and "module" not in science
    assert science["initial_weights"]["kind"] == "module"
    pretrained = load_pretrained(run.folder)
    assert pretrained.record["backbone"] == "timm/resnet10t"
    by_name = pretrain(tmp_path / "run", "timm/resnet10t", max_steps_per_stage=1)  # nothing is left to train
    assert by_name.summaries == run.summaries
    config = json.loads((run.folder / "config.json").read_text())
    assert config["science"]["initial_weights"] == science["initial_weights"]


def test_all_ranks_begin_from_the_weights_of_rank_0() -> None:
    nets = [Net(), Net()]
    script: Any = find_recipe("simclr_r50")

    def begun(rank: int, num_ranks: int) -> tuple[dict[str, Any], str]:
        options = script.from_values({"backbone": nets[rank]}, lambda line: None)
        backbone = make_backbone(options.backbone).to(memory_format=torch.channels_last)
        world = World(rank, num_ranks, rank, num_ranks, torch.device("cpu"))
        origin, _ = _of_module(backbone, options.backbone, {}, world)
        return origin, sha256_of_tensors(backbone.state_dict())

    results = results_of_threads(begun, 2)
    weights = sha256_of_tensors(nets[0].state_dict())
    assert [origin["initial_weights"]["sha256"] for origin, _ in results] == [weights] * 2
    assert [digest for _, digest in results] == [weights] * 2
