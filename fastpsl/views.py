"""Make the views of published methods, for `fastpsl.loader`."""

from fastpsl.console.offered import named_arguments, offer_only_all
from fastpsl.kernels.colour import ColourDistortion, Grey, Solarise
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.filters import GaussianBlur
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.views import Op, ViewSpec
from fastpsl.tasks.contrastive.simclr import SIMCLR_COLOUR, simclr_blur

__all__ = ["barlow_twins", "byol", "dino", "mocov2", "multicrop", "simclr", "swav", "vicreg"]
offer_only_all(__name__)


@named_arguments()
def simclr(size_px: int = 224) -> list[ViewSpec]:
    """Return SimCLR's two views (Chen et al., 2020, arXiv 2002.05709, appendix A; strength 1).

    A view is a crop of .08 to 1 of the area and a flip. Then come colour jitter of .8, .8, .8 and .2 with
    probability .8, grey with probability .2 and blur with probability .5.
    """
    return [_view(size_px, (0.08, 1.0), SIMCLR_COLOUR, simclr_blur(size_px))] * 2


@named_arguments()
def mocov2(size_px: int = 224) -> list[ViewSpec]:
    """Return MoCo v2's two views (Chen et al., 2020, arXiv 2003.04297, and its code, main_moco.py).

    A view is a crop of .2 to 1 of the area and a flip. Then come colour jitter of .4, .4, .4 and .1 with
    probability .8, grey with probability .2 and blur with probability .5. MoCo's code has no fixed kernel
    size for the blur. Here it has SimCLR's.
    """
    colour = ColourDistortion(0.4, 0.4, 0.4, 0.1, p=0.8)
    return [_view(size_px, (0.2, 1.0), colour, simclr_blur(size_px))] * 2


@named_arguments()
def byol(size_px: int = 224) -> list[ViewSpec]:
    """Return BYOL's two views (Grill et al., 2020, arXiv 2006.07733, appendix B, table 6).

    A view is a crop of .08 to 1 of the area and a flip. Then come colour jitter of .4, .4, .2 and .1 with
    probability .8 and grey with probability .2. The first view is always blurred and never solarised. The
    second is blurred with probability .1 and solarised with probability .2. No fused kernel solarises, so the
    operations of the second view run one by one.
    """
    return [_byol_view(size_px, (0.08, 1.0), 1.0), _byol_view(size_px, (0.08, 1.0), 0.1, 0.2)]


@named_arguments()
def barlow_twins(size_px: int = 224) -> list[ViewSpec]:
    """Return Barlow Twins' two views (Zbontar et al., 2021, arXiv 2103.03230, section 2.2).

    They are BYOL's.
    """
    return byol(size_px)


@named_arguments()
def vicreg(size_px: int = 224) -> list[ViewSpec]:
    """Return VICReg's two views (Bardes et al., 2021, arXiv 2105.04906, appendix C.1).

    They are alike, with BYOL's crops, flip, jitter and grey. Blur has probability .5 and solarisation .1. No
    fused kernel solarises, so their operations run one by one.
    """
    return [_byol_view(size_px, (0.08, 1.0), 0.5, 0.1)] * 2


@named_arguments()
def swav(size_px: int = 224, small_px: int = 96) -> list[ViewSpec]:
    """Return SwAV's views: two large and six small ones of `multicrop`."""
    return multicrop(size_px, small_px)


@named_arguments()
def dino(size_px: int = 224, small_px: int = 96, num_small: int = 8) -> list[ViewSpec]:
    """Return DINO's two large and several small views (Caron et al., 2021, arXiv 2104.14294, main_dino.py).

    Large crops have .4 to 1 of the area, small ones .05 to .4. All have BYOL's flip, jitter and grey. The
    first large view is always blurred. The second is blurred with probability .1 and solarised with
    probability .2. Small views are blurred with probability .5. Blurs have BYOL's kernel sizes.
    """
    if num_small < 0:
        raise ValueError(f"dino: {num_small} small views; give 0 or more")
    large = [_byol_view(size_px, (0.4, 1.0), 1.0), _byol_view(size_px, (0.4, 1.0), 0.1, 0.2)]
    return large + [_byol_view(small_px, (0.05, 0.4), 0.5)] * num_small


@named_arguments()
def multicrop(
    size_px: int = 224, small_px: int = 96, num_large: int = 2, num_small: int = 6
) -> list[ViewSpec]:
    """Return SwAV's multi-crop views (Caron et al., 2020, arXiv 2006.09882, appendix A).

    Large crops have .14 to 1 of the area, small ones .05 to .14. All have SimCLR's flip, jitter, grey and
    blur.
    """
    if min(num_large, num_small) < 0 or not num_large + num_small:
        raise ValueError(
            f"multicrop: {num_large} large and {num_small} small views; give 0 or more of each, and at least "
            "one in all"
        )
    large = _view(size_px, (0.14, 1.0), SIMCLR_COLOUR, simclr_blur(size_px))
    small = _view(small_px, (0.05, 0.14), SIMCLR_COLOUR, simclr_blur(small_px))
    return [large] * num_large + [small] * num_small


def _view(size_px: int, area: tuple[float, float], colour: ColourDistortion, *last: Op) -> ViewSpec:
    return ViewSpec(RandomResizedCrop(size_px, scale=area), (Flip(0.5), colour, Grey(0.2), *last))


def _byol_view(size_px: int, area: tuple[float, float], blur_p: float, solarise_p: float = 0.0) -> ViewSpec:
    blur = GaussianBlur(2 * round(11 * size_px / 224) + 1, p=blur_p)
    colour = ColourDistortion(0.4, 0.4, 0.2, 0.1, p=0.8)
    return _view(size_px, area, colour, blur, *([Solarise(solarise_p)] if solarise_p else []))
