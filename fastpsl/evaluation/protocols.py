"""Protocols of linear probes: each with the pools, views and schedule that were published, as data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastpsl.engine.optim.schedules import Schedule, inverse_root, step_drops


@dataclass(frozen=True)
class Pool:
    """Makes a map grid x grid; a grid of None leaves it as it is.

    window: the published pool (side, kernel, stride, padding), for maps of that side alone; a side of None: for every map that the
    kernel fits into.
    """

    grid: int | None
    kind: Literal["average", "max"] = "average"
    window: tuple[int | None, int, int, int] | None = None


# Of the average over a whole map, and of blocks that a protocol has no pool for: fully-connected ones.
WHOLE = Pool(1)


def pooled(features: Tensor, pool: Pool) -> Tensor:
    """Features [B, C, h, w] to [B, C, grid, grid].

    By the pool's window where the map is as large as that asks, which it is in pictures of 224 px. In other sizes, which the protocols
    do not have, adaptively to the same grid, and left as they are where the map is smaller than that.
    """
    if pool.window is not None:
        side, kernel, stride, padding = pool.window
        if features.shape[-2:] == (side, side) or (side is None and kernel <= min(features.shape[-2:])):
            by_windows = F.max_pool2d if pool.kind == "max" else F.avg_pool2d
            made: Tensor = by_windows(features, kernel, stride, padding)
            return made
    if pool.grid is None:
        return features
    adaptive = F.adaptive_max_pool2d if pool.kind == "max" else F.adaptive_avg_pool2d
    made = adaptive(features, min(pool.grid, *features.shape[-2:]))
    return made


def pooled_width(shape: Sequence[int], pool: Pool) -> int:
    """The number of values that `pooled` makes of a map (channels, height, width)."""
    return pooled(torch.zeros(1, *shape), pool).numel()


@dataclass(frozen=True, kw_only=True)
class LinearProtocol:
    """pools: of B1, B2, …; without any the final features alone are probed.

    batchnorm: BatchNorm2d between pool and classifier, with scale and shift ("affine") or without ("plain"). head_std: initial weights
    are N(0, head_std) and biases 0; None is torch's initialisation. train_crop: "random_resized", or where the shorter side's crop is
    (`kernels.crops.ShorterSideCrop`). num_crops: 1, the middle, or 10, whose softmaxes are averaged. lr: for a batch of `lr_batch`.
    intervals: after each the rate is multiplied by `factor`; without any it falls as DeepCluster's does, `schedules.inverse_root`.
    """

    pools: tuple[Pool, ...]
    batchnorm: Literal["affine", "plain"] | None = None
    head_std: float | None = None
    train_crop: Literal["random_resized", "random", "random_middle"]
    num_crops: Literal[1, 10] = 1
    epochs: int
    lr: float
    lr_batch: int = 256
    intervals: tuple[int, ...] = ()
    factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def schedule(self, batch_size: int) -> Schedule:
        """Rates for this batch, in proportion to it. ValueError for rates of 0 and less."""
        lr = self.lr * batch_size / self.lr_batch
        if self.intervals:
            return step_drops(lr, self.intervals, self.factor)
        return inverse_root(lr, self.weight_decay)


# VISSL, eval_resnet_8gpu_transfer_in1k_linear.
_VISSL = LinearProtocol(
    pools=(
        Pool(12, window=(112, 10, 10, 4)), Pool(6, window=(56, 16, 8, 0)), Pool(4, window=(28, 13, 5, 0)),
        Pool(3, window=(14, 8, 3, 0)), Pool(2, window=(7, 6, 1, 0)),
    ),
    batchnorm="affine", train_crop="random_resized",
    epochs=28, lr=0.01, intervals=(8, 8, 8, 4), nesterov=True, weight_decay=5e-4,
)  # fmt: skip
PROTOCOLS: dict[str, LinearProtocol] = {
    "vissl": _VISSL,
    # VISSL's for other data, else as for ImageNet. MMSelfSup trains 28 epochs on Places205: `--epochs 28`.
    "vissl_places205": replace(_VISSL, epochs=14, intervals=(4, 4, 4, 2)),
    "vissl_inat18": replace(_VISSL, epochs=84, intervals=(24, 24, 24, 12)),
    # MoCo, main_lincls.
    "moco": LinearProtocol(
        pools=(), head_std=0.01, train_crop="random_resized", epochs=100, lr=30.0, intervals=(60, 20, 20),
    ),
    # UIC, section 4.3: "max-pooling to separately reduce the activation dimensions to 9600, 9216, 9600, 9600 and 9216". Silent, and
    # our choice: where the max-pool's windows lie (adaptive), momentum, the batch, no BatchNorm, how ten crops become one answer.
    "uic": LinearProtocol(
        pools=tuple(Pool(grid, "max") for grid in (10, 6, 5, 5, 6)), train_crop="random", num_crops=10,
        epochs=32, lr=0.1, intervals=(10, 10, 10, 2),
    ),
    # RotNet, ImageNet_LinearClassifiers_ImageNet_RotNet_AlexNet_Features. Its table of rates begins with 0.01, though it says 0.1;
    # its initial weights have a variance of 2 / classes, of which ImageNet has 1000.
    "rotnet": LinearProtocol(
        pools=tuple(Pool(grid, "max") for grid in (12, 7, 5, 6, 6)), batchnorm="plain", head_std=(2 / 1000) ** 0.5,
        train_crop="random", epochs=35, lr=0.01, lr_batch=192, intervals=(5, 10, 10, 10), factor=0.2,
        nesterov=True, weight_decay=5e-4,
    ),
    # SSL++, section V.A and Tables I, II and VII: "adaptive max pooling" to "about 9,000 elements" of conv1 to conv5, and fc7, which is B7.
    # Silent, and our choice: RotNet's grids, which give alexnet_rotnet so many, its BatchNorm, Nesterov and crops ("following" it);
    # first weights are torch's, as RotNet's variance of 2 / classes would be 100 times as large for STL-10's ten as for ImageNet's.
    "sslpp": LinearProtocol(
        pools=tuple(Pool(grid, "max") for grid in (12, 7, 5, 6, 6)), batchnorm="plain", train_crop="random",
        epochs=200, lr=0.1, lr_batch=64, intervals=(100, 50, 50), nesterov=True, weight_decay=5e-4,
    ),
    # DeepCluster, eval_linear.py as eval_linear.sh starts it: a weight decay of 1e-7.
    "deepcluster": LinearProtocol(
        pools=(
            Pool(10, window=(55, 6, 6, 3)), Pool(6, window=(27, 4, 4, 0)), Pool(5, window=(13, 3, 3, 1)),
            Pool(5, window=(13, 3, 3, 1)), Pool(6, window=(13, 2, 2, 0)),
        ),
        train_crop="random_middle", num_crops=10, epochs=90, lr=0.01, weight_decay=1e-7,
    ),
}  # fmt: skip
