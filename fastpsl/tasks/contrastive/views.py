"""The views of contrastive learning in levels (psl.txt, section 3.3.3 and Table 3), and how they are shown."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.sobel import Sobel
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.views import Op, ViewSpec

NUM_LEVELS = 3
# SimCLR's colour jitter for ImageNet, at strength 1.
SIMCLR_COLOUR = ColourDistortion(0.8, 0.8, 0.8, 0.2, p=0.8)


def simclr_blur(size_px: int, p: float = 0.5) -> GaussianBlur:
    """SimCLR's blur: a kernel of a tenth of the picture, made odd, sigma 0.1 to 2."""
    return GaussianBlur(kernel_px=size_px // 10 // 2 * 2 + 1, p=p)


def contrastive_view(
    level: int,
    size_px: int,
    *,
    scale: tuple[float, float],
    colour: ColourDistortion,
    grey_p: float = 0.2,
    blur_p: float = 0.5,
    sobel_p: float = 0.2,
) -> ViewSpec:
    """T1 = random crop; T2 = T1 and colour distortion; T3 = T2, Gaussian blur and Sobel filtering.

    Flip is not in the table: here it is part of the crop, as in SimCLR's. Colour distortion is jitter, then grey, as SimCLR's.
    Paper: how Sobel is combined is not said. Here: with probability `sobel_p` each channel becomes the size of its gradient, so
    that the network sees three channels in every level; it comes last.
    """
    ops: tuple[Op, ...] = (Flip(0.5),)
    if level >= 2:
        ops += (colour, Grey(grey_p))
    if level >= 3:
        ops += (simclr_blur(size_px, blur_p), Sobel(sobel_p))
    return ViewSpec(RandomResizedCrop(size_px, scale=scale), ops=ops)


def side_by_side(inputs: Sequence[Tensor], views: Sequence[ViewSpec]) -> Tensor:
    """Both views of each sample as the network sees them: float32 [n, 3, h, 2w + 4] in [0, 1]."""
    first, second = (view.pictures(images) for images, view in zip(inputs, views, strict=True))
    return torch.cat([first, first.new_ones(*first.shape[:3], 4), second], 3)


def drawn(batch: Batch, hardest: ViewSpec) -> list[str]:
    """What was drawn for the left view of each sample, and below it for the right one: "flip, colour, blur 1.3".

    hardest: the view of the last level; the ops of easier levels are the first of its.
    """
    sides = [list(zip(hardest.ops, draws, strict=False)) for draws in batch.draws]
    texts = []
    for sample in range(len(batch.indices)):
        said = [", ".join(filter(None, (_said(op, draw, sample) for op, draw in side))) for side in sides]
        texts.append("\n".join(text or "crop" for text in said))
    return texts


def _said(op: Op, draw: Mapping[str, Tensor], sample: int) -> str:
    """What `op` did to a sample, in a word; nothing where it did nothing."""
    if isinstance(op, Flip):
        return "flip" if draw["flip"][sample] else ""
    if not draw["apply"][sample]:
        return ""
    if isinstance(op, GaussianBlur):
        return f"blur {float(draw['sigma'][sample]):.1f}"
    return {ColourDistortion: "colour", Grey: "grey", Sobel: "Sobel"}[type(op)]
