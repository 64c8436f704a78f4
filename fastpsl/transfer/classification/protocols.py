"""Protocols of multi-label classification on VOC2007 by fine-tuning: each with the splits, schedule and crops that were published, as data.

Both stand on philkr/voc-classification (Krähenbühl et al., uic.txt and sslpp.txt cite it): crops of .1 to .5 of the area, BatchNorm by its
running statistics, gradients clipped at 10, a new classifier of N(0, .01) with biases .1, the outputs of ten random crops summed. Its own
way to crop is Caffe's (a scale of .5 to 2); DeepCluster's script has it as an area.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fastpsl.engine.optim.schedules import Schedule, step_drops
from fastpsl.engine.plan import Stage
from fastpsl.models.backbone import Backbone

Layers = Literal["fc6_8", "all"]
BATCH_SIZE = 16


@dataclass(frozen=True)
class Rate:
    """A rate for a batch of `BATCH_SIZE`, multiplied by `factor` between `intervals`, which are shares of the training."""

    lr: float
    intervals: tuple[int, ...] = (1,)
    factor: float = 0.5


@dataclass(frozen=True, kw_only=True)
class MultiLabelProtocol:
    """train, test: image sets (`pipelines.voc.VOC`). fc6_8, all: the rate by what learns. epochs or num_steps: the length, as in `Stage`.

    new_fc: whether fc6 and fc7 begin anew, as the classifier does, or as they were learned. area, ratio: of the crops, in training and
    test. clip_norm, batchnorm: see `Experiment`.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    fc6_8: Rate
    all: Rate
    epochs: int = 0
    num_steps: int | None = None
    momentum: float = 0.9
    weight_decay: float
    new_fc: bool
    area: tuple[float, float] = (0.1, 0.5)
    ratio: tuple[float, float] = (1.0, 1.0)
    num_crops: int = 10
    clip_norm: float = 10.0
    batchnorm: Literal["eval"] = "eval"

    def rate(self, layers: Layers) -> Rate:
        return self.fc6_8 if layers == "fc6_8" else self.all

    def schedule(self, layers: Layers, batch_size: int) -> Schedule:
        """Rates for this batch, in proportion to it. ValueError for rates of 0 and less."""
        rate = self.rate(layers)
        return step_drops(rate.lr * batch_size / BATCH_SIZE, rate.intervals, rate.factor)

    def stage(self, layers: Layers, backbone: Backbone) -> Stage:
        """The one stage: from fc6 on, or all blocks. ValueError where there is no fc6."""
        first = 1 if layers == "all" else fc6(backbone)
        return Stage("voc", 1, first, backbone.num_blocks, self.epochs, self.num_steps)


def constants_of(protocol: MultiLabelProtocol, layers: Layers) -> dict[str, Any]:
    """The protocol's values as plain ones, the rate of `layers` among them: for the settings of result.json."""
    values = asdict(protocol)
    del values["fc6_8"], values["all"]
    return values | asdict(protocol.rate(layers)) | {"lr_batch": BATCH_SIZE}


def changed(
    protocol: MultiLabelProtocol, layers: Layers, num_steps: int | None, lr: float | None
) -> MultiLabelProtocol:
    """The protocol in another number of steps, or with another first rate, where they are given. ValueError for no steps at all."""
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"--num-steps {num_steps}: it must be 1 or more")
    if num_steps is not None:
        protocol = replace(protocol, epochs=0, num_steps=num_steps)
    if lr is None:
        return protocol
    rate = replace(protocol.rate(layers), lr=lr)
    return replace(protocol, fc6_8=rate) if layers == "fc6_8" else replace(protocol, all=rate)


def fc6(backbone: Backbone) -> int:
    """The number of the block that is called fc6, from 1; ValueError where none is."""
    if "fc6" not in backbone.block_names:
        raise ValueError(
            f"--layers fc6_8: {backbone.name} has no fc6 (its blocks are {', '.join(backbone.block_names)}); "
            "give --layers all, or the weights of an alexnet or vgg16"
        )
    return backbone.block_names.index("fc6") + 1


PROTOCOLS: dict[str, MultiLabelProtocol] = {
    # DeepCluster, eval_voc_classif.py and its .sh (80,000 steps; the older scripts for Caffe, of 150,000, have the rate for all layers). Its
    # README's erratum: 72.0 mAP (fc6_8) was with scales and shifts of BatchNorm learning in frozen blocks too; without, as here, 70.4.
    "deepcluster": MultiLabelProtocol(
        train=("2007_trainval",), test=("2007_test",),
        fc6_8=Rate(0.003, (5_000,) * 16), all=Rate(0.001, (20_000,) * 4), num_steps=80_000,
        weight_decay=1e-6, new_fc=True,
    ),
    # SSL++, Tables I and II. Without the "magic init", as it says: nothing is rescaled. It does not say whether fc6 and fc7 begin anew:
    # here they go on, as philkr/voc-classification has it unless told otherwise.
    "sslpp": MultiLabelProtocol(
        train=("2007_train",), test=("2007_test",),
        fc6_8=Rate(0.003), all=Rate(0.001), epochs=200,
        weight_decay=5e-4, new_fc=False,
    ),
}  # fmt: skip
