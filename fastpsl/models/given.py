"""A module that a program gives as a backbone, instead of a name: what records call it, and its weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from fastpsl.files.digest import sha256_of_bytes
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.models.backbone import Backbone, unusable
from fastpsl.models.convolutional import VGG, first_convolution, read_channels
from fastpsl.models.names import MODULE, TIMM
from fastpsl.models.own_backbone import (
    UNREADABLE,
    OwnBackbone,
    Wrapped,
    cut_of_torchvision,
    image_of,
    made,
    reason_of,
    stages_refused,
)


class Given(str):
    """The name of a backbone, together with a copy of the module that a program gave.

    Records, messages and command lines have the name alone. It is that of the same network, such as
    "timm/resnet18", if there is one. Otherwise it begins with "module:", and whoever reads the run gives the
    module again.
    """

    module: nn.Module


def given(module: object) -> Given:
    """Return the name of a module, which carries a copy of it; ValueError for what is no module."""
    if isinstance(module, Given):
        return module
    if not isinstance(module, nn.Module):
        raise ValueError(  # noqa: TRY004 - a user error
            f"--backbone is of type {type(module).__name__}: give a name, or a torch.nn.Module"
        )
    while (inner := _inside(module)) is not module:
        module = inner
    if isinstance(held := getattr(module, "backbone", None), Backbone):  # by a fastpsl.Model
        module = held
    assert isinstance(module, nn.Module)
    name = f"{MODULE}{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, Backbone):
        name = getattr(module, "name", name)
        network = _copied(name, module.network if isinstance(module, Wrapped) else module)
    else:
        network = _copied(name, module)
        name = _name_in_timm(network) or _name_of_ours(network) or name
    found = Given(name)
    found.module = network
    return found


def _inside(module: nn.Module) -> nn.Module:
    """Return what DDP or torch.compile wraps, else the module itself."""
    inner: Any = getattr(module, "_orig_mod", module)
    return inner.module if isinstance(inner, nn.DataParallel | DistributedDataParallel) else inner


def backbone_of(name: Given, num_channels: int) -> Backbone:
    """Return a backbone of a copy of the module, if its network has no other name."""
    network = copy.deepcopy(name.module)
    num = _num_channels(network)
    if num is not None and num != num_channels:
        raise _other_channels(name, num, num_channels)
    if _is_whole_model_of_timm(network) and not hasattr(type(network), "blocks"):
        from fastpsl.models.timm_backbone import TimmBackbone

        return TimmBackbone(name, num_channels, network)
    return OwnBackbone(name, num_channels, network)


def take_weights(backbone: Backbone, name: Given) -> None:
    """Copy the module's weights to a backbone of the same network."""
    weights = _weights_for(backbone, name.module)
    if weights is None:
        num, wanted = _num_channels(name.module), _num_channels(backbone)
        if num and wanted and num != wanted:
            raise _other_channels(name, num, wanted)
        raise ValueError(f"--backbone {name}: its layers are not those of {name}; give it as it was made")
    backbone.load_state_dict({**backbone.state_dict(), **weights})


def stages_of_one_block(plan: str, name: str) -> ValueError:
    """Return the error for a plan of several stages and a module of one block, given or of a file."""
    return stages_refused(plan, name, name.module if isinstance(name, Given) else made(name))


def module_record(name: Given) -> dict[str, str]:
    """Return what must be equal on resume: of a network without another name, its class and its shapes."""
    if not name.startswith(MODULE):
        return {}
    tensors = name.module.state_dict()
    shapes = "; ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in tensors.items())
    architecture = _architecture(name.module)
    made = f", {architecture} of timm with other arguments" if architecture else ""
    digest = sha256_of_bytes(shapes.encode())[:16]
    return {"module": f"{name.removeprefix(MODULE)}{made}, {len(tensors)} tensors, shapes {digest}"}


def _num_channels(network: nn.Module) -> int | None:
    """Return the number of channels that the first convolution reads; None without one."""
    first = first_convolution(network)
    return None if first is None else first[1].in_channels


def _other_channels(name: str, num: int, wanted: int) -> ValueError:
    return ValueError(
        f"--backbone {name}: it reads images of {num} channels, and this recipe's have {wanted}; give a "
        f"module that reads {wanted}"
    )


