"""Linear classifiers on the frozen features of each block, in one pass (PSL, section 4.2, and others).

The others are UIC, section 4.3, and SSL++, Table VII. PSL follows "a common protocol", which it does
not state. Its source [23] has --protocol vissl, as VISSL has it: every block and the averaged last one.
MoCo's, for the averaged last block alone, is moco. For UIC give uic; rotnet and deepcluster are those of the
AlexNets that it is compared with. For SSL++ give --protocol sslpp --batch-size 64. Here: not yet run on
ImageNet.

Other data, PSL's Table 9, the best of five blocks of jigsaw and rotation with PSL: Places205 44.7
and 43.0 % (vissl_places205); iNaturalist 2018 24.1 and 25.9 % (vissl_inat18). Its text gives no schedule;
these are VISSL's. For the lists of images see
https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html. Here: not yet run.

    fastpsl eval linear runs/jigsaw-001 --gpus 8 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl eval linear runs/uic-alexnet-001 --gpus 8 --protocol uic \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    fastpsl eval linear runs/jigsaw-001 --gpus 8 --protocol vissl_inat18 \\
        --data inat18/train2018.json --val inat18/val2018.json
    fastpsl eval linear            # random weights on the embedded sample, a minute on two cores
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from tyro.conf import arg

from fastpsl import engine, evaluation, models, pipelines, plots
from fastpsl.evaluation.options import ProbeOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe

PAPER: dict[str, Any] = {"protocol": "vissl", "batch_size": 256, "size_px": 224}
SAMPLE: dict[str, Any] = {"protocol": "vissl", "batch_size": 32, "size_px": 96, "epochs": 8, "lr": 0.05}


@dataclass(frozen=True, kw_only=True)
class Options(ProbeOptions):
    protocol: Annotated[
        Literal["vissl", "vissl_places205", "vissl_inat18", "moco", "uic", "rotnet", "deepcluster", "sslpp"],
        arg(
            help="Epochs: vissl 28, vissl_places205 14, vissl_inat18 84 (every block and final), moco 100 "
            "(final alone); AlexNet's: uic 32, rotnet 35, deepcluster 90, sslpp 200."
        ),
    ]
    epochs: int | None = None
    """Epochs; by default the protocol's. Drops of the rate keep their shares (deepcluster's is by steps)."""
    lr: float | None = None
    """First rate for 256 images (rotnet: 192, sslpp: 64), scaled for others; by default the protocol's."""

    def constants(self) -> evaluation.LinearProtocol:
        """Return the protocol with the values of the command line."""
        return replace(evaluation.PROTOCOLS[self.protocol], **evaluation.overridden({}, self.epochs, self.lr))


def build(options: Options) -> engine.Experiment:
    evaluation.require_val(options)
    weights, protocol = options.pretrained(), options.constants()
    num_blocks = weights.backbone.num_blocks
    if options.whole and protocol.num_crops == 10:
        raise ValueError(
            f"--whole: --protocol {options.protocol} is scored on ten crops; leave --whole out, "
            "or choose another --protocol"
        )
    _, *more_crops = pipelines.ten_crop_views(weights.input, options.size_px)
    task = evaluation.LinearProbes(
        pipelines.train_view(weights.input, options.size_px, protocol.train_crop),
        pipelines.center_view(weights.input, options.size_px, options.whole),
        protocol.head_std,
        backbone=weights.backbone,
        pools=protocol.pools,
        batchnorm=protocol.batchnorm,
        more_crops=tuple(more_crops) if protocol.num_crops == 10 else (),
    )
    floor = evaluation.ProbeFloor("linear_probe", options, weights)
    return engine.Experiment(
        task=task,
        backbone=weights.backbone,
        stages=(engine.Stage("linear", 1, num_blocks + 1, num_blocks, protocol.epochs),),
        schedule=protocol.schedule(options.batch_size),
        optimiser=functools.partial(
            evaluation.probe_sgd,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            nesterov=protocol.nesterov,
        ),
        science=weights.science(),
        beside=floor.train,
        finish=functools.partial(finish, options, weights, task, floor),
    )


def finish(
    options: Options, weights: models.Pretrained, task: evaluation.LinearProbes,
    floor: evaluation.ProbeFloor, run: engine.Run,
) -> Sequence[str]:  # fmt: skip
    record, protocol, numbers = weights.record, f"linear/{options.protocol}", evaluation.scores(run)
    constants = asdict(options.constants())
    path = evaluation.write_val(
        task, run, recipe="linear_probe", protocol=protocol, constants=constants, checkpoint=record,
        floor=floor.numbers,
    )  # fmt: skip
    title = f"{protocol}, {record['backbone']}, {record['path'] or 'random weights'}"
    chart = plots.draw_blocks(numbers, run.folder / "result.png", title, 100 * task.chance(1))
    best = evaluation.best_block_lines(numbers, evaluation.num_scored(run))
    return [*best, *floor.lines(), evaluation.result_line(path), f"chart {chart}"]


RECIPE = Recipe("linear_probe", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
