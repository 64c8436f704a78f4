"""The proposal of the first block that learns, for `--plan continue` without `--first-learning`."""

import sys
from functools import partial
from typing import NoReturn

import torch

from fastpsl.console.progress import operation
from fastpsl.console.words import percent
from fastpsl.engine.dataset_pass import undisturbed
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.online_probe import (
    Features,
    features_of,
    knn_accuracy,
    look_images,
    look_view,
    pooled_blocks,
    why_no_knn,
)
from fastpsl.engine.run import RunData
from fastpsl.pipelines.datasets.shared_images import shared_images


def propose_first_learning(experiment: Experiment, data: RunData) -> NoReturn:
    """Refuse a plan without its first block, and propose one if the images have classes.

    The blocks up to the one with the best kNN stay, and at least one learns. Every rank calls this.
    """
    num_blocks = experiment.backbone.num_blocks
    if reason := why_no_knn(data):
        raise ValueError(
            f"--plan continue without --first-learning: no block is proposed, because {reason}; give one of "
            f"B2 to B{num_blocks}"
        )
    assert data.val is not None
    if data.world.rank == 0 and (line := shared_images(data.val, data.train).line()):
        print(line, file=sys.stderr, flush=True)
    accuracies = knn_of_blocks(experiment, data)
    told = ", ".join(f"B{number} {percent(each)}" for number, each in enumerate(accuracies, start=1))
    best = 1 + accuracies.index(max(accuracies))
    raise ValueError(
        f"--plan continue without --first-learning: kNN of the blocks is {told}; those up to the best, "
        f"B{best}, may stay: give --first-learning B{min(best + 1, num_blocks)}"
    )


def knn_of_blocks(experiment: Experiment, data: RunData) -> list[float]:
    """Return the kNN accuracy of each block, by the images of the online monitor's looks."""
    world, backbone = data.world, experiment.backbone
    place_backbone(experiment, data.options, world)
    train, val = look_images(experiment, data)
    assert val is not None
    pooled = partial(pooled_blocks, backbone, range(1, backbone.num_blocks + 1))
    view = look_view(experiment, experiment.stages[0])
    with torch.no_grad(), undisturbed(backbone, world), operation("kNN of each block"):
        found: list[list[Features]] = [
            features_of(data, part, view, pooled, lambda: False) for part in (train, val)
        ]
        return [knn_accuracy(*parts) for parts in zip(*found, strict=True)]
