"""PSL jigsaw puzzles with ResNet-50 (PSL, Table 1, Table 4 row "Jigsaw+PSL", Table 5).

Paper: a linear classifier on B4 has 50.9 % ImageNet top-1 (45.7 % end to end). Here: not yet run on ImageNet.

    fastpsl train jigsaw --gpus 8 --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl train jigsaw            # the embedded sample, small values, minutes on two cores
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
    "short_side": 256,  # section 4.1
    "cell_px": 75,  # section 3.3.1
    "tile_px": 64,
    "permutations_per_image": 1,
    "embedding_width": 1000,
}
SAMPLE = {
    "epochs": (3, 3, 3), "batch_size": 32, "lr": 0.03, "intervals": (4, 1, 1), "counts": (16, 32, 64),
    "short_side": 108, "cell_px": 32, "tile_px": 28, "permutations_per_image": 8, "embedding_width": 64,
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
    short_side: int
    """Shorter side of the image, before the window of grid x cell_px is cropped."""
    cell_px: int
    """Side of a cell."""
    tile_px: int
    """Side of the tile that is cropped at random in each cell, which the network sees."""
    embedding_width: int
    """Features per tile in the head."""


def build(options: Options) -> engine.Experiment:
    if options.permutations:
        permutations = tasks.read_permutations(options.permutations)
    else:
        permutations = kernels.permutation_set(options.grid**2, options.counts).permutations
    task = tasks.Jigsaw(
        permutations,
        options.counts,
        shorter_px=options.short_side,
        grid=options.grid,
        cell_px=options.cell_px,
        tile_px=options.tile_px,
        permutations_per_image=options.permutations_per_image,
        embedding_width=options.embedding_width,
    )
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
