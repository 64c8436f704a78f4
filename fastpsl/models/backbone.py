"""The base class of backbones, which are sequences of blocks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.words import number_of
from fastpsl.models.foreign_weights import first_three


def check_size(side_px: int, min_px: int) -> None:
    """Raise ValueError if images of `side_px` are smaller than the network's `min_px`."""
    if side_px < min_px:
        raise ValueError(
            f"images of {side_px} px: this backbone reads {min_px} px and more; choose a larger size, or "
            "another --backbone"
        )


def cast_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights that autocast would convert in each step: of convolutions and linear layers."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)


def unusable(network: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> str:
    """Return which tensors a network cannot compute with, for an error message, or "" if there are none.

    `tensors` are to replace some of the network's own; None checks the network's own. A buffer may be
    infinite where the network's own is, as a mask of -inf.
    """
    own = network.state_dict(keep_vars=True)

    def is_bad(name: str, tensor: Tensor) -> bool:
        finite = tensor.isfinite()
        if not isinstance(own[name], nn.Parameter) and "running_" not in name:
            finite |= ~own[name].isfinite()
        return not finite.all() or (name.endswith("running_var") and bool((tensor < 0).any()))

    bad = [
        name
        for name, tensor in (own if tensors is None else tensors).items()
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and is_bad(name, tensor.detach())
    ]
    where = f"in {number_of(len(bad), 'tensor')} ({first_three(bad)})"
    return f"values that are not finite, or a running_var below 0, {where}" if bad else ""


class Backbone(nn.Module):
    """A sequence of blocks B1, B2, …, where each block's output [B, C, h, w] is the input of the next.

    Plans, evaluations and exports refer to blocks alone.

    Attributes:
        name: The name that `make_backbone` takes.
        channels: The number of output channels of each block.
        block_names: The names of the blocks in the network's paper.
        min_px: The smallest side of an image that all blocks can read, in pixels.
        why_untraceable: Why torch.compile and torch.fx cannot follow the blocks. Empty if they can.
        why_uncapturable: Why a step of the blocks is captured as a CUDA graph only if asked for. Empty if
            `--graph auto` captures it.
    """

    name: str
    channels: tuple[int, ...]
    block_names: tuple[str, ...]
    min_px: int = 1
    why_untraceable: str = ""
    why_uncapturable: str = ""

    def blocks(self) -> list[nn.Module]:
        """Return B1, B2, … in order. They share this module's parameters."""
        raise NotImplementedError

    def synchronise_batchnorms(self) -> None:
        """Turn all BatchNorms into SyncBatchNorms, in place."""
        nn.SyncBatchNorm.convert_sync_batchnorm(self)

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        return len(self.channels)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return the last block's output [B, channels[-1], h, w] from images [B, C, H, W]."""
        for block in self.blocks():
            images = block(images)
        return images
