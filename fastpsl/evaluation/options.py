"""The options that evaluations share. This module does not import torch, which is slow."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from typing_extensions import Self, override
from tyro.conf import Positional, arg

from fastpsl.console.terminal import own_rank
from fastpsl.engine.options import DATA, MACHINE, RunOptions, TrainingOptions
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.files.paths import FORMS
from fastpsl.models.names import ANY_BACKBONE
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from fastpsl.scripts.recipe import require_paths

if TYPE_CHECKING:
    from fastpsl.models.weights import Pretrained
    from fastpsl.pipelines.views import Input


# The options that data sets of PASCAL VOC refuse.
OF_VOC = dict.fromkeys(("range", "bands"), "VOC's images have 8 bits and three colours; leave it out") | {
    "val": "the protocol says which part of --data is scored; leave it out"
}
# The options that a loader of whole images refuses.
_NOT_WHOLE = ("order", "lanes", "on_bad_sample", "hw_decoder_load")
WHOLE_IMAGES = dict.fromkeys(_NOT_WHOLE, "it is not for whole images; leave it out") | OF_VOC


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(RunOptions):
    """The options that all evaluations share.

    Those that name the weights are no science, because `Pretrained.science` identifies the weights by a
    digest.
    """

    sample_backbone: ClassVar[str] = "resnet18"
    size_from_run: ClassVar[bool] = True
    """Whether the side of the images is that of the run, where the command gives none."""

    checkpoint: Positional[Annotated[str | None, arg(metavar="RUN")]] = field(default=None, metadata=MACHINE)
    """A run's folder (its newest checkpoint), a checkpoint, a file of `fastpsl export`, or others' weights
    (the documentation has them under Use weights of other projects): a file, timm/NAME[.TAG], or an address
    such as hf://ORG/NAME.
    """
    random_weights: bool = field(default=False, metadata=MACHINE)
    """Random weights, of --seed, instead of a RUN: what the features are worth before any learning."""
    backbone: Annotated[
        str | None,
        arg(
            help=f"{ANY_BACKBONE}:\n"
            "for others' weights, random ones and your own module; other checkpoints of fastpsl say it "
            "themselves."
        ),
    ] = field(default=None, metadata=MACHINE)
    input_channels: Literal["RGB", "L", "Sobel", "SobelXY"] | None = field(default=None, metadata=MACHINE)
    """What others' weights were trained on: RGB, L (lightness alone), or the gradients Sobel or SobelXY."""
    input_mean: tuple[float, ...] | None = field(default=None, metadata=MACHINE)
    """Mean that was subtracted, one value per channel, of pixels in [0, 1]."""
    input_std: tuple[float, ...] | None = field(default=None, metadata=MACHINE)
    """Standard deviation that was divided by, one value per channel."""
    size_px: int = 224
    """Side of the evaluation's images. Without it: of RUN's images, at most a published protocol's side."""
    whole: bool = False
    """Show an image's whole middle square, and not the 224/256 of it that are usual: for small images, such
    as CIFAR's.
    """

    @override
    def completed(self) -> Self:
        """Choose random weights of `sample_backbone` where neither RUN nor --data was given."""
        if self.data is not None or self.checkpoint is not None:
            return self
        return replace(self, random_weights=True, backbone=self.backbone or self.sample_backbone)

    @override
    def of_run(self) -> dict[str, Any]:
        if self.checkpoint is None:
            return {}
        require_paths(self)
        values = dict[str, Any]()
        if self.data is None and (run := TrainedRun.of(self.checkpoint)):
            values |= self._data_of(run)
        return values | (self.recorded_size() if self.size_from_run else {})

    @override
    def reading(self) -> tuple[Reading, str]:
        """Return how --data is to be read: without an option for it, as the weights' training images were."""
        own, _ = super().reading()
        if self.checkpoint is None or (self.range and self.bands):
            return own, ""
        from fastpsl.models.initial_weights import known_input
        from fastpsl.pipelines.datasets.open import OF_WEIGHTS

        input = known_input(self.checkpoint)
        theirs = PLAIN if input is None else input.reading
        limits = None if own.measures else own.range or theirs.range
        reading = Reading(limits, own.bands or theirs.bands, own.measures)
        return reading, "" if own != PLAIN else OF_WEIGHTS

    def recorded_size(self) -> dict[str, Any]:
        """Return the side of RUN's images, or of a model of timm, as `size_px`; nothing if none is known."""
        from fastpsl.models.initial_weights import known_input

        input = None if self.checkpoint is None else known_input(self.checkpoint, self.backbone)
        return {} if input is None else {"size_px": input.size_px}

    def _data_of(self, run: TrainedRun) -> dict[str, str | None]:
        """Return the images of a run that are --data and --val where the command gives neither."""
        if self.forms != FORMS:
            return {}
        if "val" in self.without:  # nothing is learned
            return {"data": run.val_data()}
        remedy = "give --data and --val"
        return {"data": run.train_images(remedy), "val": run.val_images(remedy)}

    def pretrained(self) -> Pretrained:
        """Return the weights that the options name; rank 0 prints which they are."""
        from fastpsl.models.initial_weights import load_pretrained
        from fastpsl.models.weights import random_weights

        if self.random_weights == (self.checkpoint is not None):
            raise ValueError("give either RUN or --random-weights")
        if self.checkpoint is not None:
            weights = load_pretrained(self.checkpoint, self.backbone, self.given_input())
        elif self.backbone is None:
            raise ValueError("--random-weights needs --backbone, such as --backbone resnet50")
        else:
            weights = random_weights(self.backbone, self.seed, self.given_input())
        if own_rank() == 0:
            size = f"; images of {self.size_px} px" if self.size_from_run else ""
            print(f"weights: {weights}{size}", flush=True)
        return weights

    def given_input(self) -> Input | None:
        """Return the input record of the --input options, or None without them."""
        return given_input(self.input_channels, self.input_mean, self.input_std, self.size_px)


