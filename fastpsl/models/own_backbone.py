"""A module of the user's own, or of torchvision, as a backbone: `--backbone FILE.py:CLASS`."""

import copy
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.console.words import pasted
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import first_convolution, read_channels
from fastpsl.models.names import TIMM


class Wrapped(Backbone):
    """A backbone whose tensors are those of one network, under that network's own names.

    Files of weights and exports therefore have the names that the network's library knows.
    """

    def __init__(self, name: str, network: nn.Module):
        super().__init__()
        self.name, self.network = name, network

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.network.state_dict(*args, **kwargs)

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        return self.network.load_state_dict(state_dict, strict, assign)


def reason_of(error: Exception) -> str:
    """Return an error's text on one line, at most 160 characters, for our own message."""
    return " ".join(str(error).split())[:160] or type(error).__name__


# What a layer raises for an image that it cannot read.
UNREADABLE = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


def image_of(network: nn.Module, height: int, width: int) -> Tensor:
    """Return an image, [1, C, height, width], that a network's first convolution reads."""
    found = first_convolution(network)
    assert found is not None
    _, convolution = found
    return _image((1, convolution.in_channels, height, width), convolution.weight.device)


def _image(size: tuple[int, ...], device: torch.device) -> Tensor:
    """Return an image whose pixels differ, without a random draw."""
    return torch.linspace(-1, 1, prod(size), device=device).mul(99).sin().reshape(size)


_GUIDE = "https://fastpsl.github.io/fastpsl/how_to/own_backbone.html"
# Files of torchvision.models, and a model of timm of the same kind, which is cut into blocks.
_TIMM_LIKE = {
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "inception": "inception_v3",
    "mnasnet": "mnasnet_100",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3": "mobilenetv3_large_100",
    "regnet": "regnety_004",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "vision_transformer": "vit_base_patch16_224",
}
# The side of the images of the first pass, unless the network needs larger ones.
CHECK_PX = 64


class AsMaps(nn.Module):
    """A layer that turns vectors [B, C] into maps [B, C, 1, 1], and returns maps as they are."""

    @override
    def forward(self, outputs: Any) -> Tensor:
        if isinstance(outputs, Tensor) and outputs.dim() in (2, 4):
            return outputs if outputs.dim() == 4 else outputs[:, :, None, None]
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise ValueError(
            f"forward() of the backbone returned {shape}; let it return a tensor [B, C, h, w] or [B, C]"
        )


def _own_blocks(network: Any) -> list[nn.Module]:
    return list(network.blocks())


def _one_block(network: nn.Module) -> list[nn.Module]:
    return [nn.Sequential(network, AsMaps())]


def cut_of_torchvision(network: nn.Module) -> Callable[[Any], list[nn.Module]] | None:
    """Return the function that cuts torchvision's ResNet or VGG; None for other networks."""
    if not type(network).__module__.startswith("torchvision."):
        return None  # without an import of torchvision, which takes seconds
    from fastpsl.models.torchvision_networks import CUTS

    return CUTS.get(type(network))


def _cut_of(network: nn.Module) -> Callable[[Any], list[nn.Module]]:
    """Return the function that cuts a network into its blocks."""
    method = getattr(network, "blocks", None)
    if callable(method) and not isinstance(method, nn.Module):
        return _own_blocks
    return cut_of_torchvision(network) or _one_block


