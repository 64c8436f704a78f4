"""A module that a program gives as a backbone: its name and weights, trained, resumed and read again."""

import copy
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import VGG, mobilenet_v3_small, resnet18
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import cfgs, make_layers
from typing_extensions import override

import fastpsl
from fastpsl import cli
from fastpsl.models.factory import make_backbone
from fastpsl.models.given import given
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.own_backbone import Wrapped
from fastpsl.models.weights import random_weights, sha256_of_tensors
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.scripts.beginning import _of_module
from fastpsl.scripts.recipe_files import find_recipe
from tests.cheaper import FC_WIDTH
from tests.engine.steps import rank_of
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


class Plain(nn.Module):
    """A network without blocks(), which returns vectors."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, width, 3, stride=2, padding=1)

    @override
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = self.last(F.relu(self.norm(self.stem(images)))).mean((2, 3))
        return means


def grouped(width: int = 8) -> ResNet:
    """Return a ResNeXt, which no name of ours makes."""
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=width, width_per_group=4)


def narrow_vgg(*classifier: nn.Module, name: str = "A") -> VGG:
    """Return a VGG with a classifier that reads 7 x 7 x 512 numbers."""
    with torch.device("meta"):  # torchvision's classifier has 120 million weights
        network = VGG(make_layers(cfgs[name], batch_norm=name == "D"), init_weights=False)
    network.features, network.classifier = make_layers(cfgs[name], name == "D"), nn.Sequential(*classifier)
    return network


def fc(inputs: int = 512 * 49) -> list[nn.Module]:
    return [nn.Linear(inputs, FC_WIDTH), nn.ReLU(inplace=True), nn.Dropout()]


def of_32_px() -> ResNet:
    network = resnet18(num_classes=5)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()  # type: ignore[assignment]
    return network


NET, THEIR_VGG = f"module:{__name__}.Net", "module:torchvision.models.vgg.VGG"
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


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()
        self.body = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3))

    @override
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.body(self.relu(self.norm(self.stem(images))))
        return maps


@pytest.mark.parametrize("plan", ["psl", "blockwise", "continue"])
def test_stages_refuse_one_block_and_show_the_lines_that_it_lacks(plan: str) -> None:
    chain, script = Chain(), find_recipe("simclr_r50")

    def refusal(module: nn.Module) -> str:
        options: Any = script.from_values({"backbone": module, "plan": plan}, lambda line: None)
        with pytest.raises(ValueError, match=f"^--plan {plan}: module:.* give --plan end_to_end") as caught:
            options.stages(3, make_backbone(module).num_blocks)
        return str(caught.value)

    lines = re.findall("`(.*?)`", refusal(chain))
    pasted: dict[str, Any] = {"nn": nn}
    exec("\n".join(lines), pasted)  # noqa: S102 - as a user would
    cut: Any = type("Cut", (Chain,), {name: pasted[name] for name in ("blocks", "channels")})()
    ours = make_backbone(cut).eval()
    assert ours.num_blocks == 2 and torch.equal(ours(IMAGES), cut.eval()(IMAGES))
    assert "such as `blocks" in refusal(Plain())  # its layers in sequence are another network
    assert "or --backbone timm/mobilenetv3_large_100, or" in refusal(mobilenet_v3_small())


def test_one_block_is_the_module() -> None:
    plain = Plain()
    nn.init.uniform_(plain.norm.running_mean, -1, 1)  # type: ignore[arg-type]
    with torch.no_grad():
        ours = make_backbone(nn.DataParallel(torch.compile(plain)))  # type: ignore[arg-type, type-var]
        assert ours.training and ours.channels == (8,) and ours.block_names == ("B1",)
        assert sha256_of_tensors(ours.state_dict()) == sha256_of_tensors(plain.state_dict())
        assert torch.equal(ours.eval()(IMAGES)[:, :, 0, 0], plain.eval()(IMAGES))
    assert make_backbone(torch.compile(nn.DataParallel(plain))).name == ours.name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "name", "num_blocks"),
    [
        (lambda: resnet18(num_classes=5), "resnet18", 5),
        (of_32_px, "resnet18_cifar", 5),
        (grouped, "module:torchvision.models.resnet.ResNet", 5),
        (lambda: narrow_vgg(*fc(), *fc(FC_WIDTH), nn.Linear(FC_WIDTH, 5), name="D"), "vgg16", 7),
        (lambda: narrow_vgg(*fc(), *fc(FC_WIDTH), nn.Linear(FC_WIDTH, 5)), THEIR_VGG, 7),
        (lambda: narrow_vgg(nn.Linear(512 * 49, 5)), THEIR_VGG, 5),
    ],
    ids=["resnet18", "cifar", "resnext", "vgg16_bn", "vgg11", "vgg11 without fc"],
)  # fmt: skip
def test_torchvisions_networks_are_cut_as_ours(make: Callable[[], Any], name: str, num_blocks: int) -> None:
    theirs = make().eval()
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)  # type: ignore[arg-type]
    ours: Any = make_backbone(theirs).eval()
    assert ours.name == name and ours.num_blocks == num_blocks
    if isinstance(theirs, ResNet):
        layers, ends = nn.Sequential(*list(theirs.children())[:-2]), [3, 5, 6, 7, 8]
    else:
        layers = theirs.features
        ends = [number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    maps = IMAGES
    with torch.no_grad():
        for number, block in enumerate(ours.blocks()):
            maps = block(maps)
            assert maps.shape[1] == ours.channels[number]
            assert number >= 5 or torch.equal(maps, layers[: ends[number]](IMAGES))
        if num_blocks == 7:
            assert torch.equal(theirs.classifier[-1](maps.flatten(1)), theirs(IMAGES))
    again = make()
    missing, unknown = again.load_state_dict(ours.state_dict(), strict=False)
    owners = {key.rpartition(".")[0] for key in missing}
    assert not unknown and owners <= {"fc", "classifier.0", "classifier.6"}
    assert all(torch.equal(again.state_dict()[key], each) for key, each in ours.state_dict().items())


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)


class Tokens(Plain):
    @override
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.stem(images).flatten(2)  # type: ignore[no-any-return]


class Named(Plain):
    @override
    def forward(self, images: torch.Tensor) -> Any:
        return {"pooler_output": super().forward(images)}


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
        (Dense(), "it has no method blocks() and no forward()"),
        (Tokens(), "forward() of the backbone returned [2, 4, 1024]; let it return a tensor [B, C, h, w]"),
        (Named(), "forward() of the backbone returned a dict; let it return a tensor [B, C, h, w]"),
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
    ids=["number", "class", "dense", "tokens", "named", "channels", "graph", "meta", "nan", "extra", "lazy",
         "grey", "fixed", "pruned", "mixer"],
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
        "size_px": 32, "batch_size": 16, "epochs": 1, "workers": 1, "tensorboard": False,
    }  # fmt: skip
    values |= {"max_steps_per_stage": 4, "checkpoint_steps": 2, "warmup_epochs": 0, "data": paths.train_32}
    return fastpsl.pretrain("simclr", out=out, backbone=backbone, **{**values, **options})


@pytest.mark.parametrize(
    ("make", "last", "plan"),
    [(Net, "last.bias", "psl"), (Plain, "last.bias", "end_to_end"), (grouped, "layer4.0.bn3.bias", "psl")],
)
def test_a_training_begins_from_the_weights_and_resumes_exactly(
    make: Callable[..., nn.Module], last: str, plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, paths = make(), sample_paths()
    before, kind = copy.deepcopy(net.state_dict()), f"{type(net).__module__}.{type(net).__qualname__}"
    weights = make_backbone(net).state_dict()
    still = pretrain(tmp_path / "still", net, lr=1e-30, max_steps_per_stage=1, plan=plan).load()
    of_still = still.backbone.state_dict()
    for key, _ in still.backbone.network.named_parameters():  # type: ignore[union-attr, operator]
        torch.testing.assert_close(of_still[key], weights[key])
    assert "the backbone begins from the weights of the module that was given" in capsys.readouterr().err
    run = pretrain(tmp_path / "run", net, plan=plan)
    assert sha256_of_tensors(net.state_dict()) == sha256_of_tensors(before)
    config = json.loads((run.folder / "config.json").read_text())
    assert run.backbone == config["options"]["backbone"] == f"module:{kind}"
    assert config["science"]["initial_weights"]["sha256"] == sha256_of_tensors(weights)
    module = f"{kind}, {len(before)} tensors"
    assert config["science"]["module"].startswith(f"{module}, shapes ")
    whole, early = newest_checkpoint(run.folder), run.folder / "checkpoints" / "step-00000002.pt"

    again = pretrain(tmp_path / "again", make(), resume=early, plan=plan)
    assert "the weights of the module given now are not used" in capsys.readouterr().err
    assert digests(newest_checkpoint(again.folder)) == digests(whole)
    with pytest.raises(ValueError, match=rf"belongs to another experiment: module \({module}"):
        pretrain(tmp_path / "other", make(4), resume=early, plan=plan)

    assert fastpsl.embed(run, paths.test_32, size_px=32)[0].shape[1] == make_backbone(net).channels[-1]
    line = f"has a module of a program as its backbone, {kind}; in Python, give backbone="
    with pytest.raises(ValueError, match=line):
        load_pretrained(run.folder)
    model = fastpsl.load(run.folder, backbone=make())
    assert torch.equal(model.backbone.state_dict()[last], whole["backbone"][last])
    (tmp_path / "net.py").write_text(f"from {__name__} import {make.__name__}")
    maker = f"{tmp_path}/net.py:{make.__name__}"
    assert load_pretrained(run.folder, maker).record["run_step"] == whole["position"]["run_step"]
    words = ["export", str(run.folder), str(tmp_path / "a.safetensors"), "--to", "safetensors"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert line in capsys.readouterr().err
    cli.main([*words, "--backbone", maker])
    theirs = make()
    theirs.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=False)
    assert torch.equal(theirs.state_dict()[last], whole["backbone"][last])
    script: Any = find_recipe("simclr_r50")
    with pytest.warns(UserWarning, match="its run began from the weights of a module"):
        assert script.parse(["--config", str(run.folder)]).backbone == f"module:{kind}"


@pytest.mark.parametrize(
    ("make", "name"),
    [(partial(timm.create_model, "resnet10t"), "timm/resnet10t"), (resnet18, "resnet18")],
    ids=["timm", "torchvision"],
)
def test_a_run_of_a_network_with_a_name_is_read_by_it(
    make: Callable[[], nn.Module], name: str, tmp_path: Path
) -> None:
    run = pretrain(tmp_path / "run", make(), max_steps_per_stage=1)
    science = newest_checkpoint(run.folder)["science"]
    assert science["backbone"] == name and "module" not in science
    assert science["initial_weights"]["kind"] == "module"
    pretrained = load_pretrained(run.folder)
    assert pretrained.record["backbone"] == name
    by_name = pretrain(tmp_path / "run", name, max_steps_per_stage=1)  # nothing is left to train
    assert by_name.summaries == run.summaries
    config = json.loads((run.folder / "config.json").read_text())
    assert config["science"]["initial_weights"] == science["initial_weights"]


def test_a_classifier_of_a_module_is_scored(tmp_path: Path) -> None:
    values: dict[str, Any] = {"epochs": 1, "max_steps_per_stage": 1, "batch_size": 16, "workers": 1}
    run = fastpsl.pretrain("supervised", backbone=Plain(), out=tmp_path, tensorboard=False, **values)
    assert json.loads((run.folder / "result.json").read_text())["checkpoint"]["backbone"] == run.backbone


def test_all_ranks_begin_from_the_weights_of_rank_0() -> None:
    nets = [Net(), Net()]
    script: Any = find_recipe("simclr_r50")

    def begun(rank: int, num_ranks: int) -> tuple[dict[str, Any], str]:
        options = script.from_values({"backbone": nets[rank]}, lambda line: None)
        backbone = make_backbone(options.backbone).to(memory_format=torch.channels_last)
        world = rank_of(rank, num_ranks)
        origin, _ = _of_module(backbone, options.backbone, {}, world)
        return origin, sha256_of_tensors(backbone.state_dict())

    results = results_of_threads(begun, 2)
    weights = sha256_of_tensors(nets[0].state_dict())
    assert [origin["initial_weights"]["sha256"] for origin, _ in results] == [weights] * 2
    assert [digest for _, digest in results] == [weights] * 2
