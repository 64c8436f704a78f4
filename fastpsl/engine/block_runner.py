"""The plain way to run blocks in sequence. compile_modes.py has other ways."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Runner(Protocol):
    """A function that runs blocks in sequence, with the arguments and result of `run_blocks`."""

    def __call__(self, blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]: ...


def run_blocks(blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
    """Run blocks in sequence.

    Args:
        blocks: One or more blocks.
        images: The input of the first block, [B, C, H, W].
        every: Whether to return the output of every block instead of the last one's alone.

    Returns:
        The outputs.
    """
    outputs = []
    for block in blocks:
        images = block(images)
        if every:
            outputs.append(images)
    return outputs or [images]
