"""The options of UIC's and IIC's recipes. This module does not import torch, which is slow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import override

from fastpsl.engine.options import MACHINE, PerStage, PretrainOptions, SGDOptions

OWN_ORDER = dict.fromkeys(
    ("order", "lanes"), "the order of the images comes from their pseudo-labels; leave it out"
)
Augmentation = Literal["standard", "strong"]
LabelView = Literal["train", "center"]
Transforms = Literal["crop", "flip", "colour", "grey", "sobel"]


# Section 4.3, "Further Fine-Tuning": 30 epochs. The paper does not state the rate; here it is a tenth of the
# first one, because the network is trained already.
FINE_TUNE = {"epochs": (30,), "lr": 0.01}


@dataclass(frozen=True, kw_only=True)
class UICOptions(SGDOptions):
    """The options of UIC's recipes."""

    without: ClassVar[dict[str, str]] = OWN_ORDER

    backbone: str
    """Name of the network, as in other recipes."""
    num_clusters: int
    """Number of clusters, the classes of the classifier; none is ever empty."""
    input_channels: Literal["RGB", "SobelXY"]
    """What the network sees: the image, or its grey value's two gradients."""
    augment: Augmentation
    """standard: crops and flip; strong: SimCLR's colour distortion and blur too."""
    label_view: LabelView
    """train: labels come from the training forward pass; center: from a pass over all images before each
    epoch.
    """
    lr: float
    """Learning rate at the start; it falls to 0 in a straight line."""
    weight_decay: float
    """On weights, biases and BatchNorm."""
    dropout: float | None = None
    """Share of fc6's and fc7's inputs that are dropped; by default the backbone's own."""
    size_px: PerStage
    """Side of the crops: one value, or one for each stage."""
    # The content of the file is science (see `build`), its path is not.
    fine_tune: Path | None = field(default=None, metadata=MACHINE)
    """A finished run of this recipe, or a checkpoint: go on with its network, on the labels that it gives the
    centre crops.
    """
    pseudo_labels: Path | None = field(default=None, metadata=MACHINE)
    """Learn from the labels in this file, and make none, also with --fine-tune (labels.npz of a run)."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fine_tune is not None and self.init is not None:
            raise ValueError(
                f"--init {self.init} with --fine-tune, whose run brings its weights: leave one of them out"
            )


def fine_tuning(options: UICOptions) -> Mapping[str, Any]:
    """Return the paper's values that differ with --fine-tune, as a recipe's `variant`."""
    return FINE_TUNE if options.fine_tune is not None else {}


@dataclass(frozen=True, kw_only=True)
class IICOptions(PretrainOptions):
    """The options of IIC's recipes."""

    without: ClassVar[dict[str, str]] = {
        "accumulate": "each part would have the mutual information of its own pairs, which is another loss; "
        "use more GPUs, or a smaller --batch-size"
    }

    backbone: str
    """Name of the network, as in other recipes."""
    num_clusters: int
    """Clusters of the head that makes the labels."""
    num_heads: Literal[1, 2]
    """2: a second head, of --second-clusters, learns for two epochs after each epoch of the first."""
    second_clusters: int = 10
    """Clusters of the second head."""
    num_sub_heads: int
    """Classifiers of a head; the one of lowest loss makes the labels."""
    num_copies: int
    """Transformed copies that an image is paired with."""
    augment: Transforms
    """What the copies go through besides crops; each adds to the one before: crop, flip, colour, grey, sobel
    (Table XIV).
    """
    crop_share: float
    """Side of the crops, as a share of the image's shorter side."""
    size_px: PerStage
    """Side to which the crops are resized: one value, or one for each stage."""
    lr: float
    """Adam's, constant."""
