"""The choice of the first block that learns, for `--plan continue` without `--first-learning`."""

from functools import partial

import torch

from fastpsl.console.progress import operation
from fastpsl.console.words import percent
from fastpsl.engine import online_probe
from fastpsl.engine.dataset_pass import undisturbed
from fastpsl.engine.distributed import share
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.run import RunData


def choose_first_learning(experiment: Experiment, data: RunData) -> tuple[str, str]:
    """Return the first block that learns, and a line that tells why. Every rank calls this.

    Those up to the one with the best kNN stay, or without classes all but the last. Each stage has a block.
    """
    num_blocks, num_stages = experiment.backbone.num_blocks, len(experiment.stages)
    best, why = num_blocks, online_probe.why_no_knn(data)
    if why:
        why = f"there is no kNN of the blocks, because {why}"
    else:
        accuracies = knn_of_blocks(experiment, data)
        told = ", ".join(f"B{number} {percent(each)}" for number, each in enumerate(accuracies, start=1))
        best = 1 + accuracies.index(max(accuracies))
        why = f"kNN of the blocks is {told}, the best is B{best}"
    wanted, highest = min(best + 1, num_blocks), num_blocks - num_stages + 1
    if highest < wanted:
        why += f", and {num_stages} stages need a block each"
    first = share(data.world, f"B{min(wanted, highest)}")
    return first, f"--plan continue: {why}; {first} is the first that learns (--first-learning names another)"


def knn_of_blocks(experiment: Experiment, data: RunData) -> list[float]:
    """Return the kNN accuracy of each block, by the images of the online monitor's looks."""
    world, backbone = data.world, experiment.backbone
    place_backbone(experiment, data.options, world)
    train, val = online_probe.look_images(experiment, data)
    assert val is not None
    pooled = partial(online_probe.pooled_blocks, backbone, range(1, backbone.num_blocks + 1))
    view = online_probe.look_view(experiment, experiment.stages[0])
    with torch.no_grad(), undisturbed(backbone, world), operation("kNN of each block"):
        found: list[list[online_probe.Features]] = [
            online_probe.features_of(data, part, view, pooled, lambda: False) for part in (train, val)
        ]
        return [online_probe.knn_accuracy(*parts) for parts in zip(*found, strict=True)]
