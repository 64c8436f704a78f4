"""Other projects' checkpoints, rebuilt from torchvision's tensors: the backbone is extracted completely."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from fastpsl.kernels.filters import SOBEL_XY_STD, SobelXY
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import VGG, AlexNet
from fastpsl.models.foreign_weights import RecognisedWeights, recognise
from fastpsl.models.resnet import ResNet
from fastpsl.models.weights import fill

Tensors = dict[str, Tensor]
PATH = Path("theirs.pth")


@pytest.fixture(scope="module")
def torchvision_state() -> Tensors:
    """Return torchvision's ResNet-18 with fc and random running statistics."""
    torch.manual_seed(3)
    state = torchvision.models.resnet18().state_dict()
    return {name: torch.rand_like(t) if t.is_floating_point() else t + 7 for name, t in state.items()}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def momentum_copy(tensors: Tensors) -> Tensors:
    """Return changed tensors, as those of a momentum encoder, that must not be taken for the backbone."""
    return {name: tensor + 1 for name, tensor in tensors.items()}


def body(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}


def numbered(tensors: Tensors) -> Tensors:
    """Rename tensors as nn.Sequential(*list(resnet.children())[:-1]) does."""
    children = [name for name, _ in torchvision.models.resnet18().named_children()]
    split = ((name.partition(".")[0], name.partition(".")[2], t) for name, t in body(tensors).items())
    return {f"{children.index(child)}.{rest}": tensor for child, rest, tensor in split}


def mlp(prefix: str) -> Tensors:
    return {f"{prefix}.{i}.{part}": torch.zeros(2) for i in (0, 2) for part in ("weight", "bias")}


def moco(t: Tensors) -> dict[str, Any]:
    queue = {"module.queue": torch.zeros(2, 4), "module.queue_ptr": torch.zeros(1)}
    query = prefixed(body(t) | mlp("fc"), "module.encoder_q.")
    key = prefixed(momentum_copy(body(t)) | mlp("fc"), "module.encoder_k.")
    return {"epoch": 1, "arch": "resnet18", "state_dict": key | query | queue, "optimizer": {"state": {}}}


def moco_v3(t: Tensors) -> dict[str, Any]:
    momentum = prefixed(momentum_copy(body(t)) | mlp("fc"), "module.momentum_encoder.")
    base = prefixed(body(t) | mlp("fc"), "module.base_encoder.")
    return {"state_dict": momentum | base | mlp("module.predictor")}


