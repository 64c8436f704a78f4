"""The work that bench/kernels.py times: operations, the tasks' chains of them, and crops, by path.

    fused               the fused kernels: Triton on CUDA, numba on the CPU (crops: numba)
    kornia              our operations one after the other, the `kornia` of --augment-backend (crops: torch)
    kornia_modules, torchvision_batch, torchvision_images        as their users write them, our parameters

Each path starts from the loader's uint8 batch and ends in a normalised channels-last batch of the step's
dtype. Crops start from decoded images and end in uint8. Draws of Kornia and torchvision cannot be given, so
they are timed, and results are not compared with theirs: torchvision v2 draws one value of everything per
batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import kornia
import numpy as np
import torch
from kornia import augmentation
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from typing_extensions import override

from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.device_crops import crop_area, crop_densely
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused import fused_modules, module_for
from fastpsl.kernels.geometry import AllTurns, Flip, Rotate90
from fastpsl.kernels.isotropic import DIAGONAL, margin_px
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import joined
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.loader.augment import TORCH, Augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, Op, ViewSpec
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.pseudo_labels.uic import uic_view
from fastpsl.tasks.rotation import Rotation

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
    """A module that returns `num` copies of a batch in rotations by equal angles, from `first` degrees on."""

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
    """
    chains = [nn.Sequential(*(_kornia(op, 45.0 * v) for op in view.ops)) for v, view in enumerate(views)]
    statistics = [torch.tensor((view.mean, view.std), device=device) for view in views]
    normalise = [augmentation.Normalize(mean, std) for mean, std in statistics]

    def run(images: Sequence[Tensor]) -> Tensor:
        parts = zip(images, chains, normalise, strict=True)
        return torch.cat([last(chain(_floats(part))) for part, chain, last in parts])

    return run


def _kornia(op: Any, first_deg: float) -> nn.Module:
    makers: dict[type, Callable[[], nn.Module]] = {
        Flip: lambda: augmentation.RandomHorizontalFlip(p=op.p),
        ColourDistortion: lambda: augmentation.ColorJitter(*_jitter(op), p=op.p),
        Grey: lambda: augmentation.RandomGrayscale(p=op.p),
        GaussianBlur: lambda: augmentation.RandomGaussianBlur((op.kernel_px,) * 2, op.sigma, p=op.p),
        Sobel: lambda: RandomSobel(op.p),
        SobelXY: Gradients,
        Rotate90: lambda: augmentation.RandomRotation90((0, 3), resample="nearest", p=1.0),  # of all four
        AllTurns: lambda: Turns(op.num, first_deg),
    }
    return _made("Kornia", makers, op)


def _jitter(op: ColourDistortion) -> tuple[Any, Any, Any, Any]:
    return op.brightness, op.contrast, op.saturation, op.hue


def _made(library: str, makers: Mapping[type, Callable[[], nn.Module]], op: object) -> nn.Module:
    if type(op) not in makers:
        raise ValueError(f"{library} has no {type(op).__name__}")
    return makers[type(op)]()


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
    makers: dict[type, Callable[[], nn.Module]] = {
        Flip: lambda: v2.RandomHorizontalFlip(op.p),
        ColourDistortion: lambda: v2.RandomApply([v2.ColorJitter(*_jitter(op))], op.p),
        Grey: lambda: v2.RandomGrayscale(op.p),
        GaussianBlur: lambda: v2.RandomApply([v2.GaussianBlur(op.kernel_px, op.sigma)], op.p),
    }
    return _made("torchvision", makers, op)


def _floats(images: Tensor) -> Tensor:
    """Return float32 in [0, 1], contiguous, as Kornia's users provide it."""
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 255


PEERS = {
    "kornia_modules": kornia_modules,
    "torchvision_batch": torchvision_batch,
    "torchvision_images": torchvision_images,
}


Work = Callable[[int], Tensor]  # the running number of the input → the result


@dataclass(frozen=True)
class Setting:
    """The sizes and types that all chains share."""

    device: torch.device  # device of all inputs
    dtype: torch.dtype  # dtype of the results
    batch_size: int  # Samples per view
    size_px: int  # side of a view, in px
    num_inputs: int  # batches that the calls take in turn

    def keys(self, number: int) -> Keys:
        """Return the random keys of input `number`."""
        return Keys(0, number, np.arange(self.batch_size, dtype=np.int64))


@dataclass(frozen=True)
class Chain:
    """A chain of operations, with the paths that can run it."""

    name: str  # name of the chain
    num_bytes: int  # bytes that must be read and written at least once: the pixels in use, and the results
    paths: dict[str, Work]  # path → work that can be timed
    missing: dict[str, str]  # path → the reason why it cannot run


