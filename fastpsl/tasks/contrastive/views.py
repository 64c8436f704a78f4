"""Define the views of contrastive learning in levels (PSL, section 3.3.3 and Table 3), and show them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.sobel import Sobel
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Op, ViewSpec

NUM_LEVELS = 3
# PSL does not state it.
SOBEL_P = 0.2
# SimCLR's colour jitter for ImageNet, at strength 1.
SIMCLR_COLOUR = ColourDistortion(0.8, 0.8, 0.8, 0.2, p=0.8)


def simclr_blur(size_px: int, p: float = 0.5) -> GaussianBlur:
    """Return SimCLR's blur: a kernel of a tenth of the image's side, made odd, and sigma 0.1 to 2."""
    return GaussianBlur(kernel_px=size_px // 10 // 2 * 2 + 1, p=p)


def contrastive_view(
    level: int,
    size_px: int,
    *,
    scale: tuple[float, float],
    colour: ColourDistortion,
    grey_p: float = 0.2,
    blur_p: float = 0.5,
    sobel_p: float = SOBEL_P,
) -> ViewSpec:
    """Return the view of a level: T1 crops, T2 adds colour distortion, T3 adds Gaussian blur and Sobel.

    The table does not have a flip; here it is part of the crop, as in SimCLR. Colour distortion is jitter,
    then grey, as in SimCLR.
    Paper: does not state how Sobel is combined. Here: it comes last, and with probability `sobel_p` each
    channel becomes the magnitude of its gradient, so the network has three input channels in every level.
    SimCLR and MoCo v2 as published have no Sobel: `sobel_p` 0 leaves it out, and T3 is theirs.

    Args:
        level: 1, 2 or 3.
        size_px: Side of the crop.
        scale: Range of the crop's share of the image's area.
        colour: The jitter.
        grey_p: Probability of grey.
        blur_p: Probability of blur.
        sobel_p: Probability of Sobel, in [0, 1].

    Raises:
        ValueError: `sobel_p` is out of range.
    """
    if not 0 <= sobel_p <= 1:
        raise ValueError(f"--sobel-p {sobel_p:g}: it is a probability, 0 to 1")
    ops: tuple[Op, ...] = (Flip(0.5),)
    if level >= 2:
        ops += (colour, Grey(grey_p))
    if level >= 3:
        ops += (simclr_blur(size_px, blur_p), *((Sobel(sobel_p),) if sobel_p else ()))
    return ViewSpec(RandomResizedCrop(size_px, scale=scale), ops=ops)


def side_by_side(inputs: Sequence[Tensor], views: Sequence[ViewSpec]) -> Tensor:
    """Return both views of each sample as the network sees them, float32 [n, 3, h, 2w + 4] in [0, 1]."""
    first, second = (view.denormalise(images) for images, view in zip(inputs, views, strict=True))
    return torch.cat([first, first.new_ones(*first.shape[:3], 4), second], 3)


def drawn(batch: Batch, hardest: ViewSpec) -> list[str]:
    """Return the ops that were drawn for each sample, such as "flip, colour, blur 1.3".

    The left view's ops are on the first line, the right view's on the second.

    Args:
        batch: The batch with its draws.
        hardest: The view of the last level; easier levels have its first ops.
    """
    sides = [list(zip(hardest.ops, draws, strict=False)) for draws in batch.draws]
    texts = []
    for sample in range(len(batch.indices)):
        lines = [", ".join(filter(None, (_word(op, draw, sample) for op, draw in side))) for side in sides]
        texts.append("\n".join(line or "crop" for line in lines))
    return texts


def _word(op: Op, draw: Mapping[str, Tensor], sample: int) -> str:
    """Return a word for what `op` did to a sample, or "" if it did nothing."""
    if isinstance(op, Flip):
        return "flip" if draw["flip"][sample] else ""
    if not draw["apply"][sample]:
        return ""
    if isinstance(op, GaussianBlur):
        return f"blur {float(draw['sigma'][sample]):.1f}"
    return {ColourDistortion: "colour", Grey: "grey", Sobel: "Sobel"}[type(op)]
