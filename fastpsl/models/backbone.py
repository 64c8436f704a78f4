"""The base class of backbones, which are sequences of blocks."""

from torch import Tensor, nn
from typing_extensions import override


def check_size(side_px: int, min_px: int) -> None:
    """Raise ValueError if images of `side_px` are smaller than the network's `min_px`."""
    if side_px < min_px:
        raise ValueError(
            f"images of {side_px} px: this backbone reads {min_px} px and more; choose a larger size, or "
            "another --backbone"
        )


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