def vissl(t: Tensors) -> dict[str, Any]:
    trunk, heads = prefixed(body(t), "_feature_blocks."), {"0.clf.0.weight": torch.zeros(2)}
    return {"iteration": 5, "classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}}


def solo(t: Tensors) -> dict[str, Any]:
    rest = mlp("projector") | mlp("momentum_projector")
    rest |= {"classifier.weight": torch.zeros(2), "queue": torch.zeros(2)}
    momentum = prefixed(momentum_copy(body(t)), "momentum_backbone.")
    return {"state_dict": momentum | prefixed(body(t), "backbone.") | rest}


def solo_before_2022(t: Tensors) -> dict[str, Any]:
    rest = mlp("projector") | {"classifier.weight": torch.zeros(2)}
    return {"state_dict": prefixed(body(t), "encoder.") | rest}


def lightly(t: Tensors) -> dict[str, Any]:
    rest = mlp("projection_head.layers") | {"online_classifier.linear.weight": torch.zeros(2)}
    teacher = prefixed(momentum_copy(body(t)), "teacher_backbone.")
    return {"state_dict": teacher | prefixed(body(t), "backbone.") | rest}


def lightly_numbered(t: Tensors) -> dict[str, Any]:
    momentum = prefixed(numbered(momentum_copy(t)), "backbone_momentum.")
    return momentum | prefixed(numbered(t), "backbone.") | mlp("projection_head.layers")


def simsiam(t: Tensors) -> dict[str, Any]:
    return {"state_dict": prefixed(prefixed(body(t) | mlp("fc"), "encoder.") | mlp("predictor"), "module.")}


PEERS: dict[str, tuple[str, Callable[[Tensors], dict[str, Any]], list[str]]] = {
    "torchvision": ("torchvision", dict, ["fc.*"]),
    "torchvision's reference training": ("torchvision", lambda t: {"model": t, "epoch": 3}, ["fc.*"]),
    "pytorch/examples": ("torchvision", lambda t: {"state_dict": prefixed(t, "module.")}, ["fc.*"]),
    "moco": ("moco", moco, ["encoder_k.*", "encoder_q.fc.*", "queue", "queue_ptr"]),
    "moco-v3": ("moco", moco_v3, ["base_encoder.fc.*", "momentum_encoder.*", "predictor.*"]),
    "vissl": ("vissl", vissl, []),
    "vissl, trunk alone": (
        "vissl",
        lambda t: {"model_state_dict": prefixed(body(t), "_feature_blocks.")},
        [],
    ),
    "sthalles/SimCLR": (
        "simclr-pytorch",
        lambda t: {"state_dict": prefixed(body(t) | mlp("fc"), "backbone.")},
        ["backbone.fc.*"],
    ),
    "AndrewAtanov/simclr-pytorch": (
        "simclr-pytorch",
        lambda t: {"state_dict": prefixed(body(t), "convnet.") | {"projection.fc1.weight": torch.zeros(2)}},
        ["projection.*"],
    ),
    "Spijkervet/SimCLR": (
        "simclr-pytorch",
        lambda t: prefixed(body(t), "encoder.") | mlp("projector"),
        ["projector.*"],
    ),
    "leftthomas/SimCLR": ("simclr-pytorch", lambda t: prefixed(numbered(t), "f.") | mlp("g"), ["g.*"]),
    "simsiam": ("simsiam", simsiam, ["encoder.fc.*", "predictor.*"]),
    "swav": (
        "torchvision",
        lambda t: prefixed(
            body(t) | mlp("projection_head") | {"prototypes.weight": torch.zeros(2)}, "module."
        ),
        ["projection_head.*", "prototypes.*"],
    ),
    "solo-learn": (
        "solo-learn",
        solo,
        ["classifier.*", "momentum_backbone.*", "momentum_projector.*", "projector.*", "queue"],
    ),
    "solo-learn, older": ("solo-learn", solo_before_2022, ["classifier.*", "projector.*"]),
    "lightly": ("lightly", lightly, ["online_classifier.*", "projection_head.*", "teacher_backbone.*"]),
    "lightly, numbered": ("lightly", lightly_numbered, ["backbone_momentum.*", "projection_head.*"]),
    "lightly, backbone alone": ("lightly", numbered, []),
}


@pytest.mark.parametrize("peer", PEERS)
def test_a_peers_file_gives_its_backbone(peer: str, torchvision_state: Tensors) -> None:
    kind, make, left_out = PEERS[peer]
    network = ResNet("resnet18")
    result = recognise(PATH, make(torchvision_state), network.state_dict())
    fill(network, result.tensors, "resnet18", "theirs")
    assert result.kind == kind
    assert result.left_out == left_out
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, torchvision_state[name]), name


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.",
        "model.module.",
    ],
)  # fmt: skip
def test_what_wrappers_put_before_all_names_is_dropped(prefix: str, torchvision_state: Tensors) -> None:
    result = filled(ResNet("resnet18"), {"state_dict": prefixed(torchvision_state, prefix)})
    assert result.kind == "torchvision" and result.left_out == ["fc.*"]
    assert torch.equal(result.tensors["conv1.weight"], torchvision_state["conv1.weight"])


def test_a_compiled_part_of_a_peers_model_has_its_own_names(torchvision_state: Tensors) -> None:
    state = prefixed(body(torchvision_state), "module.encoder_q._orig_mod.")
    state["module.queue"] = torch.zeros(2, 4)
    result = filled(ResNet("resnet18"), state)
    assert result.kind == "moco" and result.left_out == ["queue"]


@pytest.mark.parametrize("prefix", ["module.", "model.", "net._orig_mod."])
def test_names_that_are_the_backbones_own_stay(prefix: str, torchvision_state: Tensors) -> None:
    wanted = prefixed(body(torchvision_state), prefix)
    assert recognise(PATH, wanted, wanted).tensors.keys() == wanted.keys()


def test_its_features_are_torchvisions() -> None:
    """ResNet-50 under numbered names."""
    torch.manual_seed(1)
    reference = torchvision.models.resnet50().eval()
    network = ResNet("resnet50").eval()
    state = prefixed(nn_sequential(reference), "backbone.")
    fill(network, recognise(PATH, state, network.state_dict()).tensors, "resnet50", "theirs")
    reference.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images).mean((2, 3)), reference(images))


def nn_sequential(model: torch.nn.Module) -> Tensors:
    return torch.nn.Sequential(*list(model.children())[:-1]).state_dict()


