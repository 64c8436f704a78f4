"""How blocks run one after another; compile_modes.py has other ways than the plain one."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Runner(Protocol):
    """A way to run blocks one after another: images to the output of the last, or to each one's."""

    def __call__(self, blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]: ...


def run_blocks(blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
    """Return the outputs of `every` block for images [B, C, H, W], or that of the last alone; blocks: one or more."""
    outputs = []
    for block in blocks:
        images = block(images)
        if every:
            outputs.append(images)
    return outputs or [images]
