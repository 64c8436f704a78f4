"""Linear classifiers on frozen features: each block's, in one pass (psl.txt: section 4.2, Tables 4 to 6).

Paper: "following a common protocol", which it does not state; --protocol vissl is that of its source [23] as VISSL has it (B1 to
B5 and the averaged B5), moco that of MoCo (the averaged B5 alone). Here: not yet run on ImageNet.

    torchrun --nproc-per-node=8 recipes/linear_probe.py --checkpoint runs/jigsaw_r50-001 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    torchrun recipes/linear_probe.py            # random weights on the embedded sample, a minute on two cores
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastpsl.evaluation.held_out import overridden, require_held_out, scores, write_held_out
from fastpsl.evaluation.linear import LinearProbes, probe_sgd
from fastpsl.evaluation.linear_chart import draw_blocks
from fastpsl.evaluation.options import EvaluationOptions, parse_evaluation
from fastpsl.evaluation.result import result_line
from fastpsl.evaluation.views import center_view, train_view
from fastpsl.evaluation.weights import Pretrained
from fastpsl.launch import launch
from fastpsl.plan import Stage
from fastpsl.run import Run
from fastpsl.schedules import step_drops
from fastpsl.trainer import Job

PAPER: dict[str, Any] = {"protocol": "vissl", "batch_size": 256, "size_px": 224}
SAMPLE: dict[str, Any] = {"protocol": "vissl", "batch_size": 32, "size_px": 96, "epochs": 8, "lr": 0.05}
PROTOCOLS: dict[str, dict[str, Any]] = {
    # VISSL, eval_resnet_8gpu_transfer_in1k_linear: lr for 256 images, drops after 8, 16, 24 epochs.
    "vissl": {
        "blocks": True, "batchnorm": True, "head_std": None, "epochs": 28, "intervals": (8, 8, 8, 4),
        "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
    },
    # MoCo, main_lincls: drops after 60 and 80 epochs.
    "moco": {
        "blocks": False, "batchnorm": False, "head_std": 0.01, "epochs": 100, "intervals": (60, 20, 20),
        "lr": 30.0, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions):
    protocol: Literal["vissl", "moco"] = "vissl"
    """vissl: B1 to B5 and final, 28 epochs; moco: final alone, 100 epochs."""
    epochs: int | None = None
    """Epochs; by default the protocol's. The rate drops after the same shares of them."""
    lr: float | None = None
    """First learning rate for a batch of 256, in proportion for others; by default the protocol's."""

    def constants(self) -> dict[str, Any]:
        """The protocol's values, and what the command line puts in their place."""
        return overridden(PROTOCOLS[self.protocol], self.epochs, self.lr)


@functools.cache
def pretrained(options: Options) -> Pretrained:
    """The weights, read once."""
    return options.pretrained()


def build(options: Options) -> Job:
    require_held_out(options)
    weights, values = pretrained(options), options.constants()
    num_blocks = weights.backbone.num_blocks
    return Job(
        task=LinearProbes(
            train_view(weights.input, options.size_px),
            center_view(weights.input, options.size_px),
            values["head_std"],
            backbone=weights.backbone,
            blocks=values["blocks"],
            batchnorm=values["batchnorm"],
        ),
        backbone=weights.backbone,
        stages=(Stage("linear", 1, num_blocks + 1, num_blocks, values["epochs"]),),
        schedule=step_drops(values["lr"] * options.batch_size / 256, values["intervals"]),
        optimiser=functools.partial(
            probe_sgd, **{name: values[name] for name in ("momentum", "weight_decay", "nesterov")}
        ),
        science=weights.science(),
    )


def finish(options: Options, job: Job, run: Run) -> Sequence[str]:
    record, protocol = pretrained(options).record, f"linear/{options.protocol}"
    path = write_held_out(
        job, run, recipe="linear_probe", protocol=protocol, constants=options.constants(), checkpoint=record
    )
    title = f"{protocol}, {record['backbone']}, {record['path'] or 'random weights'}"
    chart = draw_blocks(scores(run), run.folder / "result.png", title, 100 * job.task.chance(1))  # type: ignore[attr-defined]
    return [result_line(path), f"chart {chart}"]


def parse() -> Options:
    return parse_evaluation(Options, PAPER, SAMPLE, __doc__ or "")


if __name__ == "__main__":
    launch("linear_probe", parse, build, finish)
