"""Protocols of segmentation on VOC2012, train → val: each with the data, schedule and crops that were published, as data."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from fastpsl.engine.optim.schedules import Schedule, polynomial, step_drops
from fastpsl.engine.plan import Stage
from fastpsl.transfer import image_input as whole_input

BatchNorm = Literal["train", "eval", "fixed"]


@dataclass(frozen=True, kw_only=True)
class SegmentationProtocol:
    """train, test: image sets (`pipelines.voc.VOC`). needs_sbd: whether SBD's pictures belong to what is learned from. epochs or num_steps: the length,
    as in `Stage`.

    accumulate: pictures of a batch one after another, where memory is short. lr: falls tenfold between `intervals`, which are shares of the
    training; or, with `power`, as a polynomial to `end_lr`. scales: of random crops (`mask_crop.ScaledCrop`); without them pictures are whole
    and as large as they are, in training and in test. auxiliary_weight: of the loss of a second head on B4, where the network
    has one. batchnorm: see `Experiment`.
    """

    train: tuple[str, ...] = ("2012_train",)
    test: tuple[str, ...] = ("2012_val",)
    needs_sbd: bool
    epochs: int = 0
    num_steps: int | None = None
    batch_size: int
    accumulate: int = 1
    lr: float
    intervals: tuple[int, ...] = (1,)
    power: float | None = None
    end_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_biases: bool
    scales: tuple[float, float] | None = None
    max_share: float = 1.0
    auxiliary_weight: float = 0.0
    batchnorm: BatchNorm

    def schedule(self) -> Schedule:
        """The rate, whatever the batch. ValueError for rates of 0 and less."""
        if self.power is None:
            return step_drops(self.lr, self.intervals)
        return polynomial(self.lr, self.power, self.end_lr)

    def sgd(self) -> dict[str, Any]:
        """Arguments of `optimisers.sgd`."""
        names = ("momentum", "weight_decay", "decay_biases")
        return {name: getattr(self, name) for name in names}

    def stage(self, last_block: int) -> Stage:
        """The one stage: every block that the network reads learns."""
        return Stage("segmentation", 1, 1, last_block, self.epochs, self.num_steps)


def changed(
    protocol: SegmentationProtocol, epochs: int | None, lr: float | None, batchnorm: BatchNorm | None
) -> SegmentationProtocol:
    """The protocol with other values, where they are given. ValueError for no epoch at all."""
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: it must be 1 or more")
    if epochs is not None:
        protocol = replace(protocol, epochs=epochs, num_steps=None)
    if lr is not None:
        # What the rate ends at keeps its share of the first.
        protocol = replace(protocol, lr=lr, end_lr=protocol.end_lr * lr / protocol.lr)
    return protocol if batchnorm is None else replace(protocol, batchnorm=batchnorm)


def batch_of(options: Any) -> dict[str, Any]:
    """The protocol's values of options that every run has. options: of recipes/voc_segmentation.py, here and below."""
    protocol = PROTOCOLS[options.protocol]
    return {"batch_size": protocol.batch_size, "accumulate": protocol.accumulate}


def check_options(options: Any) -> None:
    """ValueError for options of other evaluations, and for a protocol on given data without SBD, which it learns from."""
    whole_input.check_options(options)
    if options.whole:
        raise ValueError("--whole: pictures are not cut to squares here; leave it out")
    if PROTOCOLS[options.protocol].needs_sbd and options.data is not None and options.sbd is None:
        raise ValueError(
            f"--protocol {options.protocol} learns from SBD's masks too: give its folder, --sbd benchmark_RELEASE"
        )


PROTOCOLS: dict[str, SegmentationProtocol] = {
    # SSL++, Table II (SGD, batch 2, momentum 0.9, decay 5e-4, rate .001, 50 epochs, no schedule) and Table I (VOC12 train → val); "we use the
    # publicly available testing protocol … of Long et al. [70] for segmentation". Silent, and our choice, as in that one: no SBD, whole
    # pictures, neither scaled nor mirrored; biases do not decay; BatchNorm by its running statistics, of which batches of 2 have none to
    # speak of, with scales and shifts that learn (Caffe's nets have them in their convolutions).
    "sslpp": SegmentationProtocol(needs_sbd=False, epochs=50, batch_size=2, lr=1e-3, decay_biases=False, batchnorm="eval"),
    # Zhang et al., "Colorful image colorization", with voc-fcn-alexnet of shelhamer/fcn.berkeleyvision.org: 50,000 steps at each rate, a
    # picture 20 times (iter_size). UIC does not state its schedule; this is that of its Table's peers. Differs: a bias has twice the rate
    # there.
    "fcn_alexnet": SegmentationProtocol(
        needs_sbd=True, num_steps=150_000, batch_size=20, accumulate=20, lr=1e-4, intervals=(1, 1, 1), decay_biases=False,
        batchnorm="eval",
    ),
    # MMSelfSup, benchmarks/mmsegmentation/voc12aug/fcn_r50-d8_512x512_20k_voc12aug: 4 GPUs of 4 pictures with SyncBN. Differs: its
    # photometric distortion is left out; its decoding head has two 3x3 convolutions of 512 channels and reads B5 again behind them, its
    # auxiliary head one of 256: torchvision's have one, of 512 and 256; void pixels count in the number that its loss is divided by.
    "mmseg": SegmentationProtocol(
        needs_sbd=True, num_steps=20_000, batch_size=16, lr=0.01, power=0.9, end_lr=1e-4, decay_biases=True,
        scales=(0.5, 2.0), max_share=0.75, auxiliary_weight=0.4, batchnorm="train",
    ),
}  # fmt: skip
