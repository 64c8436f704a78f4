"""Detection on PASCAL VOC by fine-tuning (psl.txt: Table 8; uic.txt: Table 5; sslpp.txt: Fig. 3).

PSL has ResNet-50 C4, VOC07+12 trainval → 07 test, "the same training schedule as [23, 37]" and fixed
BatchNorm. The schedules differ in their rate. The default, pirl, is [37]'s, because Table 8 has its columns:
AP, AP50, AP75 and the distance from Supervised. The protocol vissl is [23]'s, and moco is MoCo's, whose
BatchNorm learns. UIC has fast_rcnn, and SSL++ has sslpp.
Paper (AP, AP50, AP75): Jigsaw 48.9, 75.1, 52.9, with PSL 51.1, 78.9, 55.3; Rotation 46.3, 72.5, 49.3, with
PSL 47.6, 74.6, 51.1. UIC's AlexNet has 54.9 AP50. Here: not yet run.

    torchrun --nproc-per-node=8 recipes/voc_detection.py --checkpoint runs/jigsaw_r50-001 --data VOCdevkit
    torchrun --nproc-per-node=8 recipes/voc_detection.py --protocol moco --sync-batchnorm \\
        --checkpoint runs/mocov2_r50-001 --data VOCdevkit
    python recipes/voc_detection.py --protocol fast_rcnn --checkpoint runs/uic_alexnet-001 --data VOCdevkit \\
        --proposals selective_search_data/voc_2007_trainval.mat selective_search_data/voc_2007_test.mat
    python recipes/voc_detection.py --protocol sslpp --checkpoint runs/sslpp_rotation-001 --data VOCdevkit
    torchrun recipes/voc_detection.py            # random weights on synthetic images, minutes on two cores
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.launch import launch
from fastpsl.engine.optim.sgd_adam import sgd
from fastpsl.engine.options import MACHINE
from fastpsl.engine.predictions import NAME, read_predictions
from fastpsl.engine.recipe import Recipe
from fastpsl.engine.run import Run
from fastpsl.evaluation.held_out import write_run
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.result import result_line
from fastpsl.models.weight_files import sha256_of_file
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.sample.voc import drawn_voc
from fastpsl.pipelines.voc.dataset import VOC
from fastpsl.plots.detections import draw_detections
from fastpsl.transfer.detection.box_scores import box_scores, require_pycocotools
from fastpsl.transfer.detection.protocols import PROTOCOLS, DetectionProtocol
from fastpsl.transfer.detection.task import Detection

PAPER: dict[str, Any] = {"protocol": "pirl", "batch_size": 16}
SAMPLE: dict[str, Any] = {"protocol": "small", "batch_size": 8}


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions):
    protocol: Literal["pirl", "vissl", "moco", "fast_rcnn", "sslpp", "small"]
    """ResNets: pirl, vissl, moco; AlexNet: fast_rcnn (UIC), sslpp; small: synthetic images of 128 px."""
    num_steps: int | None = None
    """Steps; by default the protocol's. Drops of the rate and warm-up keep their shares."""
    lr: float | None = None
    """Rate for the protocol's batch, scaled for others (as many steps); by default the protocol's."""
    short_px: tuple[int, ...] = ()
    """Shorter sides of training images, drawn at random; tests use the largest. Default: the protocol's."""
    anchor_px: tuple[int, ...] = ()
    """Sides of the square anchors; by default the protocol's."""
    proposals: tuple[str, ...] = field(default=(), metadata=MACHINE)  # `build` records digests
    """For fast_rcnn: published proposals, a file for each training set, then one for the test set."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.whole or self.size_px != EvaluationOptions.size_px:
            raise ValueError(
                "--whole and --size-px are for square views; detection sees whole pictures: give --short-px"
            )

    def constants(self) -> DetectionProtocol:
        """Return the protocol with the values of the command line."""
        return PROTOCOLS[self.protocol].changed(
            num_steps=self.num_steps, lr=self.lr, short_px=self.short_px, anchor_px=self.anchor_px
        )


def build(options: Options) -> Experiment:
    require_pycocotools()
    weights, protocol = options.pretrained(), options.constants()
    task = Detection(protocol, weights.backbone, weights.input, options.seed, options.proposals)
    return Experiment(
        task=task,
        backbone=weights.backbone,
        stages=(task.stage(),),
        schedule=protocol.schedule(options.batch_size),
        optimiser=functools.partial(
            sgd, weight_decay=protocol.weight_decay, decay_biases=protocol.decay_biases
        ),
        science=weights.science() | {"proposals": [sha256_of_file(Path(path)) for path in options.proposals]},
        open=lambda opts: task.open(Path(opts.data) if opts.data else drawn_voc(), opts),
        batchnorm=protocol.batchnorm,
        finish=functools.partial(finish, options, weights),
    )


def finish(options: Options, weights: Pretrained, run: Run) -> Sequence[str]:
    data, detections = run.data.val, read_predictions(run.folder / NAME)
    assert isinstance(data, VOC)
    numbers = box_scores(detections, data)
    path = write_run(
        run, recipe="voc_detection", protocol=f"detection/{options.protocol}", numbers=numbers,
        settings=asdict(options.constants()), checkpoint=weights.record,
    )  # fmt: skip
    sheet = draw_detections(run.folder / "detections.png", data, detections)
    lines = [f"{name} {numbers[name]:.1f} %" for name in ("AP", "AP50", "AP75")]
    return [*lines, result_line(path), f"detections {sheet}"]


RECIPE = Recipe(
    "voc_detection", __doc__, Options, PAPER, SAMPLE, build,
    source="default", variant=lambda options: {"batch_size": PROTOCOLS[options.protocol].lr_batch},
)  # fmt: skip

if __name__ == "__main__":
    launch(RECIPE)
