"""Published protocols of multi-label classification on VOC2007 by fine-tuning, as data.

Both protocols follow philkr/voc-classification (Krähenbühl et al., cited by UIC and SSL++). Crops have .1
to .5 of the area, BatchNorm uses its running statistics, and gradients are clipped at 10. The new classifier
is N(0, .01) with biases .1, and the outputs of ten random crops are summed. That code crops as Caffe does (a
scale of .5 to 2); DeepCluster's script states an area.
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
    """A learning rate that drops during the training.

    Attributes:
        lr: First rate for a batch of `BATCH_SIZE`.
        intervals: Shares of the training; between two of them the rate is multiplied by `factor`.
        factor: Factor of a drop.
    """

    lr: float
    intervals: tuple[int, ...] = (1,)
    factor: float = 0.5


@dataclass(frozen=True, kw_only=True)
class MultiLabelProtocol:
    """A protocol: image sets, schedule and crops.

    Attributes:
        train: Image sets to learn from (`pipelines.voc.VOC`).
        test: Image sets to score on.
        fc6_8: Rate where fc6 to fc8 learn.
        all: Rate where every layer learns.
        epochs: Length in epochs, as in `Stage`.
        steps: Length in steps, as in `Stage`.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        new_fc: Whether fc6 and fc7 are initialised anew, as the classifier is.
        area: Share of the image's area that a crop takes, in training and in test.
        ratio: Aspect ratios of crops, in training and in test.
        num_crops: Crops of a test image.
        clip_norm: See `Experiment`.
        batchnorm: See `Experiment`.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    fc6_8: Rate
    all: Rate
    epochs: int = 0
    steps: int | None = None
    momentum: float = 0.9
    weight_decay: float
    new_fc: bool
    area: tuple[float, float] = (0.1, 0.5)
    ratio: tuple[float, float] = (1.0, 1.0)
    num_crops: int = 10
    clip_norm: float = 10.0
    batchnorm: Literal["eval"] = "eval"

    def rate(self, layers: Layers) -> Rate:
        """Return the rate for what learns."""
        return self.fc6_8 if layers == "fc6_8" else self.all

    def schedule(self, layers: Layers, batch_size: int) -> Schedule:
        """Return the schedule, in proportion to the batch size.

        Raises:
            ValueError: If the rate is 0 or less.
        """
        rate = self.rate(layers)
        return step_drops(rate.lr * batch_size / BATCH_SIZE, rate.intervals, rate.factor)

    def stage(self, layers: Layers, backbone: Backbone) -> Stage:
        """Return the one stage, in which the blocks from fc6 on or all blocks learn.

        Raises:
            ValueError: If "fc6_8" is to learn and the backbone has no fc6.
        """
        first = 1 if layers == "all" else fc6(backbone)
        return Stage("voc", 1, first, backbone.num_blocks, self.epochs, self.steps)


def constants_of(protocol: MultiLabelProtocol, layers: Layers) -> dict[str, Any]:
    """Return the values of the protocol and its rate for `layers`, for the settings of result.json."""
    values = asdict(protocol)
    del values["fc6_8"], values["all"]
    return values | asdict(protocol.rate(layers)) | {"lr_batch": BATCH_SIZE}


def changed(
    protocol: MultiLabelProtocol, layers: Layers, steps: int | None, lr: float | None
) -> MultiLabelProtocol:
    """Return the protocol with the given values in place of its own.

    Raises:
        ValueError: If `steps` is below 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: it must be 1 or more")
    if steps is not None:
        protocol = replace(protocol, epochs=0, steps=steps)
    if lr is None:
        return protocol
    rate = replace(protocol.rate(layers), lr=lr)
    return replace(protocol, fc6_8=rate) if layers == "fc6_8" else replace(protocol, all=rate)


def fc6(backbone: Backbone) -> int:
    """Return the number of the block named fc6, from 1.

    Raises:
        ValueError: If the backbone has no such block.
    """
    if "fc6" not in backbone.block_names:
        raise ValueError(
            f"--layers fc6_8: {backbone.name} has no fc6 (its blocks are {', '.join(backbone.block_names)}); "
            "give --layers all, or the weights of an alexnet or vgg16"
        )
    return backbone.block_names.index("fc6") + 1


PROTOCOLS: dict[str, MultiLabelProtocol] = {
    # DeepCluster, eval_voc_classif.py and its .sh: 80,000 steps. The older scripts for Caffe, of 150,000
    # steps, have the rate for all layers. The README's erratum: 72.0 mAP (fc6_8) was measured while scales
    # and shifts of BatchNorm learned in frozen blocks, too; it is 70.4 where they do not, as here.
    "deepcluster": MultiLabelProtocol(
        train=("2007_trainval",), test=("2007_test",),
        fc6_8=Rate(0.003, (5_000,) * 16), all=Rate(0.001, (20_000,) * 4), steps=80_000,
        weight_decay=1e-6, new_fc=True,
    ),
    # SSL++, Tables I and II. The paper leaves out the "magic init", so nothing is rescaled. It does not state
    # whether fc6 and fc7 are initialised anew. Here they are not, as is the default of
    # philkr/voc-classification.
    "sslpp": MultiLabelProtocol(
        train=("2007_train",), test=("2007_test",),
        fc6_8=Rate(0.003), all=Rate(0.001), epochs=200,
        weight_decay=5e-4, new_fc=False,
    ),
}  # fmt: skip
