"""The views of contrastive learning in levels (psl.txt, section 3.3.3 and Table 3)."""

from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.sobel import Sobel
from fastpsl.pipelines.views import Op, ViewSpec

NUM_LEVELS = 3


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
    that the network sees three channels in every level; it comes last. The blur is SimCLR's: a kernel of a tenth of the
    picture, made odd, sigma 0.1 to 2.
    """
    ops: tuple[Op, ...] = (Flip(0.5),)
    if level >= 2:
        ops += (colour, Grey(grey_p))
    if level >= 3:
        ops += (GaussianBlur(kernel_px=size_px // 10 // 2 * 2 + 1, p=blur_p), Sobel(sobel_p))
    return ViewSpec(RandomResizedCrop(size_px, scale=scale), ops=ops)