def _copied(name: str, module: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in float32, in train mode and without gradients' history."""
    try:
        network = copy.deepcopy(module)
    except Exception as error:
        raise_of_the_system(f"--backbone {name}", error)
        raise ValueError(
            f"--backbone {name}: it cannot be copied ({reason_of(error)}); give it before it has computed"
        ) from error
    for key, tensor in network.state_dict().items():
        if is_lazy(tensor):
            raise ValueError(f"--backbone {name}: {key} has no shape yet; give it after it has computed once")
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise ValueError(f"--backbone {name}: its weights are on the device meta; give it with weights")
    network = network.cpu().float().train()
    if bad := unusable(network):
        raise ValueError(f"--backbone {name}: it has {bad}; give a module of a training that did not diverge")
    return network


def _architecture(network: nn.Module) -> str:
    """Return the name of a model of timm, or "" for other networks."""
    config = getattr(network, "pretrained_cfg", None)
    return str(config.get("architecture") or "") if isinstance(config, Mapping) else ""


def _is_whole_model_of_timm(network: nn.Module) -> bool:
    """Return whether timm made it, and not as the features_only of a model."""
    return hasattr(network, "forward_features") and hasattr(network, "feature_info")


@torch.no_grad()
def _name_in_timm(network: nn.Module) -> str:
    """Return timm/NAME if timm makes the same network by this name alone, else "".

    Its layers must be the same, and compute the same from the same weights.
    """
    architecture = _architecture(network)
    if not architecture:
        return ""
    from fastpsl.models.timm_backbone import TimmBackbone, drops_patches

    theirs: Any = network
    name, is_whole = TIMM + architecture, _is_whole_model_of_timm(network)
    with torch.random.fork_rng(devices=[]):
        ours: Any = TimmBackbone(name, _num_channels(network) or 3).eval()
    weights = _weights_for(ours, network)
    if weights is not None:
        ours.load_state_dict({**ours.state_dict(), **weights})
        image = image_of(network, *theirs.pretrained_cfg["input_size"][1:])
        theirs.eval()
        try:
            if is_whole:
                is_same = torch.equal(ours.network.forward_features(image), theirs.forward_features(image))
            else:
                is_same = torch.equal(ours(image), theirs(image)[-1])
        except UNREADABLE:  # by a network for images of another size
            is_same = False
        theirs.train()
        if is_same and not drops_patches(network):
            return name
    if not is_whole:
        raise ValueError(
            f"--backbone {name}: with features_only it lacks layers, or it was made with other arguments; "
            f"give timm.create_model({architecture!r})"
        )
    return ""


def _name_of_ours(network: nn.Module) -> str:
    """Return the name of our backbone that has the blocks of torchvision's ResNet or VGG, else ""."""
    if cut_of_torchvision(network) is None:
        return ""
    from fastpsl.models.resnet import VARIANTS, ResNet

    for name in (*VARIANTS, "vgg16"):
        with torch.device("meta"):
            ours = VGG() if name == "vgg16" else ResNet(name)
            if (num := _num_channels(network)) not in (None, 3):
                read_channels(ours, num)
        if _weights_for(ours, network) is not None:
            return name
    return ""


def _settings(layer: nn.Module) -> tuple[str, dict[str, float], set[str]]:
    """Return a layer's arguments, rates and parts. A rate of 0 often has no part, or an nn.Identity."""
    rates = {name: value for name, value in vars(layer).items() if isinstance(value, float)}
    parts = {name for name, part in layer.named_children() if not isinstance(part, nn.Identity)}
    return layer.extra_repr(), rates, parts


def _weights_for(ours: Backbone, network: nn.Module) -> dict[str, Tensor] | None:
    """Return the tensors of the blocks of `ours`, from another module; None if its layers are others.

    timm's features_only has `stages_0` for `stages.0`.
    """
    target = ours.network if isinstance(ours, Wrapped) else ours
    layers, theirs = dict(network.named_modules()), network.state_dict()

    def of_theirs(path: str) -> str:
        return path if path in layers else path.replace(".", "_", 1)

    inside = {layer for block in ours.blocks() for layer in block.modules()}
    for path, layer in target.named_modules():
        other = layers.get(of_theirs(path))
        if layer not in inside or (other is None and isinstance(layer, nn.Sequential | nn.Identity)):
            continue  # no layer of a block, or one that computes nothing
        if other is None or type(other) is not type(layer) or _settings(other) != _settings(layer):
            return None
    used = {tensor for block in ours.blocks() for tensor in (*block.parameters(), *block.buffers())}
    found = dict[str, Tensor]()
    for key, tensor in target.state_dict(keep_vars=True).items():
        path, dot, leaf = key.rpartition(".")
        other = theirs.get(of_theirs(path) + dot + leaf)
        if tensor in used:
            if other is None or other.shape != tensor.shape:
                return None
            found[key] = other
    return found
