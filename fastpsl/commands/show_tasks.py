"""The tasks that `fastpsl show` draws, at the paper's sizes or with all sizes scaled by one factor."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.permutations import permutation_set
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.standard_views import train_view
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.jigsaw import Jigsaw
from fastpsl.tasks.pseudo_labels.iic import IIC
from fastpsl.tasks.pseudo_labels.uic import UIC
from fastpsl.tasks.rotation import Rotation
from fastpsl.tasks.sslpp.aet import AET
from fastpsl.tasks.sslpp.colorization import Colorization
from fastpsl.tasks.sslpp.context import Context
from fastpsl.tasks.sslpp.rotnet import RotNet
from fastpsl.tasks.sslpp.sslpp import Proxy, SSLPlusPlus

SHORTER_PX = 256  # of the paper's images; all sizes below are relative to it


class ShownTask(Protocol):
    """The part of a task that a contact sheet needs; `captions(batch)` is optional."""

    num_levels: int

    def views(self, level: int) -> tuple[ViewSpec, ...]: ...

    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor: ...


class Crops:
    """The views without a task: two random resized crops of each sample, side by side, as decoded."""

    num_levels = 1

    def __init__(self, shorter_px: int):
        self.view = ViewSpec(RandomResizedCrop(_scaled(224, shorter_px)))

    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view, self.view)

    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        crops = [images.float().cpu() / 255 for images in batch.images]
        gap = crops[0].new_ones(*crops[0].shape[:3], 4)
        return torch.cat([crops[0], gap, crops[1]], 3)


def jigsaw(shorter_px: int) -> Jigsaw:
    counts = (500, 1000, 2000)  # psl.txt, Table 1
    return Jigsaw(
        permutation_set(9, counts).permutations,
        counts,
        shorter_px=shorter_px,
        cell_px=_scaled(75, shorter_px),
        tile_px=_scaled(64, shorter_px),
        permutations_per_image=1,
        embedding_width=1000,
    )


def rotation(shorter_px: int) -> Rotation:
    return Rotation(shorter_px=shorter_px, size_px=_scaled(224, shorter_px))


def simclr(shorter_px: int) -> SimCLR:
    return SimCLR(batch_size=256, size_px=_scaled(224, shorter_px), temperature=0.1, embedding_width=128)


def moco(shorter_px: int) -> MoCo:
    return MoCo(
        seed=0,
        batch_size=256,
        queue_size=65_536,
        momentum=0.999,
        temperature=0.2,
        key_group=32,
        width=128,
        size_px=_scaled(224, shorter_px),
    )


def uic(shorter_px: int) -> UIC:
    size_px = _scaled(224, shorter_px)
    input = Input.usual("SobelXY", size_px)
    return UIC(3000, input, size_px, seed=0, augmentation="standard", label_view="train")


def iic(size_px: int) -> IIC:
    return IIC(
        70, size_px=size_px, crop_share=0.625, transforms="sobel", num_copies=3, num_sub_heads=5,
    )  # fmt: skip


def sslpp(proxy: Callable[[int], Proxy]) -> Callable[[int], SSLPlusPlus]:
    """Return the constructor of SSL++ with `proxy`.

    Its view is the whole image, since the paper's images have 32 px.
    """
    return lambda size_px: SSLPlusPlus(
        proxy(size_px), train_view(Input(size_px=size_px), size_px, "padded"), weight=1.0
    )


TASKS: dict[str, Callable[[int], ShownTask]] = {
    "crops": Crops,
    "jigsaw": jigsaw,
    "rotation": rotation,
    "simclr": simclr,
    "moco": moco,
    "uic": uic,
    "iic": iic,
    "colorization": sslpp(Colorization),
    "context": sslpp(lambda size_px: Context(0.5, size_px)),
    "rotnet": sslpp(RotNet),
    "aet": sslpp(lambda size_px: AET("projective", size_px)),
}


def _scaled(px: int, shorter_px: int) -> int:
    """Return the paper's size `px` for images with a shorter side of `shorter_px`."""
    return round(px * shorter_px / SHORTER_PX)
