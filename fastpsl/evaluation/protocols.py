"""A backbone's blocks, by name and with their shapes, and the published protocols of linear probes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpsl.engine.optim.schedules import Schedule, inverse_root, step_drops
from fastpsl.kernels.draws import Keys
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.pipelines.views import ViewSpec


def block_number(text: str, num_blocks: int, names: Sequence[str] = ()) -> int:
    """Return the number of a block, from 1."""
    if text == "final":
        return num_blocks
    if text in names:
        return names.index(text) + 1
    number = text[1:]
    if text[:1] not in ("B", "b") or not number.isdecimal() or not 1 <= int(number) <= num_blocks:
        alternatives = f", which are {', '.join(names)}" if names else ""
        raise ValueError(
            f"--block {text}: this backbone has B1 to B{num_blocks}{alternatives}; final is the last"
        )
    return int(number)


def applied(view: ViewSpec, images: Tensor) -> Tensor:
    """Apply a view of which nothing is random to images, uint8 [N, 3, h, w], on their device, in float32."""
    draws = view.draw(Keys(0, 0, np.zeros(1, np.int64)))
    on_device = [{k: torch.as_tensor(v, device=images.device) for k, v in draw.items()} for draw in draws]
    return view.apply(images, on_device, torch.float32)


@torch.no_grad()
def block_shapes(backbone: Backbone, view: ViewSpec, num_blocks: int | None = None) -> list[tuple[int, ...]]:
    """Return (channels, height, width) of each block's output.

    One black image is passed through the view and the blocks; modes and running statistics stay as they are.
    """
    device, side = next(backbone.parameters()).device, view.crop.size_px
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    maps = applied(view, image.contiguous(memory_format=torch.channels_last))
    # The size after the ops is checked, because an op may enlarge the crop.
    check_size(min(maps.shape[2:]), backbone.min_px)
    modes = [(module, module.training) for module in backbone.modules()]
    shapes = []
    for block in backbone.eval().blocks()[:num_blocks]:
        maps = block(maps)
        shapes.append(tuple(maps.shape[1:]))
    for module, training in modes:
        module.training = training
    return shapes


@dataclass(frozen=True)
class Pool:
    """A pool that reduces a map to grid x grid; a grid of None leaves the map as it is.

    `window` is the published pool (side, kernel, stride, padding) for maps of that side only. A side of None
    applies it to every map that the kernel fits into.
    """

    grid: int | None
    kind: Literal["average", "max"] = "average"
    window: tuple[int | None, int, int, int] | None = None


# The average over the whole map; it also serves blocks without a pool in the protocol (fully-connected ones).
WHOLE = Pool(1)


def pooled(features: Tensor, pool: Pool) -> Tensor:
    """Return features [B, C, h, w] pooled to [B, C, grid, grid].

    The pool's window is used where the map has its side, as in images of 224 px. Maps of other sizes, which
    the protocols do not have, are pooled adaptively to the same grid. A side shorter than the grid stays as
    it is.
    """
    if pool.window is not None:
        side, kernel, stride, padding = pool.window
        if features.shape[-2:] == (side, side) or (side is None and kernel <= min(features.shape[-2:])):
            by_windows = F.max_pool2d if pool.kind == "max" else F.avg_pool2d
            return by_windows(features, kernel, stride, padding)
    if pool.grid is None:
        return features
    adaptive = F.adaptive_max_pool2d if pool.kind == "max" else F.adaptive_avg_pool2d
    return adaptive(features, min(pool.grid, *features.shape[-2:]))


def pooled_width(shape: Sequence[int], pool: Pool) -> int:
    """Return the number of values that `pooled` makes of a map of this shape (channels, height, width)."""
    return pooled(torch.zeros(1, *shape), pool).numel()


@dataclass(frozen=True, kw_only=True)
class LinearProtocol:
    """The published values of a linear probe."""

    pools: tuple[Pool, ...]  # pools of B1, B2, …; if empty, only the final features are probed
    # BatchNorm2d between pool and classifier, with scale and shift ("affine") or without ("plain").
    batchnorm: Literal["affine", "plain"] | None = None
    # Initial weights are N(0, head_std²) and biases 0; None means torch's initialisation.
    head_std: float | None = None
    # "random_resized", or the position of a `kernels.crops.ShorterSideCrop`.
    train_crop: Literal["random_resized", "random", "random_middle"]
    num_crops: Literal[1, 10] = 1  # validation crops, whose softmaxes are averaged: 1 (the middle) or 10
    epochs: int
    lr: float  # first learning rate for a batch of `lr_batch`
    lr_batch: int = 256
    # Epochs between drops of the rate by `factor`; if empty, it falls as DeepCluster's
    # (`schedules.inverse_root`).
    intervals: tuple[int, ...] = ()
    factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def schedule(self, batch_size: int) -> Schedule:
        """Return the schedule for this batch; rates are proportional to its size."""
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
    # VISSL's schedules for other data. MMSelfSup trains 28 epochs on Places205: `--epochs 28`.
    "vissl_places205": replace(_VISSL, epochs=14, intervals=(4, 4, 4, 2)),
    "vissl_inat18": replace(_VISSL, epochs=84, intervals=(24, 24, 24, 12)),
    # MoCo, main_lincls.
    "moco": LinearProtocol(
        pools=(), head_std=0.01, train_crop="random_resized", epochs=100, lr=30.0, intervals=(60, 20, 20),
    ),
    # UIC, section 4.3: "max-pooling to separately reduce the activation dimensions to 9600, 9216, 9600, 9600
    # and 9216". The paper does not state the max-pool's windows (here adaptive), the momentum, the batch, a
    # BatchNorm (here none) and how ten crops are combined.
    "uic": LinearProtocol(
        pools=tuple(Pool(grid, "max") for grid in (10, 6, 5, 5, 6)), train_crop="random", num_crops=10,
        epochs=32, lr=0.1, intervals=(10, 10, 10, 2),
    ),
    # RotNet, ImageNet_LinearClassifiers_ImageNet_RotNet_AlexNet_Features. Its table of rates begins with
    # 0.01, though it states 0.1. Its initial weights have a variance of 2 / classes; ImageNet has 1000.
    "rotnet": LinearProtocol(
        pools=tuple(Pool(grid, "max") for grid in (12, 7, 5, 6, 6)), batchnorm="plain",
        head_std=(2 / 1000) ** 0.5, train_crop="random", epochs=35, lr=0.01, lr_batch=192,
        intervals=(5, 10, 10, 10), factor=0.2, nesterov=True, weight_decay=5e-4,
    ),
    # SSL++, section V.A and Tables I, II and VII: "adaptive max pooling" to "about 9,000 elements" of conv1
    # to conv5, and fc7, which is B7. The paper does not state the rest. Here: RotNet's grids, which give
    # alexnet_rotnet about 9,000 elements, and its BatchNorm, Nesterov and crops ("following" it). Initial
    # weights are torch's, because RotNet's variance of 2 / classes would be 100 times as large for STL-10's
    # ten classes as for ImageNet's.
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
