"""What a backbone is: blocks one after another."""

from torch import Tensor, nn
from typing_extensions import override


def check_size(side_px: int, min_px: int) -> None:
    """ValueError where the network would come to an end of the picture before it comes to its own."""
    if side_px < min_px:
        raise ValueError(
            f"pictures of {side_px} px: this backbone reads {min_px} px and more; give larger views, or another --backbone"
        )


class Backbone(nn.Module):
    """Blocks B1, B2, …: the output of each, [B,C,h,w], is the next one's input. Plans, probes and exports speak of blocks alone.

    name: as `make_backbone` has it. channels: the output width of each block. block_names: what the network's paper calls them.
    min_px: the smallest side of a picture that all blocks can read.
    """

    name: str
    channels: tuple[int, ...]
    block_names: tuple[str, ...]
    min_px: int = 1

    def blocks(self) -> list[nn.Module]:
        """B1, B2, … in order, sharing this module's parameters."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        return len(self.channels)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W] to the output of the last block."""
        for block in self.blocks():
            images = block(images)
        return images
