"""DeepCluster with AlexNet (Caron et al., arXiv 1807.05520); uic.txt compares with it in Table 4 and others.

Paper: linear classifiers on conv1 to conv5 have 13.4, 32.3, 41.0, 39.6 and 38.2 % ImageNet top-1. Here: not
yet run on ImageNet.

    torchrun --nproc-per-node=8 recipes/deepcluster_alexnet.py --data 'imagenet/train-*.beton' \\
        --out runs/deepcluster
    torchrun --nproc-per-node=8 recipes/linear_probe.py --checkpoint runs/deepcluster \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    torchrun recipes/deepcluster_alexnet.py       # the embedded sample, small values, minutes on two cores

Each epoch begins with a pass over all images and their clustering. The labels of the last epoch stay in the
run's folder as labels.npz.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.launch import launch
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.recipe import Recipe
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.input_record import Input
from fastpsl.tasks.pseudo_labels.deepcluster import DeepCluster, two_sgds
from fastpsl.tasks.pseudo_labels.uic_experiment import leave_labels

PAPER = {  # section 4; rate and decay are from the authors' code
    "backbone": "alexnet",  # with its dropout of 0.5
    "plan": "end_to_end",
    "stage_epochs": (500,),  # 200 is the default of the authors' code
    "batch_size": 256,
    "lr": 0.05,
    "weight_decay": 1e-5,
    "num_classes": 10_000,
    "pca_width": 256,
    "k_means_iterations": 20,
    "channels": "SobelXY",
    "size_px": 224,
}
SAMPLE = {
    "stage_epochs": (6,),
    "batch_size": 32,
    "lr": 0.01,  # because at 0.05 features collapse to few directions in the first of 90 steps' epochs
    "num_classes": 16,
    "pca_width": 32,
    "size_px": 64,
}


@dataclass(frozen=True, kw_only=True)
class Options(PretrainOptions):
    backbone: str
    """Any backbone of fastpsl (docs/backbones.md)."""
    num_classes: int
    """Number of clusters, which are the classes of the classifier; none is ever empty."""
    pca_width: int
    """Number of principal components of the features that are clustered."""
    k_means_iterations: int
    """Iterations of k-means before each epoch."""
    channels: Literal["RGB", "SobelXY"]
    """Input of the network: the image, or the two gradients of its grey value."""
    lr: float
    """Learning rate, which is constant."""
    weight_decay: float
    """Decay of weights, biases and BatchNorm."""
    dropout: float | None = None
    """Share of the inputs of fc6 and fc7 that is dropped; by default the backbone's own."""
    size_px: int
    """Side of the crops."""


def build(options: Options) -> Experiment:
    input = Input.usual(options.channels, options.size_px)
    backbone = make_backbone(options.backbone, num_channels=input.num_channels, dropout=options.dropout)
    task = DeepCluster(
        options.num_classes,
        input,
        options.size_px,
        seed=options.seed,
        pca_width=options.pca_width,
        k_means_iterations=options.k_means_iterations,
    )
    return Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=step_drops(options.lr, (1,)),
        optimiser=partial(two_sgds, make=options.sgd(), weight_decay=options.weight_decay),
        frozen_batchnorm=options.frozen_batchnorm,
        finish=partial(leave_labels, task),
    )


RECIPE = Recipe("deepcluster_alexnet", __doc__, Options, PAPER, SAMPLE, build)

if __name__ == "__main__":
    launch(RECIPE)
