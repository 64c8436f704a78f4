"""A view's operations as users of Kornia and torchvision write them, with our parameters.

Their random draws cannot be given, and so happen within the timed region. They also differ from ours: Kornia
draws one order of the colour operations per batch, and torchvision v2 draws one value of everything per
batch. Results are therefore not compared with theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import kornia
import torch
from kornia import augmentation
from torch import Tensor, nn
from torchvision.transforms import v2
from typing_extensions import override

from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.rotate90 import AllTurns, Rotate90
from fastpsl.kernels.sobel import Sobel
from fastpsl.kernels.sobel_xy import SobelXY
from fastpsl.pipelines.views import ViewSpec

Views = Sequence[ViewSpec]
Peer = Callable[[Sequence[Tensor]], Tensor]  # uint8 images [B, 3, S, S], one per view → the normalised batch


class RandomSobel(nn.Module):
    """A Sobel filter by Kornia for a random part of the samples, since Kornia has no such augmentation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    @override
    def forward(self, images: Tensor) -> Tensor:
        is_filtered = torch.rand(len(images), 1, 1, 1, device=images.device) < self.p
        return torch.where(is_filtered, kornia.filters.sobel(images), images)


class Gradients(nn.Module):
    """A filter by Kornia that returns the x and y gradients of the grey image."""

    @override
    def forward(self, images: Tensor) -> Tensor:
        return kornia.filters.spatial_gradient(images.mean(1, keepdim=True))[:, 0]


class Turns(nn.Module):
    """A module that returns a batch and its copies in rotations by equal angles.

    Attributes:
        num: Number of copies.
        first: Angle in degrees of the first copy.
    """

    def __init__(self, num: int, first: float) -> None:
        super().__init__()
        self.num, self.first = num, first

    @override
    def forward(self, images: Tensor) -> Tensor:
        angles = self.first + 360 / self.num * torch.arange(self.num, device=images.device)
        angles = angles.to(images.dtype).repeat(len(images))
        return kornia.geometry.transform.rotate(images.repeat_interleave(self.num, 0), angles)


def kornia_modules(views: Views, device: torch.device) -> Peer:
    """Return Kornia's augmentations, one after the other.

    ColorJitter defines brightness, contrast and saturation as we do; ColorJiggle does not.

    Raises:
        ValueError: Kornia lacks one of the operations.
    """
    chains = [nn.Sequential(*(_kornia(op, 45.0 * v) for op in view.ops)) for v, view in enumerate(views)]
    statistics = [torch.tensor((view.mean, view.std), device=device) for view in views]
    normalise = [augmentation.Normalize(mean, std) for mean, std in statistics]

    def run(images: Sequence[Tensor]) -> Tensor:
        parts = zip(images, chains, normalise, strict=True)
        return torch.cat([last(chain(_floats(part))) for part, chain, last in parts])

    return run


def _kornia(op: Any, first_deg: float) -> nn.Module:
    if isinstance(op, Flip):
        return augmentation.RandomHorizontalFlip(p=op.p)
    if isinstance(op, ColourDistortion):
        return augmentation.ColorJitter(op.brightness, op.contrast, op.saturation, op.hue, p=op.p)
    if isinstance(op, Grey):
        return augmentation.RandomGrayscale(p=op.p)
    if isinstance(op, GaussianBlur):
        return augmentation.RandomGaussianBlur((op.kernel_px, op.kernel_px), op.sigma, p=op.p)
    if isinstance(op, Sobel):
        return RandomSobel(op.p)
    if isinstance(op, SobelXY):
        return Gradients()
    if isinstance(op, Rotate90) and op.num == 4:
        return augmentation.RandomRotation90((0, 3), resample="nearest", p=1.0)
    if isinstance(op, AllTurns):
        return Turns(op.num, first_deg)
    raise ValueError(f"Kornia has no {type(op).__name__}")


def kornia_crop(crop: RandomResizedCrop) -> Callable[[Tensor], Tensor]:
    """Return Kornia's bilinear crop, which does not average over the area, with uint8 results."""
    module = augmentation.RandomResizedCrop((crop.size_px, crop.size_px), crop.scale, crop.ratio)
    return lambda images: (module(_floats(images)) * 255).to(torch.uint8)


def torchvision_batch(views: Views, device: torch.device) -> Peer:
    """Return torchvision v2 on a whole batch: one draw for all samples, which is cheaper and not the same."""
    (view,) = _one(views)
    transform = _torchvision(view)
    return lambda images: transform(images[0].contiguous())


def torchvision_images(views: Views, device: torch.device) -> Peer:
    """Return torchvision v2 image by image, with a draw for each, as in a Dataset."""
    (view,) = _one(views)
    transform = _torchvision(view)
    return lambda images: torch.stack([transform(image) for image in images[0].contiguous()])


def _one(views: Views) -> Views:
    if len(views) != 1:
        raise ValueError("torchvision has no set of rotations")
    return views


def _torchvision(view: ViewSpec) -> Callable[[Tensor], Tensor]:
    steps = [_of_torchvision(op) for op in view.ops]
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(view.mean, view.std)])


def _of_torchvision(op: Any) -> nn.Module:
    if isinstance(op, Flip):
        return v2.RandomHorizontalFlip(op.p)
    if isinstance(op, ColourDistortion):
        jitter = v2.ColorJitter(op.brightness, op.contrast, op.saturation, op.hue)
        return v2.RandomApply([jitter], op.p)
    if isinstance(op, Grey):
        return v2.RandomGrayscale(op.p)
    if isinstance(op, GaussianBlur):
        return v2.RandomApply([v2.GaussianBlur(op.kernel_px, op.sigma)], op.p)
    raise ValueError(f"torchvision has no {type(op).__name__}")


def _floats(images: Tensor) -> Tensor:
    """Return float32 in [0, 1], contiguous, as Kornia's users provide it."""
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 255


PEERS = {
    "kornia_modules": kornia_modules,
    "torchvision_batch": torchvision_batch,
    "torchvision_images": torchvision_images,
}
