"""Classifiers of more than one layer on frozen blocks (SSL++, Tables III, IV and VIII).

A classifier is a NIN block or one to three fully-connected layers. The paper states SGD with a momentum
of 0.9, a decay of 5e-4 and batches of 128 (STL-10: 64). The rate is 0.1, and a tenth of it after 100 and
150 of 200 epochs. Nesterov momentum, decay of all parameters and initial weights follow RotNet and AET, as
SSL++ does.
Paper, CIFAR-10, a NIN block on B2, B3 and B4: Rotation 90.8, 86.4 and 60.1 %, with SSL++ 90.1, 86.5
and 75.9 % (Table III). Here: not yet run on CIFAR-10.

    fastpsl eval blocks runs/sslpp-rotation-001 \\
        --data cifar10-train.beton --val cifar10-test.beton         # --heads fc1_B4 fc2_B4 fc3_B4 conv_B4
    fastpsl eval blocks           # random weights on the embedded sample, a minute on two cores
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from fastpsl import engine, evaluation, pipelines, plots
from fastpsl.engine import optim
from fastpsl.evaluation.options import ProbeOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER: dict[str, Any] = {
    "heads": ("conv_B2", "conv_B3", "conv_B4"), "epochs": 200, "intervals": (100, 50, 50), "batch_size": 128,
    "lr": 0.1, "weight_decay": 5e-4, "size_px": 32, "whole": True,
}  # fmt: skip
SAMPLE: dict[str, Any] = {"epochs": 4, "batch_size": 32}
CONSTANTS: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "decay_biases": True}


@dataclass(frozen=True, kw_only=True)
class Options(ProbeOptions):
    sample_backbone = "nin4"

    heads: tuple[str, ...]
    """conv_Bk: a NIN block and a linear layer on Bk; fc1_Bk to fc3_Bk: 1 to 3 fully-connected layers."""
    labels_per_class: int | None = None
    """Learn from the first N images per class in the data's order (`eval few-labels` draws them), in as many
    steps (Table VIII: 20, 100, 400, 1000).
    """
    epochs: int
    """Number of epochs."""
    intervals: tuple[int, ...]
    """Shares of the training between tenfold drops of the rate."""
    lr: float
    """First learning rate, the same for every batch size."""
    weight_decay: float
    """Decay of weights, biases and BatchNorm."""
    batch_size: int
    """Images per step, over all ranks and accumulated batches (STL-10: 64)."""
    size_px: int
    """Side of the images; training images are shifted by up to an eighth of it."""
    whole: bool
    """Score on the whole middle square of an image, not on the 224/256 of it usual for large ones."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise ValueError(f"--epochs {self.epochs}: it must be 1 or more")


def build(options: Options) -> engine.Experiment:
    evaluation.require_val(options)
    weights, size_px = options.pretrained(), options.size_px
    heads = evaluation.read_heads(options.heads, weights.backbone)
    probes: Any = evaluation.BlockProbes
    if options.labels_per_class is not None:
        probes = functools.partial(
            evaluation.FewLabelBlockProbes, labels_per_class=options.labels_per_class, seed=options.seed
        )
    last = max(head.block for head in heads)
    task = probes(
        train_view=pipelines.train_view(weights.input, size_px, "padded"),
        val_view=pipelines.center_view(weights.input, size_px, options.whole),
        backbone=weights.backbone,
        heads=heads,
    )
    floor = evaluation.ProbeFloor("block_probe", options, weights)
    return engine.Experiment(
        task=task,
        backbone=weights.backbone,
        stages=(engine.Stage("blocks", 1, last + 1, last, options.epochs),),
        schedule=optim.step_drops(options.lr, options.intervals),
        optimiser=functools.partial(optim.sgd, **CONSTANTS, weight_decay=options.weight_decay),
        science=weights.science(),
        beside=floor.train,
        finish=functools.partial(finish, task, floor),
    )


def finish(task: evaluation.BlockProbes, floor: evaluation.ProbeFloor, run: engine.Run) -> Sequence[str]:
    name, record = "block_probe", floor.weights.record
    path = evaluation.write_val(
        task, run, recipe=name, protocol=name, constants=CONSTANTS, checkpoint=record, floor=floor.numbers
    )
    numbers = evaluation.scores(run)
    title = f"{name}, {record['backbone']}, {record['path'] or 'random weights'}"
    chart = plots.draw_blocks(numbers, run.folder / "result.png", title, 100 / run.data.train.num_classes)
    lines = evaluation.best_block_lines(numbers, evaluation.num_scored(run))
    lines += [*floor.lines(), evaluation.result_line(path), f"chart {chart}"]
    convs = [head.name for head in task.heads if head.kind == "conv"]
    if len(convs) > 1:  # the tables' "Avg."
        mean = sum(numbers[f"top1_{head}"] for head in convs) / len(convs)
        lines.insert(0, f"average of {', '.join(convs)}: {mean:.1f} %")
    return lines


RECIPE = Recipe("block_probe", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