def test_counts_of_batches_may_be_absent_as_in_old_files(torchvision_state: Tensors) -> None:
    old = {name: t for name, t in torchvision_state.items() if not name.endswith("num_batches_tracked")}
    network = ResNet("resnet18")
    fill(network, recognise(PATH, old, network.state_dict()).tensors, "resnet18", "theirs")
    assert network.bn1.num_batches_tracked == 0
    assert torch.equal(network.bn1.weight, torchvision_state["bn1.weight"])


def filled(network: Backbone, state: dict[str, Any]) -> RecognisedWeights:
    result = recognise(PATH, state, network.state_dict())
    fill(network, result.tensors, network.name, "theirs")
    return result


def random_state(network: Backbone) -> Tensors:
    torch.manual_seed(4)
    state = network.state_dict()
    return {name: torch.rand_like(t) if t.is_floating_point() else t + 7 for name, t in state.items()}


def sobel() -> torch.nn.Sequential:
    """Build DeepCluster's filters: the mean of colours, then left minus right and above minus below."""
    grey, edges = torch.nn.Conv2d(3, 1, 1), torch.nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        for part in (grey.bias, edges.bias):
            assert part is not None
            part.zero_()
        grey.weight.fill_(1 / 3)
        left_right = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([1.0, 0.0, -1.0])
        edges.weight[0, 0], edges.weight[1, 0] = left_right, left_right.T
    return torch.nn.Sequential(grey, edges)


def deepcluster_state(tensors: Tensors) -> dict[str, Any]:
    state = {name.replace("features.", "features.module."): tensor for name, tensor in tensors.items()}
    state |= prefixed(sobel().state_dict(), "sobel.")
    state |= {"top_layer.weight": torch.zeros(5, 8), "top_layer.bias": torch.zeros(5)}
    return {"epoch": 500, "arch": "alexnet", "state_dict": state, "optimizer": {"state": {}}}


@torch.no_grad()
def test_deepclusters_alexnet_reads_our_gradients_as_its_own() -> None:
    network = AlexNet("alexnet", fc_width=8)
    network.features[0] = torch.nn.Conv2d(2, 96, 11, stride=4, padding=2)
    state = random_state(network)
    result = filled(network, deepcluster_state(state))
    assert result.kind == "deepcluster" and result.left_out == ["sobel.*", "top_layer.*"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, -state[name] if name == "features.0.weight" else state[name]), name
    # With one std for all colours, both inputs are equal except at the border, where DeepCluster pads.
    # conv1's first and last positions read it.
    images = torch.rand(2, 3, 67, 67)
    gradients = sobel()((images - 0.45) / 0.226)
    expected = torch.nn.functional.conv2d(
        gradients, state["features.0.weight"], state["features.0.bias"], stride=4, padding=2
    )
    inputs = SobelXY()(images, {}) / SOBEL_XY_STD
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert expected[inner].std() > 0.5
    torch.testing.assert_close(network.features[0](inputs)[inner], expected[inner], rtol=1e-4, atol=1e-4)


def test_deepclusters_without_sobel_or_with_another() -> None:
    network = AlexNet("alexnet", fc_width=8)
    tensors = random_state(network)
    state = deepcluster_state(tensors)
    for part in ("sobel.0.weight", "sobel.0.bias", "sobel.1.weight", "sobel.1.bias"):
        del state["state_dict"][part]
    assert filled(network, state).left_out == ["top_layer.*"]
    assert torch.equal(network.state_dict()["features.0.weight"], tensors["features.0.weight"])
    network.features[0] = torch.nn.Conv2d(2, 96, 11, stride=4, padding=2)
    state = deepcluster_state(random_state(network))
    state["state_dict"]["sobel.1.weight"] *= -1
    with pytest.raises(ValueError, match="sobel.1.weight is not DeepCluster's"):
        recognise(PATH, state, network.state_dict())


