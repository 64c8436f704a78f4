"""Linear classifiers on the frozen features of each block, in one pass (psl.txt, section 4.2, and others).

The others are uic.txt, section 4.3, and sslpp.txt, Table VII. PSL follows "a common protocol", which it does
not state. Its source [23] has --protocol vissl, as VISSL has it: every block and the averaged last one.
MoCo's, for the averaged last block alone, is moco. For UIC give uic; rotnet and deepcluster are those of the
AlexNets that it is compared with. For SSL++ give --protocol sslpp --batch-size 64. Here: not yet run on
ImageNet.

Other data, PSL's Table 9, the best of five blocks of jigsaw and rotation with PSL: Places205 44.7
and 43.0 % (vissl_places205); iNaturalist 2018 24.1 and 25.9 % (vissl_inat18). Its text gives no schedule;
these are VISSL's. The lists of images are in docs/sources.md. Here: not yet run.

    torchrun --nproc-per-node=8 recipes/linear_probe.py --checkpoint runs/jigsaw_r50-001 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    torchrun --nproc-per-node=8 recipes/linear_probe.py --protocol uic --checkpoint runs/uic_alexnet-001 \\
        --data 'imagenet/train-*.beton' --val imagenet/val.beton
    torchrun --nproc-per-node=8 recipes/linear_probe.py --protocol vissl_inat18 \\
        --checkpoint runs/jigsaw_r50-001 --data inat18/train2018.json --val inat18/val2018.json
    torchrun recipes/linear_probe.py            # random weights on the embedded sample, a minute on two cores
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from tyro.conf import arg

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.launch import launch
from fastpsl.engine.plan import Stage
from fastpsl.engine.recipe import Recipe
from fastpsl.engine.run import Run
from fastpsl.evaluation.held_out import overridden, require_held_out, scores, write_held_out
from fastpsl.evaluation.linear import LinearProbes, best_block_lines, probe_sgd
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.protocols import PROTOCOLS, LinearProtocol
from fastpsl.evaluation.result import result_line
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.standard_views import center_view, ten_crop_views, train_view
from fastpsl.plots.block_bars import draw_blocks

PAPER: dict[str, Any] = {"protocol": "vissl", "batch_size": 256, "size_px": 224}
SAMPLE: dict[str, Any] = {"protocol": "vissl", "batch_size": 32, "size_px": 96, "epochs": 8, "lr": 0.05}


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions):
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

    def constants(self) -> LinearProtocol:
        """Return the protocol with the values of the command line."""
        return replace(PROTOCOLS[self.protocol], **overridden({}, self.epochs, self.lr))


def build(options: Options) -> Experiment:
    require_held_out(options)
    weights, protocol = options.pretrained(), options.constants()
    num_blocks = weights.backbone.num_blocks
    if options.whole and protocol.num_crops == 10:
        raise ValueError(
            f"--whole: --protocol {options.protocol} is scored on ten crops; leave it out, "
            f"or choose another one"
        )
    _, *more_crops = ten_crop_views(weights.input, options.size_px)
    task = LinearProbes(
        train_view(weights.input, options.size_px, protocol.train_crop),
        center_view(weights.input, options.size_px, options.whole),
        protocol.head_std,
        backbone=weights.backbone,
        pools=protocol.pools,
        batchnorm=protocol.batchnorm,
        more_crops=tuple(more_crops) if protocol.num_crops == 10 else (),
    )
    return Experiment(
        task=task,
        backbone=weights.backbone,
        stages=(Stage("linear", 1, num_blocks + 1, num_blocks, protocol.epochs),),
        schedule=protocol.schedule(options.batch_size),
        optimiser=functools.partial(
            probe_sgd,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            nesterov=protocol.nesterov,
        ),
        science=weights.science(),
        finish=functools.partial(finish, options, weights, task),
    )


def finish(options: Options, weights: Pretrained, task: LinearProbes, run: Run) -> Sequence[str]:
    record, protocol = weights.record, f"linear/{options.protocol}"
    constants = asdict(options.constants())
    path = write_held_out(
        task, run, recipe="linear_probe", protocol=protocol, constants=constants, checkpoint=record
    )
    title = f"{protocol}, {record['backbone']}, {record['path'] or 'random weights'}"
    chart = draw_blocks(scores(run), run.folder / "result.png", title, 100 * task.chance(1))
    return [*best_block_lines(scores(run)), result_line(path), f"chart {chart}"]


RECIPE = Recipe("linear_probe", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
