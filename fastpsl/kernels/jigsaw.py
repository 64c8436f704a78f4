"""Jigsaw tiles: a grid of cells on each image, and a random square in each cell (PSL section 3.3.1).

The permutation of the tiles is drawn here. The task applies it to the tiles' embeddings: the backbone treats
all tiles alike, so one pass of it serves several permutations of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import MAX_WORDS, Keys, Slot, integers
from fastpsl.kernels.normalise import finish


@dataclass(frozen=True)
class JigsawTiles:
    """A grid of cells on each image, with a randomly placed tile in each cell and random permutations of the
    tiles.

    The permutations are drawn here (PSL, section 3.3.1). The task applies them to the tiles' embeddings, so
    one pass of the backbone serves several permutations of an image.

    Attributes:
        grid: The number of cells per side, 1 to 22.
        cell_px: The side of a cell, in pixels.
        tile_px: The side of a tile in pixels, at most `cell_px`.
        num_permutations: The size of the permutation set.
        permutations_per_image: The number of permutations drawn for each image, with replacement, 1 to 1,024.

    Raises:
        ValueError: A value is out of its range.
    """

    grid: int = 3
    cell_px: int = 75
    tile_px: int = 64
    num_permutations: int = 1
    permutations_per_image: int = 1

    def __post_init__(self) -> None:
        if self.grid < 1 or 2 * self.grid**2 > MAX_WORDS:
            raise ValueError(
                f"a jigsaw grid of {self.grid} given; allowed are 1 to {int((MAX_WORDS / 2) ** 0.5)}"
            )
        if not 1 <= self.tile_px <= self.cell_px:
            raise ValueError(
                f"tiles of {self.tile_px} px given for cells of {self.cell_px} px; allowed are "
                f"1 px to the cell's side: lower tile_px or raise cell_px"
            )
        if self.num_permutations < 1 or not 1 <= self.permutations_per_image <= MAX_WORDS:
            raise ValueError(
                f"{self.permutations_per_image} permutations per image of a set of "
                f"{self.num_permutations} given; allowed are a set of 1 and more, and 1 to "
                f"{MAX_WORDS} per image"
            )

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw the tiles' positions in their cells, and the permutations.

        Returns:
            A dict of "offsets", int64 [B, grid², 2], y and x from 0 to cell_px - tile_px; and "permutation",
            int64 [B, permutations_per_image].
        """
        num_tiles = self.grid**2
        offsets = integers(keys, Slot.TILES, 2 * num_tiles, self.cell_px - self.tile_px + 1)
        permutation = integers(keys, Slot.PERMUTATION, self.permutations_per_image, self.num_permutations)
        return {"offsets": offsets.reshape(-1, num_tiles, 2), "permutation": permutation}

    def check(self, height: int, width: int) -> None:
        """Raise ValueError if the cells do not fit into images of this size."""
        window_px = self.grid * self.cell_px
        if min(height, width) < window_px:
            raise ValueError(
                f"images of {height} x {width} px given to a jigsaw of {self.grid} x {self.grid} cells of "
                f"{self.cell_px} px; allowed are {window_px} px and more: raise the crop's size_px or "
                f"lower cell_px"
            )

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self.check(*shape[2:])
        return shape[0] * self.grid**2, shape[1], self.tile_px, self.tile_px

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Cut tiles [B * grid², C, tile_px, tile_px] from cells at the top left of images [B, C, H, W].

        Tile t of image b, counted along the rows, is at b * grid² + t.
        """
        num_images, num_channels, height, width = images.shape
        self.check(height, width)
        device, num_tiles = images.device, self.grid**2
        cells = torch.arange(num_tiles, device=device)
        within = torch.arange(self.tile_px, device=device)
        # Tops and lefts are [B, T]. Each tile pixel becomes one flat pixel number, which gathers all channels
        # together.
        tops = cells // self.grid * self.cell_px + draw["offsets"][:, :, 0]
        lefts = cells % self.grid * self.cell_px + draw["offsets"][:, :, 1]
        rows = tops[:, :, None] + within + torch.arange(num_images, device=device)[:, None, None] * height
        pixels = rows[:, :, :, None] * width + (lefts[:, :, None] + within)[:, :, None, :]
        flat = finish(images, images.dtype).permute(0, 2, 3, 1).reshape(-1, num_channels)
        tiles = flat.index_select(0, pixels.reshape(-1))
        return tiles.view(num_images * num_tiles, self.tile_px, self.tile_px, num_channels).permute(
            0, 3, 1, 2
        )
