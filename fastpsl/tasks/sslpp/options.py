"""The options of SSL++'s recipes. This module does not import torch, which is slow."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from fastpsl.engine.options import MACHINE, PerStage, PretrainOptions, SGDOptions

NONE, COUPLED = "none", "coupled"


@dataclass(frozen=True, kw_only=True)
class SSLPlusPlusOptions(PretrainOptions):
    """The options of SSL++'s recipes."""

    backbone: str
    """Name of the network, as in other recipes."""
    # The content of the file is science (see `build`), its path is not.
    pseudo_labels: str = field(default=NONE, metadata=MACHINE)
    """none: the proxy task alone; a file (of sslpp_iic or fastpsl labels): a second target beside it;
    coupled: k-means' labels, anew before each epoch.
    """
    semantic_weight: Annotated[float, arg(aliases=("--lambda",))]
    """Of the pseudo-labels' loss beside the proxy's: the paper's lambda. Without effect where they are
    learned alone.
    """
    proxy: bool = True
    """Learn the proxy task; --no-proxy: the pseudo-labels alone."""
    num_clusters: int = 70
    """Number of clusters of coupled labels; a file of labels has its own number."""
    lr: float
    """Learning rate at the start."""
    intervals: tuple[int, ...]
    """Shares of the training; after each the rate drops."""
    weight_decay: float
    """On weights, biases and BatchNorm."""
    size_px: PerStage
    """Side of the images that the network sees: one value, or one for each stage."""
    crop: Literal["padded", "random_resized"] = "padded"
    """padded: the whole image, moved by up to an eighth of its side (RotNet's and AET's on CIFAR);
    random_resized: as is usual for larger ones.
    """


@dataclass(frozen=True, kw_only=True)
class SSLPlusPlusSGDOptions(SSLPlusPlusOptions, SGDOptions):
    """The options of SSL++'s recipes that learn by SGD."""
