"""Semantic segmentation of PASCAL VOC 2012 by fine-tuning every layer (UIC, Table 5; SSL++, Fig. 3).

Paper, mIoU on val with AlexNet: UIC 45.9 %, ImageNet labels 48.0 %, Random-RGB 30.1 %, Random-Sobel 32.0 %,
DeepCluster 45.1 %. UIC does not state its schedule; the protocol fcn_alexnet is that of the peers in its
table. SSL++ only plots its numbers. AlexNet and VGG16 become FCN-32s; others are dilated and get
torchvision's FCN head. What each protocol leaves open is stated in
fastpsl/transfer/segmentation/task.py. Here: not yet run on VOC.

    fastpsl eval segment runs/uic-alexnet-001 --protocol fcn_alexnet \\
        --data VOCdevkit --sbd benchmark_RELEASE
    fastpsl eval segment runs/sslpp-rotation-001 --data VOCdevkit
    fastpsl eval segment runs/jigsaw-001 --gpus 4 --protocol mmseg --sync-batchnorm \\
        --data VOCdevkit --sbd benchmark_RELEASE
    fastpsl eval segment        # random weights on synthetic images, a minute on two cores
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastpsl import engine, evaluation, models, pipelines, plots
from fastpsl.engine import optim
from fastpsl.engine.options import MACHINE, RunOptions
from fastpsl.evaluation.options import WHOLE_IMAGES, TrainedEvaluationOptions, VocOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.transfer import segmentation

PAPER: dict[str, Any] = {"protocol": "sslpp", "batch_size": 2, "size_px": 512}
SAMPLE: dict[str, Any] = {"batchnorm": "train", "batch_size": 4, "epochs": 5, "lr": 0.03}


@dataclass(frozen=True, kw_only=True)
class Options(VocOptions, TrainedEvaluationOptions):
    size_from_run = False
    without: ClassVar[dict[str, str]] = WHOLE_IMAGES | {"whole": "images are always seen whole; leave it out"}
    protocol: Literal["sslpp", "fcn_alexnet", "mmseg"]
    """sslpp: 50 epochs of 2 images; with SBD fcn_alexnet: 150,000 steps of 20, mmseg: 20,000 of 16 crops."""
    sbd: Path | None = field(default=None, metadata=MACHINE)
    """SBD's folder (benchmark_RELEASE); its masks are learned from, too."""
    size_px: int
    """Side of mmseg's crops and shorter side of its test images; other protocols do not resize."""
    epochs: int | None = None
    """Epochs; by default the protocol's epochs or steps."""
    lr: float | None = None
    """First learning rate, the same for every batch size; by default the protocol's."""
    batchnorm: Literal["train", "eval", "fixed"] | None = None
    """train, for random weights; eval: running statistics; fixed: eval, fixed scales; default: protocol's."""

    def constants(self) -> segmentation.SegmentationProtocol:
        """Return the protocol with the values of the command line."""
        protocol = segmentation.changed(
            segmentation.PROTOCOLS[self.protocol], self.epochs, self.lr, self.batchnorm
        )
        return replace(protocol, batch_size=self.batch_size, accumulate=self.accumulate)


def open_voc(options: RunOptions) -> tuple[pipelines.VOC, pipelines.VOC]:
    assert isinstance(options, Options)
    protocol, root = options.constants(), options.data or pipelines.drawn_voc()
    return pipelines.open_train_and_test(root, protocol.train, protocol.test, "masks", options.sbd)


def build(options: Options) -> engine.Experiment:
    segmentation.check_options(options)
    segmentation.require_torchmetrics()
    weights, protocol = options.pretrained(), options.constants()
    network = segmentation.network_of(weights.backbone, protocol.auxiliary_weight > 0)
    crop = (
        segmentation.ScaledCrop(options.size_px, protocol.scales, protocol.max_share)
        if protocol.scales
        else None
    )
    return engine.Experiment(
        task=segmentation.Segmentation(network, weights.input, crop, protocol.auxiliary_weight),
        backbone=weights.backbone,
        stages=(protocol.stage(network.last_block),),
        schedule=protocol.schedule(),
        optimiser=functools.partial(optim.sgd, **protocol.sgd()),
        science=weights.science(),
        open=open_voc,
        batchnorm=protocol.batchnorm,
        finish=functools.partial(finish, options, weights),
    )


def finish(options: Options, weights: models.Pretrained, run: engine.Run) -> Sequence[str]:
    val, record = run.data.val, weights.record
    assert isinstance(val, pipelines.VOC)
    confusions = engine.read_predictions(run.folder / engine.NAME)["confusion"]
    numbers = segmentation.mask_scores(confusions, segmentation.with_background(val))
    path = evaluation.write_run(
        run, recipe="voc_segmentation", protocol=f"segmentation/{options.protocol}", numbers=numbers,
        settings=asdict(options.constants()), checkpoint=record,
    )  # fmt: skip
    sheet = plots.draw_predicted_masks(
        run.folder / "masks.png", run.folder / segmentation.MASKS, val, segmentation.with_background(val)
    )
    each = [f"{name.replace('_', ' ', 1)} {value:.1f} %" for name, value in numbers.items()]
    return [*each, evaluation.result_line(path), f"masks {sheet}"]


RECIPE = Recipe(
    "voc_segmentation",
    __doc__,
    Options,
    PAPER,
    SAMPLE,
    build,
    source="default",
    variant=lambda options: segmentation.batch_of(options),
)

if __name__ == "__main__":
    launch(RECIPE)