@dataclass(frozen=True, kw_only=True)
class VocOptions(EvaluationOptions):
    """The options of evaluations on PASCAL VOC."""

    forms: ClassVar[str] = "VOCdevkit, the folder of PASCAL VOC"

    data: str | None = field(default=None, metadata=MACHINE | DATA)
    """VOCdevkit, the folder of PASCAL VOC that holds VOC2007 and VOC2012 as their archives extract, or the
    folder around it. Without it: small images that the package generates.
    """


@dataclass(frozen=True, kw_only=True)
class FloorOptions(EvaluationOptions):
    """The options of evaluations that show an untrained network beside."""

    floor: bool = field(default=True, metadata=MACHINE)
    """Also score the same network before any training. It takes as long again, once: the scores are kept in
    the cache.
    """


@dataclass(frozen=True, kw_only=True)
class TrainedEvaluationOptions(EvaluationOptions, TrainingOptions):
    """The options of evaluations that train something on the features, such as a classifier."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(TrainedEvaluationOptions):
    """The options of classifiers on frozen blocks."""

    floor: bool = field(default=False, metadata=MACHINE)
    """Also train the same classifiers on the same network before any training, and show them beside. It takes
    as long again, once: the scores are kept in the cache.
    """


Options = TypeVar("Options", bound=EvaluationOptions)


def with_weights(options: Options, weights: Pretrained) -> Options:
    """Return the same options, whose `pretrained` hands out these weights instead of reading a file."""
    kind = type("Options", (type(options),), {"pretrained": lambda _: weights})
    same: Options = kind(**{field.name: getattr(options, field.name) for field in fields(options)})
    return same


def given_input(
    channels: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, size_px: int
) -> Input | None:
    """Return the input record of --input-channels, --input-mean and --input-std, or None without them."""
    if channels is None and mean is None and std is None:
        return None
    if channels is None or mean is None or std is None:
        raise ValueError(
            "--input-channels, --input-mean and --input-std belong together: give all three or none"
        )
    from fastpsl.pipelines.views import Input

    return Input(channels, tuple(map(float, mean)), tuple(map(float, std)), size_px)