def views_of_chains(size_px: int) -> dict[str, tuple[ViewSpec, ...]]:
    """Return the views of each chain: single operations, applied always except the flip, then the tasks'."""
    crop, kernel_px = RandomResizedCrop(size_px), size_px // 10 // 2 * 2 + 1
    cell_px = -(-size_px // 3)
    single_ops: dict[str, tuple[Op, ...]] = {
        "normalise": (), "flip": (Flip(0.5),), "colour": (ColourDistortion(0.8, 0.8, 0.8, 0.2, p=1),),
        "grey": (Grey(1.0),), "blur": (GaussianBlur(kernel_px, p=1),), "Sobel": (Sobel(1.0),),
    }  # fmt: skip
    views: dict[str, tuple[ViewSpec, ...]] = {
        name: (ViewSpec(crop, ops),) for name, ops in single_ops.items()
    }
    views["lightness"] = (ViewSpec(crop, (Lightness(),), (0.5,), (0.25,)),)
    simclr = SimCLR(2, size_px=size_px, temperature=0.1, embedding_width=128)
    moco = MoCo(
        seed=0, batch_size=2, queue_size=4, momentum=0.9, temperature=0.2, key_group=2, width=8,
        size_px=size_px,
    )  # fmt: skip
    rotation = Rotation(size_px=size_px, shorter_px=size_px, rotations_per_image="all")
    views |= {f"SimCLR T{level}": simclr.views(level)[:1] for level in (1, 2, 3)}
    # SimCLR's own augmentation, which all its peers have in full.
    views["SimCLR T3, no Sobel"] = (replace(simclr.views(3)[0], ops=simclr.views(3)[0].ops[:-1]),)
    views["MoCo v2 T3"] = moco.views(3)[:1]
    gradients = Input("SobelXY", (0.0, 0.0), (SOBEL_XY_STD, SOBEL_XY_STD), size_px)
    views["UIC"] = (uic_view(gradients, size_px, "standard"),)
    views["UIC, strong"] = (uic_view(gradients, size_px, "strong"),)
    # The paper's: windows of 225 px and tiles of 64 px at a size of 224.
    tiles = JigsawTiles(3, cell_px, cell_px * 64 // 75)
    views["jigsaw"] = (ViewSpec(replace(crop, size_px=3 * cell_px), (Flip(0.5), tiles)),)
    views["rotation, one of 4"] = (ViewSpec(crop, (Rotate90(4),)),)
    views["rotation, all 8"] = rotation.views(3)
    return views


def fused_augment(setting: Setting) -> tuple[Augment | None, str]:
    """Return the fused augmentation, or None with the reason why there is none on this device."""
    modules, reason = fused_modules(setting.device)
    return (Augment("fused", reason, modules), "") if modules else (None, reason)


def view_chain(name: str, views: tuple[ViewSpec, ...], setting: Setting) -> Chain:
    """Return a chain that turns batches with their random draws into normalised results, by all paths."""
    batches = [_batch(views, number, setting) for number in range(setting.num_inputs)]
    paths: dict[str, Work] = {}
    missing: dict[str, str] = {}
    fused, reason = fused_augment(setting)
    if fused and not all(module_for(fused.modules, view.ops) for view in views):
        fused, reason = None, "no fused kernel does it"
    for path, augment in (("fused", fused), ("kornia", TORCH)):
        if augment is None:
            missing[path] = reason
        else:
            paths[path] = partial(_augmented, augment, batches, views, setting.dtype)
    for path, make in PEERS.items():
        try:
            paths[path] = partial(_of_a_peer, make(views, setting.device), batches, setting.dtype)
        except ValueError as error:
            missing[path] = str(error)
    results = TORCH.inputs(batches[0], views, setting.dtype)
    # Only the pixels of the tiles are read, not the whole window.
    inputs = results if name == "jigsaw" else batches[0].images
    num_bytes = sum(part.numel() for part in inputs) + sum(part.nbytes for part in results)
    return Chain(name, num_bytes, paths, missing)


def _batch(views: tuple[ViewSpec, ...], number: int, setting: Setting) -> Batch:
    keys = setting.keys(number)
    draws = [
        tuple(
            {name: _on(values, setting.device) for name, values in draw.items()} for draw in view.draw(keys)
        )
        for view in views
    ]
    sides = [view.crop.size_px for view in views]
    images = [_images(s, s, number + setting.num_inputs * v, setting) for v, s in enumerate(sides)]
    indices = _on(keys.indices, setting.device)
    return Batch(images, draws, indices, torch.zeros_like(indices), 0, number)


def _augmented(
    augment: Augment, batches: list[Batch], views: tuple[ViewSpec, ...], dtype: torch.dtype, number: int
) -> Tensor:
    return joined(augment.inputs(batches[number % len(batches)], views, dtype))


def _of_a_peer(peer: Peer, batches: list[Batch], dtype: torch.dtype, number: int) -> Tensor:
    return peer(batches[number % len(batches)].images).to(dtype, memory_format=torch.channels_last)


def crop_chains(setting: Setting) -> Iterator[Chain]:
    """Yield the chains of crops, uint8 to uint8.

    The images have 375 x 500 px for crops of 224 px, and are scaled with the crop's size otherwise.
    """
    height, width = (round(side * setting.size_px / 224) for side in (375, 500))
    images = [_images(height, width, number, setting) for number in range(setting.num_inputs)]
    size = setting.size_px
    area, window = RandomResizedCrop(size), RotationCrop(size)
    heights, widths = (np.full(setting.batch_size, side, np.int32) for side in (height, width))
    keys = [setting.keys(number) for number in range(setting.num_inputs)]
    area_boxes = [area.boxes(one, heights, widths) for one in keys]
    boxes = [np.c_[window.boxes(one, heights, widths), window.resampling(one)] for one in keys]
    written_bytes = setting.batch_size * size * size * 3

    crop: Work = partial(_cropped, crop_area, images, [_on(box, setting.device) for box in area_boxes], size)
    transforms: dict[str, Callable[[Tensor], Tensor]] = {
        "kornia_modules": kornia_crop(area),
        "torchvision_batch": v2.RandomResizedCrop(size, area.scale, area.ratio),
    }
    each = transforms["torchvision_batch"]
    transforms["torchvision_images"] = lambda batch: torch.stack([each(image) for image in batch])
    paths: dict[str, Work] = {"kornia": crop}
    paths |= {path: partial(_transformed, transform, images) for path, transform in transforms.items()}
    read_bytes = int(np.mean([np.prod(box[:, 2:], axis=1).sum() for box in area_boxes])) * 3
    yield Chain("area crop", read_bytes + written_bytes, paths, {"fused": "no fused kernel does it"})

    on_device = [_on(box, setting.device) for box in boxes]
    paths = {"kornia": partial(_cropped, crop_densely, images, on_device, size)}
    missing = dict.fromkeys(PEERS, "Kornia and torchvision have no resampling that hides the angle")
    fused, reason = fused_augment(setting)
    if setting.device.type == "cpu":
        paths = {"fused": partial(_cropped_by_numba, images, boxes, size), **paths}
    elif fused:
        from fastpsl.kernels.fused_cuda import isotropic as fused_isotropic

        paths = {"fused": partial(_cropped, fused_isotropic.crop, images, on_device, size), **paths}
    else:
        missing["fused"] = reason
    # The kernel's support reaches beyond the box, and those pixels are read, too.
    sides = np.concatenate([box[:, 2] + 2 * margin_px(box[:, 2], size) for box in boxes])
    yield Chain("isotropic crop", int((sides**2).sum() / len(boxes)) * 3 + written_bytes, paths, missing)


def _cropped(
    crop: Callable[..., Tensor], images: list[Tensor], boxes: list[Tensor], size: int, number: int
) -> Tensor:
    source = images[number % len(images)].permute(0, 2, 3, 1)
    return crop(source, boxes[number % len(boxes)], size)


def _cropped_by_numba(images: list[Tensor], boxes: list[np.ndarray], size: int, number: int) -> Tensor:
    """Crop in one thread, as each thread of the decoder does."""
    source = images[number % len(images)].permute(0, 2, 3, 1).numpy()
    num, height, width, _ = source.shape
    out = np.empty((num, size, size, 3), np.uint8)
    for b, (top, left, side, _, resampling) in enumerate(boxes[number % len(boxes)].tolist()):
        isotropic_resize(
            source[b].reshape(-1), height, width, top, left, side, resampling == DIAGONAL, out[b]
        )
    return torch.from_numpy(out)


def _transformed(transform: Callable[[Tensor], Tensor], images: list[Tensor], number: int) -> Tensor:
    return transform(images[number % len(images)].contiguous())


@cache
def _images(height: int, width: int, number: int, setting: Setting) -> Tensor:
    """Return uint8 [B, 3, H, W], channels-last: smooth with a little noise, like photos."""
    generator = torch.Generator(setting.device).manual_seed(number)

    def noise(height: int, width: int) -> Tensor:
        shape = (setting.batch_size, 3, height, width)
        return torch.rand(shape, generator=generator, device=setting.device)

    smooth = functional.interpolate(noise(height // 16 + 2, width // 16 + 2), (height, width), mode="bicubic")
    images = (smooth + 0.1 * noise(height, width)).clamp(0, 1) * 255
    return images.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _on(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
