"""Multi-label classification of VOC2007 by fine-tuning (UIC, Table 5; SSL++, Fig. 3).

Paper, mAP of fc6-8 / all: UIC 76.2 / 75.9 %, ImageNet labels 78.9 / 79.9 %, Random-RGB 33.2 / 57.0 %,
Random-Sobel 29.0 / 61.9 %, DeepCluster 72.0 / 73.7 %. UIC does not state its schedule; the protocol
deepcluster is that of the peers in its table. SSL++ only plots its numbers. Here: not yet run on VOC2007.

    fastpsl eval multilabel runs/uic-alexnet-001 --data VOCdevkit \\
        --layers fc6_8      # and again with all
    fastpsl eval multilabel runs/sslpp-rotation-001 --protocol sslpp \\
        --data VOCdevkit
    fastpsl eval multilabel      # random weights on synthetic images, a minute on two cores
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fastpsl import engine, evaluation, models, pipelines, plots
from fastpsl.engine import optim
from fastpsl.engine.options import RunOptions
from fastpsl.evaluation.options import OF_VOC, TrainedEvaluationOptions, VocOptions
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.transfer import classification

PAPER: dict[str, Any] = {"protocol": "deepcluster", "layers": "all", "batch_size": 16, "size_px": 224}
SAMPLE: dict[str, Any] = {"size_px": 48, "steps": 600, "lr": 0.01}


@dataclass(frozen=True, kw_only=True)
class Options(VocOptions, TrainedEvaluationOptions):
    without: ClassVar[dict[str, str]] = {
        **OF_VOC,
        "whole": "the protocols are scored on random crops; leave it out",
    }
    protocol: Literal["deepcluster", "sslpp"]
    """deepcluster: VOC2007's trainval, 80,000 steps; sslpp: its train, 200 epochs. Both: its test set."""
    layers: Literal["fc6_8", "all"]
    """fc6_8: conv1 to conv5 stay fixed (AlexNet, VGG16); all: every layer learns."""
    steps: int | None = None
    """Steps; by default the protocol's. Drops of the rate keep their shares of the training."""
    lr: float | None = None
    """First learning rate for a batch of 16, scaled for others; by default the protocol's."""

    def constants(self) -> classification.MultiLabelProtocol:
        """Return the protocol with the values of the command line."""
        return classification.changed(
            classification.PROTOCOLS[self.protocol], self.layers, self.steps, self.lr
        )


def open_voc(options: RunOptions) -> tuple[pipelines.VOC, pipelines.VOC]:
    assert isinstance(options, Options)
    protocol, root = options.constants(), options.data or pipelines.drawn_voc()
    return pipelines.open_train_and_test(root, protocol.train, protocol.test, "boxes")


def build(options: Options) -> engine.Experiment:
    weights, protocol = options.pretrained(), options.constants()
    stage = protocol.stage(options.layers, weights.backbone)
    view = classification.crop_view(weights.input, options.size_px, protocol.area, protocol.ratio)
    if protocol.new_fc:
        classification.reinitialise_fc(weights.backbone)
    return engine.Experiment(
        task=classification.MultiLabel(view, protocol.num_crops),
        backbone=weights.backbone,
        stages=(stage,),
        schedule=protocol.schedule(options.layers, options.batch_size),
        optimiser=functools.partial(
            optim.sgd, momentum=protocol.momentum, weight_decay=protocol.weight_decay, decay_biases=True
        ),
        science=weights.science(),
        open=open_voc,
        batchnorm=protocol.batchnorm,
        clip_norm=protocol.clip_norm,
        finish=functools.partial(finish, options, weights),
    )


def finish(options: Options, weights: models.Pretrained, run: engine.Run) -> Sequence[str]:
    test, protocol, record = run.data.val, options.constants(), weights.record
    assert isinstance(test, pipelines.VOC) and test.class_names is not None
    predictions = engine.read_predictions(run.folder / engine.NAME)
    numbers = classification.label_scores(predictions, test.targets(), test.class_names)
    settings = classification.constants_of(protocol, options.layers) | {
        "num_scored": len(predictions["image"])
    }
    path = evaluation.write_run(
        run,
        recipe="voc_classification",
        protocol=f"classification/{options.protocol}",
        numbers=numbers,
        settings=settings,
        checkpoint=record,
    )
    title = f"classification/{options.protocol}, {options.layers}, {record['backbone']}, "
    title += f"{record['path'] or 'random weights'}"
    chart = plots.draw_classes(numbers, run.folder / "result.png", title)
    return [f"mAP {numbers['mAP']:.1f} %", evaluation.result_line(path), f"chart {chart}"]


RECIPE = Recipe("voc_classification", __doc__, Options, PAPER, SAMPLE, build, source="default")

if __name__ == "__main__":
    launch(RECIPE)
