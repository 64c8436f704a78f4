"""PSL jigsaw puzzles with ResNet-50 (PSL, Table 1, Table 4 row "Jigsaw+PSL", Table 5).

Paper: a linear classifier on B4 has 50.9 % ImageNet top-1 (45.7 % end to end). Here: not yet run on ImageNet.

    fastpsl train jigsaw --gpus 8 --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl train jigsaw            # the embedded sample, small values, minutes on two cores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from fastpsl import engine, kernels, models, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import MACHINE, AnyBackbone, SGDOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER = {
    "backbone": "resnet50",  # section 4.1
    "epochs": (60, 60, 60),
    "batch_size": 256,
    "lr": 0.01,
    "intervals": (20, 20, 10, 10),
    "counts": (500, 1000, 2000),  # Table 1
    "size_px": 225,  # section 3.3.1: 3 cells of 75, tiles of 64; section 4.1: a shorter side of 256
    "permutations_per_image": 1,
    "embedding_width": 1000,
}
SAMPLE = {
    "epochs": (3, 3, 3), "batch_size": 32, "lr": 0.03, "intervals": (4, 1, 1), "counts": (16, 32, 64),
    "size_px": 96, "permutations_per_image": 8, "embedding_width": 64,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(SGDOptions):
    backbone: AnyBackbone
    lr: float
    """Learning rate at each stage's start."""
    intervals: tuple[int, ...]
    """Shares of a stage between tenfold drops of the rate."""
    counts: tuple[int, ...]
    """Numbers of permutations of levels G1, G2, G3; each set contains the one before."""
    permutations: Path | None = field(default=None, metadata=MACHINE)  # because `build` records its content
    """File of `fastpsl permutations`, VISSL or bbrattoli (.npy) or Noroozi (.bin); by default generated."""
    permutations_per_image: int
    """Puzzles per image, made by permuting its tiles' embeddings after one pass of the backbone."""
    grid: int = 3
    """Cells on a side of a puzzle."""
    size_px: int
    """Side of the random window that is cut into grid x grid cells; a multiple of --grid."""
    short_side: int | None = None
    """Shorter side of the image, before the window is cropped; by default 256/225 of the window."""
    tile_px: int | None = None
    """Side of the tile that is cropped at random in each cell; by default 64/75 of the cell."""
    cell_px: int | None = None
    """Side of a cell: the former way to give --size-px."""
    embedding_width: int
    """Features per tile in the head."""

    @override
    @classmethod
    def renewed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the window of the given cells, or else the one that suits the given shorter side."""
        cell_px, short_side, grid = given.get("cell_px"), given.get("short_side"), given.get("grid") or 3
        if cell_px is None and short_side is not None:
            cell_px = max(1, round(short_side * 225 / 256 / grid))
        return {} if cell_px is None else {"size_px": grid * cell_px}

    def sides(self) -> dict[str, int]:
        """Return the sides of the image, a cell and a tile: those given, or in the paper's proportions."""
        self._require_positive("grid")
        self._require_positive_or_none("short_side")
        size_px, cell_px = self.size_px, self.cell_px or max(1, self.size_px // self.grid)
        if size_px != (fits := self.grid * cell_px):
            of, rest = (f" of {cell_px} px", ", or leave out --cell-px") if self.cell_px else ("", "")
            near = f"{fits}{rest or f' or {fits + self.grid}'}"
            raise ValueError(f"--size-px {size_px} for {self.grid} cells{of} on a side: give {near}")
        short_side = self.short_side or max(size_px, size_px * 256 // 225 // 2 * 2)  # an even number
        tile_px = self.tile_px or -(-cell_px * 64 // 75)  # rounded up
        return {"short_side": short_side, "cell_px": cell_px, "tile_px": tile_px}

    @override
    def science(self) -> dict[str, Any]:  # with the names that records have had since before --size-px
        return {name: value for name, value in super().science().items() if name != "size_px"} | self.sides()


def build(options: Options) -> engine.Experiment:
    sides = options.sides()
    if options.permutations:
        permutations = tasks.read_permutations(options.permutations)
    else:
        permutations = kernels.permutation_set(options.grid**2, options.counts).permutations
    task = tasks.Jigsaw(
        permutations, options.counts, shorter_px=sides["short_side"], grid=options.grid,
        cell_px=sides["cell_px"], tile_px=sides["tile_px"], embedding_width=options.embedding_width,
        permutations_per_image=options.permutations_per_image,
    )  # fmt: skip
    backbone = models.make_backbone(options.backbone)
    return engine.Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=optim.step_drops(options.lr, options.intervals),
        optimiser=options.sgd(),
        science={"permutations": tasks.permutations_digest(permutations)},
    )


RECIPE = Recipe("jigsaw_r50", __doc__, Options, PAPER, SAMPLE, build)

if __name__ == "__main__":
    launch(RECIPE)
