"""Fine-tuning of the whole network with 1 % or 10 % of the labels (PSL, section 4.3, Table 7).

Paper: with 1 % / 10 % of the labels Jigsaw+PSL has 48.7 / 83.5 % ImageNet top-5, and Rotation+PSL
has 54.8 / 83.7 %. It states "a class-balanced data selection", but neither a list nor a schedule. --protocol
pirl is that of PIRL, which it follows. Here: not yet run on ImageNet.

    fastpsl eval few-labels runs/jigsaw-001 --gpus 8 --percent 1 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl eval few-labels   # random weights, 10 % of the embedded sample, a minute on two cores
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastpsl import engine, evaluation, models, pipelines, tasks
from fastpsl.engine import optim
from fastpsl.engine.options import MACHINE
from fastpsl.evaluation.options import TrainedEvaluationOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER: dict[str, Any] = {"protocol": "pirl", "percent": 1.0, "batch_size": 256, "size_px": 224}
SAMPLE: dict[str, Any] = {
    "protocol": "pirl", "percent": 10.0, "batch_size": 16, "size_px": 96, "epochs": 30, "lr": 0.4,
}  # fmt: skip
# VISSL, eval_resnet_8gpu_transfer_in1k_semi_sup_fulltune: a rate for 256 images, a tenth after 30 of 70
# epochs.
COMMON: dict[str, Any] = {
    "epochs": 70, "intervals": (30, 40), "momentum": 0.9, "nesterov": True, "weight_decay": 0.0,
}  # fmt: skip
SGD = ("momentum", "nesterov", "weight_decay")
PROTOCOLS = {"pirl": COMMON | {"lr": 0.01}, "simclr": COMMON | {"lr": 0.05}}


@dataclass(frozen=True, kw_only=True)
class Options(TrainedEvaluationOptions):
    protocol: Literal["pirl", "simclr"]
    """Rate that VISSL uses with the lists of PIRL (0.01) or SimCLR (0.05)."""
    percent: float
    """Percentage of the training images that keep their labels, balanced over classes, drawn by --seed."""
    # MACHINE, because the data's digest records which images are learned from.
    label_list: Path | None = field(default=None, metadata=MACHINE)
    """These images instead: names, paths or positions, one per line, or a .npy."""
    epochs: int | None = None
    """Epochs; by default the protocol's. Drops of the rate keep their share of the training."""
    lr: float | None = None
    """First learning rate for a batch of 256, scaled for others; by default the protocol's."""

    def constants(self) -> dict[str, Any]:
        """Return the protocol's values with those of the command line."""
        return evaluation.overridden(PROTOCOLS[self.protocol], self.epochs, self.lr)


def build(options: Options) -> engine.Experiment:
    evaluation.require_val(options)
    if options.order != "random":
        raise ValueError(
            "--order quasi_random reads whole pages of a dataset file, and few of their images are used; "
            "leave it out"
        )
    weights, values = options.pretrained(), options.constants()
    num_blocks = weights.backbone.num_blocks
    views = (
        pipelines.train_view(weights.input, options.size_px),
        pipelines.center_view(weights.input, options.size_px, options.whole),
    )
    task = tasks.Classify(*views)
    return engine.Experiment(
        task=task,
        backbone=weights.backbone,
        stages=(engine.Stage("tune", 1, 1, num_blocks, values["epochs"]),),
        schedule=optim.step_drops(values["lr"] * options.batch_size / 256, values["intervals"]),
        optimiser=functools.partial(optim.sgd, **{name: values[name] for name in SGD}),
        science=weights.science(),
        part=lambda data: evaluation.labelled_part(data, options.percent, options.seed, options.label_list),
        finish=functools.partial(finish, options, weights, task),
    )


def finish(
    options: Options, weights: models.Pretrained, task: tasks.Classify, run: engine.Run
) -> Sequence[str]:
    assert isinstance(run.data.train, pipelines.Subset)
    labels = evaluation.write_label_list(run.folder / "label-list.txt", run.data.train.positions)
    constants = options.constants() | ({"percent": None} if options.label_list else {})
    name, record = "semi_supervised", weights.record
    path = evaluation.write_val(task, run, recipe=name, protocol=name, constants=constants, checkpoint=record)
    return [f"labelled images {labels}", evaluation.result_line(path)]


RECIPE = Recipe("semi_supervised", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