@torch.no_grad()
def test_rotnets_alexnet_computes_ours() -> None:
    """RotNet's lists include the pools. The file has the key "network" and no counts of batches."""

    def block(inputs: int, width: int, kernel: int, **place: int) -> torch.nn.Sequential:
        conv = torch.nn.Conv2d(inputs, width, kernel, **place)  # type: ignore[arg-type]
        return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU())

    def pool() -> torch.nn.MaxPool2d:
        return torch.nn.MaxPool2d(3, 2)

    linears: list[torch.nn.Module] = [torch.nn.Flatten()]
    for inputs in (9216, 8):
        linears += [torch.nn.Linear(inputs, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.ReLU()]
    blocks = torch.nn.ModuleList(
        [
            block(3, 64, 11, stride=4, padding=2), pool(), block(64, 192, 5, padding=2), pool(),
            block(192, 384, 3, padding=1), block(384, 256, 3, padding=1), block(256, 256, 3, padding=1),
            pool(),
            torch.nn.Sequential(*linears), torch.nn.Sequential(torch.nn.Linear(8, 4)),
        ]
    ).eval()  # fmt: skip
    torch.manual_seed(5)
    for part in blocks.modules():
        if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    state = {name: t for name, t in blocks.state_dict().items() if not name.endswith("num_batches_tracked")}
    network = AlexNet("alexnet_rotnet", fc_width=8).eval()
    result = filled(network, {"epoch": 50, "network": prefixed(state, "_feature_blocks.")})
    assert result.kind == "rotnet" and result.left_out == ["_feature_blocks.9.*"]
    expected = images = torch.randn(1, 3, 224, 224)
    for rotnet_block in list(blocks)[:-1]:
        expected = rotnet_block(expected)
    assert expected.std() > 0 and torch.equal(network(images).flatten(1), expected)


def test_vgg16_of_torchvision_deepcluster_and_timm() -> None:
    network = VGG(fc_width=8)
    tensors = random_state(network)
    last = {"classifier.6.weight": torch.zeros(5, 8), "classifier.6.bias": torch.zeros(5)}
    timm_tensors = {
        "pre_logits.fc1.weight": tensors["classifier.0.weight"].view(8, 512, 7, 7),
        "pre_logits.fc1.bias": tensors["classifier.0.bias"],
        "pre_logits.fc2.weight": tensors["classifier.3.weight"].view(8, 8, 1, 1),
        "pre_logits.fc2.bias": tensors["classifier.3.bias"],
    } | {name: tensor for name, tensor in tensors.items() if name.startswith("features.")}
    for kind, state, left_out in (
        ("torchvision", tensors | last, ["classifier.6.*"]),
        ("deepcluster", deepcluster_state(tensors), ["sobel.*", "top_layer.*"]),
        ("timm", timm_tensors | {"head.fc.weight": torch.zeros(5, 8)}, ["head.*"]),
    ):
        network.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
        result = filled(network, state)
        assert (result.kind, result.left_out) == (kind, left_out)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_the_small_resnet_and_the_mlp_by_torchvisions_names(torchvision_state: Tensors) -> None:
    """solo-learn replaces the first convolution for CIFAR. SimCLR without the hidden layer has no B6."""
    small = torchvision_state | {"conv1.weight": torch.rand(64, 3, 3, 3)}
    network = ResNet("resnet18_cifar")
    assert filled(network, solo(small)).kind == "solo-learn"
    assert torch.equal(network.conv1.weight, small["conv1.weight"])
    assert "lacks 6 of the 324 tensors of resnet50_mlp (mlp.0.weight" in refusal(
        torchvision.models.resnet50().state_dict(), "resnet50_mlp"
    )


def refusal(state: dict[str, Any], name: str = "resnet18") -> str:
    network = ResNet(name)
    with pytest.raises(ValueError) as excinfo:
        fill(network, recognise(PATH, state, network.state_dict()).tensors, name, f"{PATH}, read")
    assert "\n" not in str(excinfo.value)
    return str(excinfo.value)


def test_what_does_not_fit_is_named(torchvision_state: Tensors) -> None:
    less = {name: t for name, t in torchvision_state.items() if not name.startswith("layer4.1.")}
    assert "lacks 12 of the 120 tensors of resnet18 (layer4.1.conv1.weight" in refusal(less)
    line = refusal(torchvision_state | {"aux.weight": torch.zeros(2)})
    assert "neither of the backbone nor of a head (aux.weight)" in line
    assert "lacks" in refusal(torchvision_state, "resnet50")
    assert "tensors of resnet50" in refusal(torchvision_state, "resnet50")
    cifar = torchvision_state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    words = "1 tensor of other shapes than resnet18 (conv1.weight (64, 3, 3, 3) for (64, 3, 7, 7))"
    assert words in refusal(cifar)
    assert "holds no tensors by name (its keys: epoch, args)" in refusal({"epoch": 3, "args": "x"})
    # leftthomas's own network is another backbone, without a max-pool and with a smaller first convolution.
    assert "f.3.0.weight" in refusal(
        prefixed({"0.weight": torchvision_state["conv1.weight"], "3.0.weight": torch.zeros(2)}, "f.")
    )


def test_another_backbone_is_refused(torchvision_state: Tensors) -> None:
    assert "layer1.0.conv3.weight" in refusal(torchvision.models.resnet50().state_dict())
