"""Blocks of a vision transformer that hand on maps instead of tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override


def maps_of(tokens: Tensor, height: int, width: int, num_prefix: int) -> Tensor:
    """Arrange tokens as maps, in channels-last memory.

    The class token and the registers have no position. They become channels behind those of the patches,
    equal at all positions. So the map alone holds all that the next block reads, and its mean is the mean of
    the patches beside the class token.

    Args:
        tokens: [B, num_prefix + height * width, C], the prefix first.
        height: Rows of patches.
        width: Columns of patches.
        num_prefix: The number of tokens without a position.

    Returns:
        [B, (1 + num_prefix) * C, height, width].
    """
    prefix = tokens[:, :num_prefix].flatten(1)[:, None].expand(-1, height * width, -1)
    return torch.cat((tokens[:, num_prefix:], prefix), 2).unflatten(1, (height, width)).permute(0, 3, 1, 2)


def tokens_of(maps: Tensor, num_prefix: int) -> Tensor:
    """Return the tokens that `maps_of` arranged."""
    vectors = maps.permute(0, 2, 3, 1).flatten(1, 2)
    width = vectors.shape[2] // (1 + num_prefix)
    prefix = vectors[:, 0, width:].reshape(len(maps), num_prefix, width)
    return torch.cat((prefix, vectors[:, :, :width]), 1)


# What timm's VisionTransformer._pos_embed reads of its network. dist_token is DeiT's second class token.
_READ = ("cls_token", "reg_token", "dist_token", "pos_embed", "pos_drop", "patch_embed", "patch_drop",
         "norm_pre", "num_prefix_tokens", "no_embed_class", "dynamic_img_size")  # fmt: skip


class Embedding(nn.Module):
    """The layers of timm's vision transformer before its transformer blocks.

    It holds the network's own layers and tokens, but not the network, whose other weights are not its own.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        for name in _READ:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        # It adds the class token and the positions. Of its network it reads the attributes above.
        self.embed: Callable[[nn.Module, Tensor], Tensor] = type(network)._pos_embed  # type: ignore[attr-defined]

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return maps of tokens for images [B, C, H, W]."""
        parts: Any = self
        patches = parts.patch_embed(images)  # [B, h, w, C]
        tokens = parts.norm_pre(parts.patch_drop(self.embed(self, patches)))
        return maps_of(tokens, patches.shape[1], patches.shape[2], parts.num_prefix_tokens)


class OnTokens(nn.Module):
    """Layers that read and return tokens, as a block that reads and returns maps."""

    def __init__(self, layers: Sequence[nn.Module], num_prefix: int):
        super().__init__()
        self.layers, self.num_prefix = nn.Sequential(*layers), num_prefix

    @override
    def forward(self, maps: Tensor) -> Tensor:
        tokens = self.layers(tokens_of(maps, self.num_prefix))
        return maps_of(tokens, maps.shape[2], maps.shape[3], self.num_prefix)
