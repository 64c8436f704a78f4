"""DeepCluster with AlexNet (Caron et al., arXiv 1807.05520); UIC compares with it in Table 4 and others.

Paper: linear classifiers on conv1 to conv5 have 13.4, 32.3, 41.0, 39.6 and 38.2 % ImageNet top-1. Here: not
yet run on ImageNet.

    fastpsl train deepcluster --gpus 8 --data 'imagenet/train-*.beton' \\
        --out runs/deepcluster
    fastpsl eval linear runs/deepcluster --gpus 8 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl train deepcluster       # the embedded sample, small values, minutes on two cores

Each epoch begins with a pass over all images and their clustering. The labels of the last epoch stay in the
run's folder as labels.npz.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from fastpsl import engine, models, pipelines, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import PerStage, SGDOptions, at_end
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.tasks.pseudo_labels.options import OWN_ORDER

PAPER = {  # section 4; rate and decay are from the authors' code
    "backbone": "alexnet",  # with its dropout of 0.5
    "plan": "end_to_end",
    "epochs": (500,),  # 200 is the default of the authors' code
    "batch_size": 256,
    "lr": 0.05,
    "weight_decay": 1e-5,
    "num_clusters": 10_000,
    "pca_width": 256,
    "k_means_iterations": 20,
    "input_channels": "SobelXY",
    "size_px": 224,
}
SAMPLE = {
    "epochs": (6,),
    "batch_size": 32,
    "lr": 0.01,  # because at 0.05 features collapse to few directions in the first of 90 steps' epochs
    "num_clusters": 16,
    "pca_width": 32,
    "size_px": 64,
}


@dataclass(frozen=True, kw_only=True)
class Options(SGDOptions):
    without: ClassVar[dict[str, str]] = OWN_ORDER
    backbone: str
    """Any backbone of fastpsl (docs/reference/backbones.md)."""
    num_clusters: int
    """Number of clusters, which are the classes of the classifier; none is ever empty."""
    pca_width: int
    """Number of principal components of the features that are clustered."""
    k_means_iterations: int
    """Iterations of k-means before each epoch."""
    input_channels: Literal["RGB", "SobelXY"]
    """Input of the network: the image, or the two gradients of its grey value."""
    lr: float
    """Learning rate, which is constant."""
    weight_decay: float
    """Decay of weights, biases and BatchNorm."""
    dropout: float | None = None
    """Share of the inputs of fc6 and fc7 that is dropped; by default the backbone's own."""
    size_px: PerStage
    """Side of the crops: one value, or one for each stage."""


def build(options: Options) -> engine.Experiment:
    input = pipelines.Input.usual(options.input_channels, at_end(options.size_px))
    backbone = models.make_backbone(
        options.backbone, num_channels=input.num_channels, dropout=options.dropout
    )
    task = tasks.DeepCluster(
        options.num_clusters,
        input,
        at_end(options.size_px),
        seed=options.seed,
        pca_width=options.pca_width,
        k_means_iterations=options.k_means_iterations,
    )
    return engine.Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=optim.step_drops(options.lr, (1,)),
        optimiser=partial(tasks.two_sgds, make=options.sgd(), weight_decay=options.weight_decay),
        finish=partial(tasks.leave_labels, task),
    )


RECIPE = Recipe("deepcluster_alexnet", __doc__, Options, PAPER, SAMPLE, build, at_most={"num_clusters": 0.1})

if __name__ == "__main__":
    launch(RECIPE)
