"""Published protocols of segmentation on VOC2012, train → val: data sets, schedules and crops, as data."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from fastpsl.engine.optim.schedules import Schedule, polynomial, step_drops
from fastpsl.engine.plan import Stage
from fastpsl.transfer import image_input as whole_input

BatchNorm = Literal["train", "eval", "fixed"]


@dataclass(frozen=True, kw_only=True)
class SegmentationProtocol:
    """A protocol of segmentation."""

    train: tuple[str, ...] = ("2012_train",)  # image sets to learn from (`pipelines.voc.VOC`)
    test: tuple[str, ...] = ("2012_val",)
    needs_sbd: bool  # whether SBD's images are learned from, too
    epochs: int = 0
    steps: int | None = None
    batch_size: int
    accumulate: int = 1  # parts of a batch that are read one after another to save memory
    lr: float
    intervals: tuple[int, ...] = (1,)  # shares of the training; the rate falls tenfold between two of them
    power: float | None = None  # the rate falls as a polynomial of this power to `end_lr` instead
    end_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_biases: bool
    # Scales of random crops (`ScaledCrop`). Without them images keep their size, in training and in test.
    scales: tuple[float, float] | None = None
    max_share: float = 1.0  # see `ScaledCrop`
    auxiliary_weight: float = 0.0  # weight of the loss of a second head on B4, if the network has one
    batchnorm: BatchNorm

    def schedule(self) -> Schedule:
        """Return the schedule, which does not depend on the batch size."""
        if self.power is None:
            return step_drops(self.lr, self.intervals)
        return polynomial(self.lr, self.power, self.end_lr)

    def sgd(self) -> dict[str, Any]:
        """Return the arguments of `optim.sgd`."""
        names = ("momentum", "weight_decay", "decay_biases")
        return {name: getattr(self, name) for name in names}

    def stage(self, last_block: int) -> Stage:
        """Return the one stage, in which every block up to `last_block` learns."""
        return Stage("segmentation", 1, 1, last_block, self.epochs, self.steps)


def changed(
    protocol: SegmentationProtocol, epochs: int | None, lr: float | None, batchnorm: BatchNorm | None
) -> SegmentationProtocol:
    """Return the protocol with the given values in place of its own.

    Raises:
        ValueError: If `epochs` is below 1.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: it must be 1 or more")
    if epochs is not None:
        protocol = replace(protocol, epochs=epochs, steps=None)
    if lr is not None:
        # The last rate keeps its ratio to the first.
        protocol = replace(protocol, lr=lr, end_lr=protocol.end_lr * lr / protocol.lr)
    return protocol if batchnorm is None else replace(protocol, batchnorm=batchnorm)


def batch_of(options: Any) -> dict[str, Any]:
    """Return the protocol's values of options that every run has."""
    protocol = PROTOCOLS[options.protocol]
    return {"batch_size": protocol.batch_size, "accumulate": protocol.accumulate}


def check_options(options: Any) -> None:
    """Raise for options of recipes/voc_segmentation.py that do not hold.

    Raises:
        ValueError: For options of other evaluations, and if the protocol learns from SBD and --data comes
            without --sbd.
    """
    whole_input.check_options(options)
    if options.whole:
        raise ValueError("--whole: images are not cut to squares here; leave it out")
    if PROTOCOLS[options.protocol].needs_sbd and options.data is not None and options.sbd is None:
        raise ValueError(
            f"--protocol {options.protocol} learns from SBD's masks too: give its folder, "
            f"--sbd benchmark_RELEASE"
        )


PROTOCOLS: dict[str, SegmentationProtocol] = {
    # SSL++, Table II (SGD, batch 2, momentum 0.9, decay 5e-4, rate .001, 50 epochs, no schedule) and Table I
    # (VOC12 train → val): "we use the publicly available testing protocol … of Long et al. [70] for
    # segmentation". The rest is not stated and follows Long et al.: no SBD, whole images, neither scaled nor
    # mirrored, and no decay of biases. BatchNorm uses its running statistics, because batches of 2 have no
    # useful ones. Its scales and shifts learn; Caffe's nets have them in their convolutions.
    "sslpp": SegmentationProtocol(
        needs_sbd=False, epochs=50, batch_size=2, lr=1e-3, decay_biases=False, batchnorm="eval",
    ),
    # Zhang et al., "Colorful image colorization", with voc-fcn-alexnet of shelhamer/fcn.berkeleyvision.org:
    # 50,000 steps at each rate, 20 times one image per step (iter_size). UIC does not state its schedule.
    # This is the one of the peers in its table. One difference: biases have twice the rate there.
    "fcn_alexnet": SegmentationProtocol(
        needs_sbd=True, steps=150_000, batch_size=20, accumulate=20, lr=1e-4, intervals=(1, 1, 1),
        decay_biases=False, batchnorm="eval",
    ),
    # MMSelfSup, benchmarks/mmsegmentation/voc12aug/fcn_r50-d8_512x512_20k_voc12aug: 4 GPUs of 4 images with
    # SyncBN. Differences: its photometric distortion is left out here. Its decoding head has two 3x3
    # convolutions of 512 channels and reads B5 again after them, and its auxiliary head has one of 256;
    # torchvision's have one each, of 512 and 256. Its loss is divided by a number that includes void pixels.
    "mmseg": SegmentationProtocol(
        needs_sbd=True, steps=20_000, batch_size=16, lr=0.01, power=0.9, end_lr=1e-4, decay_biases=True,
        scales=(0.5, 2.0), max_share=0.75, auxiliary_weight=0.4, batchnorm="train",
    ),
}  # fmt: skip