class OwnBackbone(Wrapped):
    """A user's module, as docs/how_to/own_backbone.md describes it.

    - One with `blocks()` and `channels` says how it is cut. `block_names` and `min_px` are optional. A
      `Backbone` is such a module, but any torch.nn.Module will do.
    - torchvision's ResNets and VGGs are cut as ours are, without the last linear layer.
    - Any other is one block.
    """

    why_uncapturable = "an own backbone may decide by values of Python, which a graph keeps; try --graph on"

    def __init__(self, name: str, num_channels: int = 3, network: nn.Module | None = None):
        """Take the module, or run the file and build it; and check it with one forward pass."""
        is_given = network is not None
        network = network or made(name)
        super().__init__(name, network)
        self._num_channels, self._cut = num_channels, _cut_of(network)
        if cut_of_torchvision(network):
            from fastpsl.models.torchvision_networks import prepare

            prepare(network)
        if num_channels != 3 and not is_given:
            if first_convolution(network) is None:
                raise self._wrong(
                    f"it has no convolution that could read {num_channels} channels; let it begin with a "
                    "torch.nn.Conv2d"
                )
            read_channels(network, num_channels)
        self._read_attributes()
        blocks = self.blocks()
        self._check_parameters(blocks)
        with _unchanged(self):
            self.eval()
            self._check_outputs(blocks)
        self._check_state()

    @override
    def blocks(self) -> list[nn.Module]:
        return self._cut(self.network)

    def _wrong(self, problem: str) -> ValueError:
        return ValueError(f"--backbone {self.name}: {problem} ({_GUIDE})")

    def _read_attributes(self) -> None:
        """Set `channels`, `block_names` and `min_px`, and check that they fit to `blocks`."""
        network: Any = self.network
        if self._cut is _one_block and type(network).forward is nn.Module.forward:
            raise self._wrong(
                "it has no method blocks() and no forward(); give it one that returns the list of its blocks"
            )
        try:
            blocks = self.blocks()
        except Exception as error:
            raise_of_the_system(f"--backbone {self.name}", error)
            raise self._wrong(f"blocks() failed: {reason_of(error)}") from error
        if not blocks or not all(isinstance(block, nn.Module) for block in blocks):
            raise self._wrong("blocks() must return one torch.nn.Module or more, in a list")
        if self._cut is _own_blocks:
            channels: Any = getattr(network, "channels", None)
            are_several = isinstance(channels, tuple | list) and len(channels) == len(blocks)
            if not are_several or not all(isinstance(number, Integral) for number in channels):
                raise self._wrong(
                    f"its channels are {channels}; give a tuple of {len(blocks)} whole numbers, one for each "
                    "block"
                )
            self.channels = tuple(map(int, channels))
        default = tuple(f"B{number}" for number in range(1, len(blocks) + 1))
        names = getattr(network, "block_names", default)
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise self._wrong(f"its block_names are {names!r}; give a tuple of texts, one for each block")
        self.block_names = tuple(names)
        if len(self.block_names) != len(blocks):
            raise self._wrong(
                f"it has {len(blocks)} blocks and {len(self.block_names)} block_names; give as many"
            )
        self.min_px = getattr(network, "min_px", 1)
        if not isinstance(self.min_px, int) or self.min_px < 1:
            raise self._wrong(f"its min_px is {self.min_px!r}; give a whole number from 1")

    def _check_parameters(self, blocks: list[nn.Module]) -> None:
        """Check that each parameter of the network is in exactly one block, and no other is in any."""
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        if not names:
            raise self._wrong("it has no parameters; assign its layers to self after super().__init__()")
        owner: dict[nn.Parameter, int] = {}
        for number, block in enumerate(blocks, start=1):
            for name, parameter in block.named_parameters():
                if parameter not in names:
                    raise self._wrong(
                        f"{name} of B{number} is no parameter of the module; build layers in __init__ and "
                        "assign them to self"
                    )
                if parameter in owner:
                    raise self._wrong(
                        f"{names[parameter]} is in B{owner[parameter]} and in B{number}; a parameter belongs "
                        "to one block"
                    )
                owner[parameter] = number
        alone = [name for parameter, name in names.items() if parameter not in owner]
        if alone:
            raise self._wrong(
                f"{len(alone)} of its parameters are in no block, such as {alone[0]}, and would never learn; "
                "leave the layer out or put it into a block"
            )

    def require_gradients(self, numbers: Collection[int]) -> None:
        """Check that the parameters of some blocks, counted from 1, get gradients from the blocks' outputs.

        A pass in eval mode shows it; one in training mode follows for layers that run in that mode alone. The
        module and torch's random numbers stay as they are.
        """
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        wanted = {
            parameter: f"{names[parameter]} of B{number}"
            for number, block in enumerate(self.blocks(), start=1)
            for parameter in block.parameters()
            if number in numbers
        }
        device = next(self.network.parameters()).device
        with _unchanged(self), torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.requires_grad_(True)
            for training in (False, True):
                for part in self.modules():
                    part.training = training and not isinstance(part, _BatchNorm)
                if wanted:
                    self._learn_once(device)
                    wanted = {parameter: name for parameter, name in wanted.items() if parameter.grad is None}
        if wanted:
            raise self._wrong(
                f"{len(wanted)} of its parameters get no gradient, such as {next(iter(wanted.values()))}, "
                "and several ranks wait for that of each; use the layer in forward(), or leave it out"
            )

    def _learn_once(self, device: torch.device) -> None:
        """Set the gradients of the sum of all blocks' outputs for an image."""
        side = max(self.min_px, CHECK_PX)
        maps = _image((1, self._num_channels, side, side), device)
        outputs = list[Tensor]()
        with torch.enable_grad():
            for block in self.blocks():
                maps = block(maps)
                outputs.append(maps.sum())
            if learning := [output for output in outputs if output.requires_grad]:
                torch.autograd.backward(learning)

    def _check_state(self) -> None:
        """Check that a checkpoint can hold all that the network's state has."""
        for name, value in self.network.state_dict().items():
            is_dense = isinstance(value, Tensor) and value.layout == torch.strided
            if not is_dense or value.is_complex() or value.is_quantized:
                raise self._wrong(
                    f"{name} of its state_dict() is no dense tensor of real numbers, and a checkpoint has no "
                    "others; make it one, or leave it out of the state"
                )

    @torch.no_grad()
    def _check_outputs(self, blocks: list[nn.Module]) -> None:
        """Check what the blocks return for two images; set `channels` if the network does not tell them."""
        widths = list[int]()
        side = max(self.min_px, CHECK_PX)
        device = next(self.network.parameters()).device
        maps: Any = torch.zeros(2, self._num_channels, side, side, device=device)
        for number, block in enumerate(blocks, start=1):
            try:
                maps = block(maps)
            except Exception as error:
                raise_of_the_system(f"--backbone {self.name}", error)
                like = _like(self.network)
                raise self._wrong(
                    f"B{number} failed on images of {side} px, and min_px is {self.min_px}: "
                    f"{reason_of(error)}{f'; or give {like}' if like else ''}"
                ) from error
            are_maps = isinstance(maps, Tensor) and maps.dim() == 4 and len(maps) == 2
            widths.append(maps.shape[1] if are_maps else 0)
            wanted = self.channels[number - 1] if self._cut is _own_blocks else widths[-1] or "C"
            if widths[-1] != wanted:
                shape = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
                raise self._wrong(
                    f"B{number} returned {shape} for 2 images; its channels say [2, {wanted}, h, w]"
                )
        self.channels = tuple(widths)


