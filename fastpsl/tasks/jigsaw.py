"""Train jigsaw puzzles in levels (PSL, section 3.3.1 and Table 1; section 4.1 "Jigsaw puzzle")."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.files.digest import sha256_of_bytes
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.files.untrusted import read_npy
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.classify import cross_entropies, scored

_NPY = b"\x93NUMPY"
_HEADER_BYTES = 8
_MAX_BYTES = 1 << 28  # of 9 pieces, all 362,880 permutations are 26 MB


def read_permutations(path: str | Path) -> np.ndarray:
    """Read a file of permutations.

    The first bytes of the file tell its kind. Files of `fastpsl permutations`, VISSL's
    hamming_perms_N_patches_9_max.npy and bbrattoli's permutations_N.npy are integer arrays that count from 0
    or from 1. Noroozi's permutations_701.bin and permutations_100_max.bin are little-endian int32: N, n, then
    N rows of n, which count from 1. In all of them, position j shows tile row[j].

    Args:
        path: The file.

    Returns:
        An int64 array [N, n] with values 0 … n - 1.

    Raises:
        ValueError: The file is something else, a row is no permutation, or two rows are equal.
    """
    try:
        with open(path, "rb") as file:
            is_npy = file.read(len(_NPY)) == _NPY
        stored = read_npy(Path(path), _MAX_BYTES) if is_npy else _read_bin(path)
    except (OSError, ValueError, EOFError) as error:
        raise_of_the_system(path, error)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{path}: cannot be read ({reason}); make one with `fastpsl permutations`") from None
    if stored.ndim != 2 or stored.dtype.kind not in "iu" or not stored.size:
        raise ValueError(
            f"{path}: holds {stored.dtype} {list(stored.shape)}; integers [N, pieces] are wanted, "
            "a permutation per row; make them with `fastpsl permutations`"
        )
    num_pieces, start = stored.shape[1], int(stored.min())
    rows = stored.astype(np.int64) - (1 if start == 1 else 0)
    bad_rows = np.flatnonzero((np.sort(rows, axis=1) != np.arange(num_pieces)).any(axis=1))
    if len(bad_rows):
        raise ValueError(
            f"{path}: row {bad_rows[0]} is no permutation of {num_pieces}: {stored[bad_rows[0]].tolist()}; "
            "each row must hold every number from 0 (or from 1) once"
        )
    num_different = len(np.unique(rows, axis=0))
    if num_different != len(rows):
        raise ValueError(
            f"{path}: {len(rows) - num_different} of {len(rows)} permutations repeat another; "
            "remove the copies"
        )
    return rows


def _read_bin(path: str | Path) -> np.ndarray:
    """Read int32 [N, n] as Noroozi's code does (MehdiNoroozi/JigsawPuzzleSolver, data_transformer.cpp)."""
    num_bytes = Path(path).stat().st_size
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(_HEADER_BYTES), "<i4")
        # The size is checked first, so that nothing is allocated by the header of another kind of file.
        if (
            len(header) < 2
            or header.min() < 1
            or num_bytes > _MAX_BYTES
            or num_bytes != _HEADER_BYTES + 4 * int(header[0]) * int(header[1])
        ):
            contents = f"its first two int32 are {header.tolist()}, its size is {num_bytes:,} bytes"
            raise ValueError(
                "neither an .npy file of numbers nor a .bin of int32 N, pieces and N rows of them: "
                f"{contents}"
            )
        return np.frombuffer(file.read(), "<i4").reshape(int(header[0]), int(header[1]))


def permutations_digest(permutations: np.ndarray) -> str:
    """Return 16 hexadecimal digits that identify a set of permutations in a run's record.

    Args:
        permutations: Integers [N, n].
    """
    return sha256_of_bytes(np.ascontiguousarray(permutations, np.int64).tobytes())[:16]


