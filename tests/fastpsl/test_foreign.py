"""Peers' checkpoints, made small from torchvision's tensors under the peers' names: the backbone comes out whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from fastpsl.backbones.resnet import ResNet
from fastpsl.evaluation.foreign import recognise
from fastpsl.evaluation.weights import fill

Tensors = dict[str, Tensor]
PATH = Path("theirs.pth")


@pytest.fixture(scope="module")
def theirs() -> Tensors:
    """torchvision's ResNet-18, fc and all, with running statistics of its own."""
    torch.manual_seed(3)
    state = torchvision.models.resnet18().state_dict()
    return {name: torch.rand_like(t) if t.is_floating_point() else t + 7 for name, t in state.items()}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def other(tensors: Tensors) -> Tensors:
    """A copy that must not be taken for the backbone: a momentum encoder."""
    return {name: tensor + 1 for name, tensor in tensors.items()}


def body(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}


def numbered(tensors: Tensors) -> Tensors:
    """The names of nn.Sequential(*list(resnet.children())[:-1])."""
    children = [name for name, _ in torchvision.models.resnet18().named_children()]
    split = ((name.partition(".")[0], name.partition(".")[2], t) for name, t in body(tensors).items())
    return {f"{children.index(child)}.{rest}": tensor for child, rest, tensor in split}


def mlp(prefix: str) -> Tensors:
    return {f"{prefix}.{i}.{part}": torch.zeros(2) for i in (0, 2) for part in ("weight", "bias")}


def moco(t: Tensors) -> dict[str, Any]:
    queue = {"module.queue": torch.zeros(2, 4), "module.queue_ptr": torch.zeros(1)}
    query = prefixed(body(t) | mlp("fc"), "module.encoder_q.")
    key = prefixed(other(body(t)) | mlp("fc"), "module.encoder_k.")
    return {"epoch": 1, "arch": "resnet18", "state_dict": key | query | queue, "optimizer": {"state": {}}}


def moco_v3(t: Tensors) -> dict[str, Any]:
    momentum = prefixed(other(body(t)) | mlp("fc"), "module.momentum_encoder.")
    base = prefixed(body(t) | mlp("fc"), "module.base_encoder.")
    return {"state_dict": momentum | base | mlp("module.predictor")}


def vissl(t: Tensors) -> dict[str, Any]:
    trunk, heads = prefixed(body(t), "_feature_blocks."), {"0.clf.0.weight": torch.zeros(2)}
    return {"iteration": 5, "classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}}


def solo(t: Tensors) -> dict[str, Any]:
    rest = (
        mlp("projector")
        | mlp("momentum_projector")
        | {"classifier.weight": torch.zeros(2), "queue": torch.zeros(2)}
    )
    return {
        "state_dict": prefixed(other(body(t)), "momentum_backbone.") | prefixed(body(t), "backbone.") | rest
    }


def solo_before_2022(t: Tensors) -> dict[str, Any]:
    return {
        "state_dict": prefixed(body(t), "encoder.") | mlp("projector") | {"classifier.weight": torch.zeros(2)}
    }


def lightly(t: Tensors) -> dict[str, Any]:
    rest = mlp("projection_head.layers") | {"online_classifier.linear.weight": torch.zeros(2)}
    return {
        "state_dict": prefixed(other(body(t)), "teacher_backbone.") | prefixed(body(t), "backbone.") | rest
    }


def lightly_numbered(t: Tensors) -> dict[str, Any]:
    momentum = prefixed(numbered(other(t)), "backbone_momentum.")
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
def test_a_peers_file_gives_its_backbone(peer: str, theirs: Tensors) -> None:
    kind, make, left_out = PEERS[peer]
    ours = ResNet("resnet18")
    found = recognise(PATH, make(theirs), ours.state_dict())
    fill(ours, found.tensors, "resnet18", "theirs")
    assert found.kind == kind
    assert found.left_out == left_out
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_its_features_are_torchvisions() -> None:
    """ResNet-50 through the numbered names: the tensors stand where they stood."""
    torch.manual_seed(1)
    theirs = torchvision.models.resnet50().eval()
    ours = ResNet("resnet50").eval()
    state = prefixed(nn_sequential(theirs), "backbone.")
    fill(ours, recognise(PATH, state, ours.state_dict()).tensors, "resnet50", "theirs")
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images).mean((2, 3)), theirs(images))


def nn_sequential(model: torch.nn.Module) -> Tensors:
    return torch.nn.Sequential(*list(model.children())[:-1]).state_dict()


def test_counts_of_batches_may_be_absent_as_in_old_files(theirs: Tensors) -> None:
    old = {name: t for name, t in theirs.items() if not name.endswith("num_batches_tracked")}
    ours = ResNet("resnet18")
    fill(ours, recognise(PATH, old, ours.state_dict()).tensors, "resnet18", "theirs")
    assert ours.bn1.num_batches_tracked == 0 and torch.equal(ours.bn1.weight, theirs["bn1.weight"])


def refusal(state: dict[str, Any], name: str = "resnet18") -> str:
    ours = ResNet(name)
    with pytest.raises(ValueError) as error:
        fill(ours, recognise(PATH, state, ours.state_dict()).tensors, name, f"{PATH}, read")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_named(theirs: Tensors) -> None:
    less = {name: t for name, t in theirs.items() if not name.startswith("layer4.1.")}
    assert "lacks 12 of the 120 tensors of resnet18 (layer4.1.conv1.weight" in refusal(less)
    assert "neither of the backbone nor of a head (aux.weight)" in refusal(
        theirs | {"aux.weight": torch.zeros(2)}
    )
    assert "lacks" in refusal(theirs, "resnet50") and "tensors of resnet50" in refusal(theirs, "resnet50")
    cifar = theirs | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    assert "conv1.weight of shape (64, 3, 3, 3), and resnet18 needs (64, 3, 7, 7)" in refusal(cifar)
    assert "holds no tensors by name (its keys: epoch, args)" in refusal({"epoch": 3, "args": "x"})
    # leftthomas's own network has no max-pool and a smaller first convolution: another backbone.
    assert "f.3.0.weight" in refusal(
        prefixed({"0.weight": theirs["conv1.weight"], "3.0.weight": torch.zeros(2)}, "f.")
    )


def test_another_backbone_is_refused(theirs: Tensors) -> None:
    assert "layer1.0.conv3.weight" in refusal(torchvision.models.resnet50().state_dict())
