"""Detection on PASCAL VOC by fine-tuning (PSL, Table 8; UIC, Table 5; SSL++, Fig. 3).

PSL has ResNet-50 C4, VOC07+12 trainval → 07 test, "the same training schedule as [23, 37]" and fixed
BatchNorm. The schedules differ in their rate. The default, pirl, is [37]'s, because Table 8 has its columns:
AP, AP50, AP75 and the distance from Supervised. The protocol vissl is [23]'s, and moco is MoCo's, whose
BatchNorm learns. UIC has fast_rcnn, and SSL++ has sslpp.
Paper (AP, AP50, AP75): Jigsaw 48.9, 75.1, 52.9, with PSL 51.1, 78.9, 55.3; Rotation 46.3, 72.5, 49.3, with
PSL 47.6, 74.6, 51.1. UIC's AlexNet has 54.9 AP50. Here: not yet run.

    fastpsl eval detect runs/jigsaw-001 --gpus 8 --data VOCdevkit
    fastpsl eval detect runs/mocov2-001 --gpus 8 --protocol moco --sync-batchnorm \\
        --data VOCdevkit
    python recipes/voc_detection.py runs/uic-alexnet-001 --protocol fast_rcnn --data VOCdevkit \\
        --proposals selective_search_data/voc_2007_trainval.mat selective_search_data/voc_2007_test.mat
    python recipes/voc_detection.py runs/sslpp-rotation-001 --protocol sslpp --data VOCdevkit
    fastpsl eval detect            # random weights on synthetic images, minutes on two cores
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastpsl import engine, evaluation, models, pipelines, plots
from fastpsl.engine import optim
from fastpsl.engine.options import MACHINE
from fastpsl.evaluation.options import WHOLE_IMAGES, TrainedEvaluationOptions, VocOptions
from fastpsl.files.digest import sha256_of_file
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.transfer import detection

PAPER: dict[str, Any] = {"protocol": "pirl", "batch_size": 16}
SAMPLE: dict[str, Any] = {"protocol": "small", "batch_size": 8}


@dataclass(frozen=True, kw_only=True)
class Options(VocOptions, TrainedEvaluationOptions):
    size_from_run = False
    without: ClassVar[dict[str, str]] = (
        dict.fromkeys(
            ("whole", "size_px"), "it is for square views; detection sees whole images: give --short-side"
        )
        | WHOLE_IMAGES
    )
    protocol: Literal["pirl", "vissl", "moco", "fast_rcnn", "sslpp", "small"]
    """ResNets: pirl, vissl, moco; AlexNet: fast_rcnn (UIC), sslpp; small: synthetic images of 128 px."""
    steps: int | None = None
    """Steps; by default the protocol's. Drops of the rate and warm-up keep their shares."""
    lr: float | None = None
    """Rate for the protocol's batch, scaled for others (as many steps); by default the protocol's."""
    short_side: tuple[int, ...] = ()
    """Shorter sides of training images, drawn at random; tests use the largest. Default: the protocol's."""
    anchor_px: tuple[int, ...] = ()
    """Sides of the square anchors; by default the protocol's."""
    proposals: tuple[str, ...] = field(default=(), metadata=MACHINE)  # `build` records digests
    """For fast_rcnn: published proposals, a file for each training set, then one for the test set."""

    def constants(self) -> detection.DetectionProtocol:
        """Return the protocol with the values of the command line."""
        return detection.PROTOCOLS[self.protocol].changed(
            steps=self.steps, lr=self.lr, short_side=self.short_side, anchor_px=self.anchor_px
        )


def build(options: Options) -> engine.Experiment:
    detection.require_pycocotools()
    weights, protocol = options.pretrained(), options.constants()
    task = detection.Detection(protocol, weights.backbone, weights.input, options.seed, options.proposals)
    return engine.Experiment(
        task=task,
        backbone=weights.backbone,
        stages=(task.stage(),),
        schedule=protocol.schedule(options.batch_size),
        optimiser=functools.partial(
            optim.sgd, weight_decay=protocol.weight_decay, decay_biases=protocol.decay_biases
        ),
        science=weights.science() | {"proposals": [sha256_of_file(Path(path)) for path in options.proposals]},
        open=lambda opts: task.open(Path(opts.data) if opts.data else pipelines.drawn_voc(), opts),
        batchnorm=protocol.batchnorm,
        finish=functools.partial(finish, options, weights),
    )


def finish(options: Options, weights: models.Pretrained, run: engine.Run) -> Sequence[str]:
    data, detections = run.data.val, engine.read_predictions(run.folder / engine.NAME)
    assert isinstance(data, pipelines.VOC)
    numbers = detection.box_scores(detections, data)
    path = evaluation.write_run(
        run, recipe="voc_detection", protocol=f"detection/{options.protocol}", numbers=numbers,
        settings=asdict(options.constants()), checkpoint=weights.record,
    )  # fmt: skip
    sheet = plots.draw_detections(run.folder / "detections.png", data, detections)
    lines = [f"{name} {numbers[name]:.1f} %" for name in ("AP", "AP50", "AP75")]
    return [*lines, evaluation.result_line(path), f"detections {sheet}"]


RECIPE = Recipe(
    "voc_detection", __doc__, Options, PAPER, SAMPLE, build,
    source="default", variant=lambda options: {"batch_size": detection.PROTOCOLS[options.protocol].lr_batch},
)  # fmt: skip

if __name__ == "__main__":
    launch(RECIPE)
