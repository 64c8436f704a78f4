"""Supervised training from random weights, for the rows with all labels in the papers' tables.

They are "Supervised" in PSL, Tables 5, 6, 8 and 9, and in SSL++, Tables III to VIII and Figures 1 and 5. In
UIC, Tables 4 and 5, they are "ImageNet labels". The Supervised row of PSL's Table 7 learns from few labels
alone: fastpsl eval few-labels --random-weights.
PSL does not state the schedule. This is the usual one of torchvision and VISSL for ResNet-50. It has 90
epochs, a decay of 1e-4 on everything, and a rate of .1 for a batch of 256. After 30, 60 and 80 epochs it is a
tenth. SSL++ does not state its schedule either. The second command has that of RotNet's supervised NIN,
without Nesterov momentum and its factor of 5.
Paper: a linear classifier on B5 has 75.5 % ImageNet top-1 (PSL, Table 5), and 74.3 % with
RevNet-50 (Table 6). A NIN block on B4 has 91.7 % on CIFAR-10 (SSL++, Table III). Here: not yet run on
ImageNet or CIFAR-10.

    fastpsl train supervised --gpus 8 --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl train supervised --backbone nin4 --size-px 32 --crop padded --batch-size 128 --lr 0.2 \\
        --weight-decay 5e-4 --epochs 200 --intervals 60 60 40 40 \\
        --data cifar10-train.beton --val cifar10-test.beton
    fastpsl train supervised              # the embedded sample, small values, minutes on two cores
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fastpsl import engine, evaluation, models, pipelines, scripts, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import AnyBackbone, PerStage, SGDOptions, at_end, per_stage
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER = {  # our choice, as described above
    "backbone": "resnet50",
    "plan": "end_to_end",
    "epochs": (90,),
    "batch_size": 256,
    "lr": 0.1,
    "intervals": (30, 30, 20, 10),
    "weight_decay": 1e-4,
    "size_px": 224,
    "crop": "random_resized",
}
SAMPLE = {"backbone": "resnet18", "epochs": (8,), "batch_size": 32, "lr": 0.2, "size_px": 96}


@dataclass(frozen=True, kw_only=True)
class Options(SGDOptions):
    backbone: AnyBackbone
    lr: float
    """First learning rate for a batch of 256, scaled for others."""
    intervals: tuple[int, ...]
    """Shares of the training between tenfold drops of the rate."""
    weight_decay: float
    """Decay of weights, biases and BatchNorm."""
    size_px: PerStage
    """Side of the images: one value, or one for each stage."""
    crop: Literal["random_resized", "padded"] = "random_resized"
    """padded, for small images: the middle square, shifted by up to an eighth of it, and scored whole."""
    labels_per_class: int | None = None
    """Learn from the first N images of each class, in as many steps (SSL++, Table VIII)."""


def build(options: Options) -> engine.Experiment:
    scripts.require_given_classes(options)
    size_px, padded = at_end(options.size_px), options.crop == "padded"
    input = pipelines.Input(size_px=size_px)
    views = (
        pipelines.train_view(input, size_px, options.crop),
        pipelines.center_view(input, size_px, padded),
    )
    task = tasks.Classify(*views)
    if options.labels_per_class is not None:
        task = evaluation.FewLabels(*views, labels_per_class=options.labels_per_class, seed=options.seed)
    backbone = models.make_backbone(options.backbone)
    rates = [options.lr * size / 256 for size in per_stage(options.batch_size)]
    return engine.Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=optim.by_stage([optim.step_drops(lr, options.intervals) for lr in rates]),
        optimiser=partial(options.sgd(), weight_decay=options.weight_decay, decay_biases=True),
        finish=partial(finish, task, options.backbone),
    )


def finish(task: tasks.Classify, backbone: str, run: engine.Run) -> Sequence[str]:
    if run.data.val is None:
        return ["no result: without --val nothing is scored"]
    record = models.load_pretrained(run.last_checkpoint(), backbone).record
    constants = {"momentum": 0.9, "nesterov": False}
    path = evaluation.write_val(
        task, run, recipe="supervised", protocol="supervised", constants=constants, checkpoint=record
    )
    return [evaluation.result_line(path)]


RECIPE = Recipe("supervised", __doc__, Options, PAPER, SAMPLE, build, source="default", scales_rate=True)

if __name__ == "__main__":
    launch(RECIPE)