class Jigsaw(Task):
    """A task that predicts which of `counts[level - 1]` permutations shuffled the tiles of an image.

    Its source is PSL, section 3.3.1, Table 1 and section 4.1 "Jigsaw puzzle". Compared with the paper:

    - The paper stacks the tiles along the channels. Here, one shared backbone reads each tile and the
      embeddings are concatenated, as in its sources [23] and [38]. The reason: a 27-channel conv1 could not
      be probed on images.
    - The paper permutes tiles before the network. Here, embeddings are permuted after it. The backbone and
      the embedding are shared by all tiles and so commute with the permutation. One permutation per image
      therefore gives the paper's loss and gradients. Several (`permutations_per_image`) cost one pass of the
      backbone.
    - No image is made grey, as in the paper. Its sources make 30 to 66 % of images grey.

    Args:
        permutations: Integers [N, grid²] from 0. Position j of a puzzle shows tile permutations[label, j].
            The levels' sets are prefixes.
        counts: Number of permutations of each level, rising, from 2 to N.
        shorter_px: The image's shorter side after resizing, in pixels.
        grid: Cells per side.
        cell_px: Side of a cell, in pixels.
        tile_px: Side of the tile in a cell, in pixels.
        permutations_per_image: Puzzles per image.
        embedding_width: Features per tile in the head.

    Raises:
        ValueError: `permutations` does not fit the grid, `counts` is out of range, or the cells do not fit
            into the image.
    """

    accuracy_name = "permutation accuracy"

    def __init__(
        self, permutations: np.ndarray, counts: Sequence[int], *, shorter_px: int, grid: int = 3,
        cell_px: int, tile_px: int, permutations_per_image: int, embedding_width: int,
    ):  # fmt: skip
        if permutations.ndim != 2 or permutations.shape[1] != grid**2:
            raise ValueError(
                f"permutations of shape {permutations.shape}: a {grid}x{grid} grid needs [N, {grid**2}]"
            )
        if list(counts) != sorted(counts) or min(counts) < 2 or max(counts) > len(permutations):
            raise ValueError(
                f"levels of {tuple(counts)} permutations: "
                f"give --counts that rise, from 2 to {len(permutations)}"
            )
        if grid * cell_px > shorter_px:
            raise ValueError(
                f"{grid} cells of {cell_px} px are {grid * cell_px} px, more than the shorter side of "
                f"{shorter_px} px: lower --size-px, or raise --short-side"
            )
        self.permutations = torch.from_numpy(permutations.astype(np.int64))
        self.counts = tuple(counts)
        self.num_levels = len(self.counts)
        self.grid, self.cell_px, self.tile_px, self.shorter_px = grid, cell_px, tile_px, shorter_px
        self.permutations_per_image = permutations_per_image
        self.embedding_width = embedding_width

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return one view: resize, random window of grid x grid cells, flip, random tile in each cell."""
        tiles = JigsawTiles(
            self.grid, self.cell_px, self.tile_px, self.counts[level - 1], self.permutations_per_image
        )
        window = ShorterSideCrop(self.shorter_px, self.grid * self.cell_px)
        return (ViewSpec(window, ops=(Flip(0.5), tiles)),)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return JigsawHead(channels, self.embedding_width, self.permutations[: self.counts[level - 1]])

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return the cross-entropy over permutations; accuracy is the share of puzzles named correctly."""
        labels = batch.draw(JigsawTiles)["permutation"]  # [B, k], drawn with the tiles
        logits = head(blocks(inputs[0]), labels).float()  # [B, k, N]
        valid = (batch.indices >= 0).float()[:, None].expand_as(labels)
        return scored(logits.flatten(0, 1), labels.flatten(), valid.flatten())

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        labels = batch.draw(JigsawTiles)["permutation"]
        logits = head(blocks(inputs[0]), labels).float()
        return cross_entropies(logits.flatten(0, 1), labels.flatten()).view(labels.shape).mean(1)

    @override
    def chance(self, level: int) -> float:
        return 1 / self.counts[level - 1]

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return each window in its tiles, and beside it the puzzle, with gaps between the tiles."""
        tiles = self.views(1)[0].denormalise(inputs[0])
        tiles = F.pad(tiles, (1, 1, 1, 1), value=1.0).unflatten(0, (-1, self.grid**2))
        chosen = self.permutations[batch.draw(JigsawTiles)["permutation"][:, 0].cpu()]
        shuffled = tiles.gather(1, chosen.view(*chosen.shape, 1, 1, 1).expand_as(tiles))
        # [B, tiles, 3, h, w] → [B, 3, rows*h, columns*w]
        whole, puzzle = (
            t.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
            for t in (tiles, shuffled)
        )
        return torch.cat([whole, whole.new_ones(*whole.shape[:3], 4), puzzle], 3)

    @override
    def captions(self, batch: Batch) -> list[str]:
        return [f"permutation {label}" for label in batch.draw(JigsawTiles)["permutation"][:, 0].tolist()]


class JigsawHead(nn.Module):
    """A head that embeds each tile, orders the embeddings by each permutation and classifies them.

    It is VISSL's head (per tile average pool, Linear 2048→1000, BatchNorm and ReLU, then Linear 9000→N) on
    the stage's last block. The paper does not state the widths on B3 and B4.
    """

    permutations: Tensor

    def __init__(self, channels: int, width: int, permutations: Tensor):
        super().__init__()
        self.num_tiles = permutations.shape[1]
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        self.classify = nn.Linear(self.num_tiles * width, len(permutations))
        self.register_buffer("permutations", permutations, persistent=False)

    @override
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits [B, k, N] of the tiles [B * tiles, C, h, w] permuted by each label, int64 [B, k]."""
        tiles = self.embed(mean_of_positions(features))
        embeddings = tiles.unflatten(0, (-1, self.num_tiles))  # [B, tiles, width]
        order = self.permutations[labels].flatten(1)  # [B, k*tiles]
        puzzles = embeddings.gather(1, order[:, :, None].expand(-1, -1, embeddings.shape[2]))
        return self.classify(puzzles.view(*labels.shape, -1))