def stages_refused(plan: str, name: str, network: nn.Module) -> ValueError:
    """Return the error for a plan of several stages and a module of one block."""
    remedy, like = "let its blocks() return more", _like(network)
    if _cut_of(network) is not _own_blocks:
        parts = _parts_in_code(network)
        such = "" if parts else ", such as"
        parts = parts or {"self.stem": 64, "self.body": 128}
        blocks, channels = ", ".join(parts), ", ".join(map(str, parts.values()))
        remedy = f"write two lines in its class{such} `blocks = lambda self: [{blocks}]` and "
        remedy += f"`channels = ({channels})`"
    return ValueError(
        f"--plan {plan}: {name} is one block, and stages need several; give --plan end_to_end"
        f"{f', or {like}' if like else ''}, or {remedy} ({_GUIDE})"
    )


def _like(network: nn.Module) -> str:
    """Return the option for a model of timm that is like one of torchvision; "" for other networks."""
    folder, _, file = type(network).__module__.rpartition(".")
    timm = _TIMM_LIKE.get(file) if folder == "torchvision.models" else None
    return f"--backbone {TIMM}{timm}" if timm else ""


@torch.no_grad()
def _parts_in_code(network: nn.Module) -> dict[str, int]:
    """Return code for blocks of a network, and their widths; nothing if no chain of its layers computes it.

    A block begins with a layer that has parameters and changes the maps' shape.
    """
    if first_convolution(network) is None:
        return {}
    network = copy.deepcopy(network).eval()
    side = max(getattr(network, "min_px", 1), CHECK_PX)
    maps = image_of(network, side, side)
    parts = list[tuple[list[str], int]]()
    try:
        expected = network(maps)
        for name, layer in network.named_children():
            before, maps = maps.shape, layer(maps)
            begins = maps.shape != before and next(layer.parameters(), None) is not None
            places = [] if begins or not parts else parts.pop()[0]
            parts.append(([*places, f"self[{name}]" if name.isdecimal() else f"self.{name}"], maps.shape[1]))
        if len(parts) < 2 or maps.dim() != 4 or not torch.equal(maps, expected):
            return {}
    except UNREADABLE:
        return {}
    codes = [places[0] if len(places) == 1 else f"nn.Sequential({', '.join(places)})" for places, _ in parts]
    return dict(zip(codes, (width for _, width in parts), strict=True))


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Give a network its modes, buffers and gradients again at the end."""
    modes = [(part, part.training) for part in network.modules()]
    parameters = [(each, each.requires_grad, each.grad) for each in network.parameters()]
    buffers = [
        (part, name, buffer, buffer.clone())
        for part in network.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    for parameter in network.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad, parameter.grad = requires_grad, grad
        for part, name, buffer, value in buffers:
            setattr(part, name, buffer.copy_(value))


def made(name: str) -> nn.Module:
    """Build the module that `name` tells of."""
    path_text, _, attribute = name.rpartition(":")
    path = Path(path_text)
    if path.suffix != ".py" or not attribute:
        raise ValueError(f"--backbone {name}: give FILE.py:CLASS, such as my_net.py:MyNet")
    if not path.is_file():
        raise ValueError(
            f"--backbone {name}: there is no file {path}; give --backbone "
            f"{pasted(f'NEW_PATH/{path.name}:{attribute}')}"
        )
    content = _content_of(name, path)
    maker = getattr(content, attribute, None)
    if not callable(maker):
        classes = [
            key for key, value in vars(content).items()
            if isinstance(value, type) and value.__module__ == content.__name__
        ]  # fmt: skip
        known = f"its classes are {', '.join(classes)}" if classes else "it has no class"
        raise ValueError(  # noqa: TRY004
            f"--backbone {name}: {path} has no class or function {attribute}; {known}"
        )
    try:
        network = maker()
    except Exception as error:
        raise_of_the_system(f"--backbone {name}", error)
        raise ValueError(
            f"--backbone {name}: {attribute}() failed ({reason_of(error)}); it must work without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(  # noqa: TRY004
            f"--backbone {name}: {attribute}() returned a {type(network).__name__}; let it return a "
            "torch.nn.Module"
        )
    return network


def _content_of(name: str, path: Path) -> Any:
    """Run a Python file as a module. It can import the files beside it."""
    spec = importlib.util.spec_from_file_location(f"own_backbone_{path.stem}", path)
    assert spec is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        # Without Python's cache, which takes a file of the same size and second for unchanged.
        exec(compile(path.read_bytes(), path, "exec"), vars(module))  # noqa: S102
    except (Exception, SystemExit) as error:
        raise_of_the_system(path, error)
        raise ValueError(
            f"--backbone {name}: {path} cannot be run ({type(error).__name__}: {reason_of(error)}); "  # type: ignore[arg-type]
            "correct the file"
        ) from error
    finally:
        sys.path.remove(folder)
    return module
