"""PSL MoCo v2 with ResNet-50 (PSL, Table 3, Table 4 row "MoCov2+PSL").

Paper: a linear classifier on the final features has 68.1 % ImageNet top-1 (67.5 % end to end). Here: not yet
run on ImageNet.

    fastpsl train mocov2 --gpus 8 --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl train mocov2            # the embedded sample, small values, minutes on two cores
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fastpsl import engine, models, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import AnyBackbone, PerStage, SGDOptions, at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER = {  # PSL states "MoCov2" and 200 epochs; the other values are MoCo v2's
    "backbone": "resnet50",
    "epochs": (60, 70, 70),  # section 4.1, for contrastive learning; that it holds for MoCo v2 is our reading
    "batch_size": 256,
    "lr": 0.03,  # one cosine over all stages is our reading, too
    "queue_size": 65_536,
    "momentum": 0.999,
    "temperature": 0.2,
    "key_group": 32,  # images per GPU: 256 on 8
    "size_px": 224,
    "embedding_width": 128,
    "sobel_p": 0.2,  # PSL's: Table 3 has Sobel, and does not say how often
}
SAMPLE = {
    "backbone": "resnet18",
    "epochs": (6, 7, 7),
    "batch_size": 32,
    "lr": 0.12,
    "queue_size": 64,  # of 480 images, because a longer one holds many keys of the images that come next
    "momentum": 0.99,  # 300 steps are too few for more; at .95 keys can be told by their age
    "key_group": 16,
    "size_px": 64,
}


@dataclass(frozen=True, kw_only=True)
class Options(SGDOptions):
    backbone: AnyBackbone
    lr: float
    """SGD's learning rate at the start; it falls to 0 over all stages."""
    queue_size: int
    """Number of keys of earlier images, which are the negatives; a multiple of --batch-size."""
    momentum: float
    """Momentum of the key encoder; that of SGD is 0.9."""
    temperature: float
    """Temperature that similarities are divided by."""
    key_group: int
    """Images that share a key's BatchNorm; a divisor of a rank's batch, smaller than --batch-size."""
    size_px: PerStage
    """Side of the crops: one value, or one for each stage."""
    embedding_width: int
    """Width of a key."""
    sobel_p: float
    """Probability of Sobel at level 3. MoCo v2 as published has none: 0."""


def build(options: Options) -> engine.Experiment:
    task = tasks.MoCo(
        seed=options.seed,
        batch_size=at_end(options.batch_size),
        accumulate=options.accumulate,
        queue_size=options.queue_size,
        momentum=options.momentum,
        temperature=options.temperature,
        key_group=options.key_group,
        width=options.embedding_width,
        size_px=at_end(options.size_px),
        sobel_p=options.sobel_p,
    )
    backbone = models.make_backbone(options.backbone)
    return engine.Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=optim.cosine(options.lr),
        # Momentum .9 and decay 1e-4 of all parameters, as in MoCo's code.
        optimiser=partial(options.sgd(), decay_biases=True),
    )


RECIPE = Recipe(
    "mocov2_r50", __doc__, Options, PAPER, SAMPLE, build, at_most={"queue_size": 0.5, "key_group": 0.05}
)

if __name__ == "__main__":
    launch(RECIPE)
