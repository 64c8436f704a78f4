"""PSL image rotation with RevNet-50 (PSL, Table 2, Table 4 row "Rotation+PSL", Table 6).

Tables 7 to 9 have it with ResNet-50.
Paper: a linear classifier on B4 has 53.3 % ImageNet top-1 (48.6 % end to end). Here: not yet run on ImageNet.

    fastpsl train rotation --gpus 8 --data 'imagenet/train-*.beton' \\
        --val imagenet/val.beton
    fastpsl train rotation            # the embedded sample, small values, minutes on two cores

The paper's batch of 256 is 256 images in one rotation each. With --rotations-per-image all, the default is 32
images, because the eight rotations of level 3 make 256 inputs of them. 256 images would be 2,048 inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastpsl import engine, models, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import AnyBackbone, PerStage, SGDOptions, at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER = {
    "backbone": "revnet50",  # section 4.1
    "epochs": (60, 60, 60),
    "batch_size": 256,
    "lr": 0.01,
    "intervals": (20, 20, 10, 10),
    "short_side": 256,
    "size_px": 224,
}
SAMPLE = {
    "epochs": (3, 2, 1), "batch_size": 8, "lr": 0.03, "intervals": (4, 1, 1), "short_side": 55, "size_px": 48,
    "rotations_per_image": "all",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(SGDOptions):
    backbone: AnyBackbone
    lr: float
    """Learning rate at each stage's start."""
    intervals: tuple[int, ...]
    """Shares of a stage between tenfold drops of the rate."""
    rotations_per_image: Literal["one", "all"] = "one"
    """one at random, or all of the level's 2, 4 or 8."""
    same_window: bool = False
    """Give levels 1 and 2 the windows and the blur of level 3, so that they differ in the angles alone."""
    short_side: int
    """Shorter side of the image in the last stage, before the window is cropped."""
    size_px: PerStage
    """Side of the random window that the network sees: one value, or one for each stage."""


def variant(options: Options) -> Mapping[str, Any]:
    """Return, for all rotations, the batch that makes 256 inputs at the largest level, by default 3."""
    if options.rotations_per_image == "one":
        return {}
    return {"batch_size": {1: 128, 2: 64}.get(max(options.levels, default=3), 32)}


def build(options: Options) -> engine.Experiment:
    task = tasks.Rotation(
        shorter_px=options.short_side,
        size_px=at_end(options.size_px),
        rotations_per_image=options.rotations_per_image,
        same_window=options.same_window,
    )
    backbone = models.make_backbone(options.backbone)
    return engine.Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=optim.step_drops(options.lr, options.intervals),
        # Momentum .9 and decay 1e-4 without biases, as for the jigsaw; the paper states none for the
        # rotation.
        optimiser=options.sgd(),
    )


RECIPE = Recipe("rotation_rv50", __doc__, Options, PAPER, SAMPLE, build, variant=variant)

if __name__ == "__main__":
    launch(RECIPE)
