"""PSL SimCLR with ResNet-50 (PSL, Table 3, Table 4 row "SimCLR+PSL").

Paper: a linear classifier on the final features has 64.3 % ImageNet top-1 (61.9 % end to end). Here: not yet
run on ImageNet.

    fastpsl train simclr --gpus 8 --sync-batchnorm \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl train simclr            # the embedded sample, small values, minutes on two cores

Give --sync-batchnorm with several GPUs. SimCLR's BatchNorm is over the global batch; otherwise the statistics
of a rank could identify the two views of an image (arXiv 2002.05709, section 2.2). PSL does not mention it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fastpsl import engine, models, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import AnyBackbone, PerStage, PretrainOptions, at_end, per_stage
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER = {
    "backbone": "resnet50",
    "epochs": (60, 70, 70),  # section 4.1: 200 epochs
    "batch_size": 256,
    "lr": 0.3,  # LARS, one cosine over all stages
    "warmup_epochs": 10.0,  # SimCLR's; PSL states none
    "trust": 0.001,  # SimCLR's eeta; PSL states none
    "weight_decay": 1e-6,  # SimCLR's; PSL states none
    "temperature": 0.1,  # from SimCLR's code; PSL states none
    "size_px": 224,
    "embedding_width": 128,  # section 4.1
    "sobel_p": 0.2,  # Table 3 has Sobel, and does not say how often
}
SAMPLE = {
    "backbone": "resnet18",
    "epochs": (12, 12, 16),
    "levels": (1,),  # 600 steps are too few to learn under distorted colours
    "batch_size": 32,
    "lr": 0.2,
    "warmup_epochs": 1.0,
    "trust": 0.01,  # ten times the usual, because the steps are few
    "temperature": 0.2,
    "size_px": 32,
}


@dataclass(frozen=True, kw_only=True)
class Options(PretrainOptions):
    without: ClassVar[dict[str, str]] = {
        "accumulate": "each part would lack the negatives of the others, which is another loss; use more "
        "GPUs, or a smaller --batch-size"
    }
    backbone: AnyBackbone
    lr: float
    """LARS's learning rate at the end of the warm-up."""
    warmup_epochs: float
    """Epochs in which the rate rises from 0, counted from the start of the run."""
    trust: float
    """LARS's eeta: the relative change of a layer's norm by a step of rate 1."""
    weight_decay: float
    """Decay of all weights except biases and BatchNorm's."""
    temperature: float
    """Temperature of NT-Xent, which similarities are divided by."""
    size_px: PerStage
    """Side of the crops: one value, or one for each stage."""
    embedding_width: int
    """Width of the head's output for a view."""
    sobel_p: float
    """Probability of Sobel at level 3. SimCLR as published has none: 0."""


def build(options: Options) -> engine.Experiment:
    backbone = models.make_backbone(options.backbone)
    task = tasks.SimCLR(
        min(per_stage(options.batch_size)),
        size_px=at_end(options.size_px),
        temperature=options.temperature,
        embedding_width=options.embedding_width,
        sobel_p=options.sobel_p,
    )
    return engine.Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=optim.cosine(options.lr, options.warmup_epochs),
        optimiser=partial(optim.lars, weight_decay=options.weight_decay, eeta=options.trust),
    )


RECIPE = Recipe("simclr_r50", __doc__, Options, PAPER, SAMPLE, build)

if __name__ == "__main__":
    launch(RECIPE)
