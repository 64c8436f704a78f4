"""Fine-tuning of the whole network with 1 % or 10 % of the labels (psl.txt: section 4.3, Table 7).

Paper: with 1 % / 10 % of the labels Jigsaw+PSL has 48.7 / 83.5 % ImageNet top-5, and Rotation+PSL
has 54.8 / 83.7 %. It states "a class-balanced data selection", but neither a list nor a schedule. --protocol
pirl is that of PIRL, which it follows. Here: not yet run on ImageNet.

    torchrun --nproc-per-node=8 recipes/semi_supervised.py --percent 1 --checkpoint runs/jigsaw_r50-001 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    torchrun recipes/semi_supervised.py   # random weights, 10 % of the embedded sample, a minute on two cores
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.launch import launch
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.optim.sgd_adam import sgd
from fastpsl.engine.options import MACHINE
from fastpsl.engine.plan import Stage
from fastpsl.engine.recipe import Recipe
from fastpsl.engine.run import Run
from fastpsl.evaluation.held_out import overridden, require_held_out, write_held_out
from fastpsl.evaluation.label_lists import labelled_part, write_label_list
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.result import result_line
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.data.subset import Subset
from fastpsl.pipelines.standard_views import center_view, train_view
from fastpsl.tasks.classify import Classify

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
class Options(EvaluationOptions):
    protocol: Literal["pirl", "simclr"]
    """Rate that VISSL uses with the lists of PIRL (0.01) or SimCLR (0.05)."""
    percent: float
    """Percentage of the training images that keep their labels, balanced over classes, drawn by --seed."""
    # MACHINE, because the data's digest records which images are learned from.
    label_list: Path | None = field(default=None, metadata=MACHINE)
    """These images instead: names, paths or positions, one per line, or a .npy (docs/evaluation.md)."""
    epochs: int | None = None
    """Epochs; by default the protocol's. Drops of the rate keep their share of the training."""
    lr: float | None = None
    """First learning rate for a batch of 256, scaled for others; by default the protocol's."""

    def constants(self) -> dict[str, Any]:
        """Return the protocol's values with those of the command line."""
        return overridden(PROTOCOLS[self.protocol], self.epochs, self.lr)


def build(options: Options) -> Experiment:
    require_held_out(options)
    if options.order != "random":
        raise ValueError(
            "--order quasi_random reads whole pages, and few of their images are used: leave it out"
        )
    weights, values = options.pretrained(), options.constants()
    num_blocks = weights.backbone.num_blocks
    views = (
        train_view(weights.input, options.size_px),
        center_view(weights.input, options.size_px, options.whole),
    )
    task = Classify(*views)
    return Experiment(
        task=task,
        backbone=weights.backbone,
        stages=(Stage("tune", 1, 1, num_blocks, values["epochs"]),),
        schedule=step_drops(values["lr"] * options.batch_size / 256, values["intervals"]),
        optimiser=functools.partial(sgd, **{name: values[name] for name in SGD}),
        science=weights.science(),
        part=lambda data: labelled_part(data, options.percent, options.seed, options.label_list),
        finish=functools.partial(finish, options, weights, task),
    )


def finish(options: Options, weights: Pretrained, task: Classify, run: Run) -> Sequence[str]:
    assert isinstance(run.data.train, Subset)
    labels = write_label_list(run.folder / "label-list.txt", run.data.train.indices)
    constants = options.constants() | ({"percent": None} if options.label_list else {})
    name, record = "semi_supervised", weights.record
    path = write_held_out(task, run, recipe=name, protocol=name, constants=constants, checkpoint=record)
    return [f"labelled images {labels}", result_line(path)]


RECIPE = Recipe("semi_supervised", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
