"""CIE 1976 L*a*b* from sRGB, with the white point D65.

    X, Y, Z = the linear values of `kernels.lightness` times TO_XYZ                   (IEC 61966-2-1)
    L*      = 116 f(Y / Yn) - 16                                                      (CIE 15)
    a*      = 500 (f(X / Xn) - f(Y / Yn)),     b* = 200 (f(Y / Yn) - f(Z / Zn))

with f from `kernels.lightness`. Xn, Yn, Zn belong to R = G = B = 1 and are the sums of the matrix's rows. So
greys have a* = b* = 0 up to rounding. scikit-image and kornia have a matrix of six digits and a white
point of five: their values differ from these by up to 0.02, and their greys from 0 by up to 0.005.
"""

import torch
from torch import Tensor

from fastpsl.kernels.lightness import WEIGHTS, cie_f, linear_rgb

TO_XYZ = ((0.4124, 0.3576, 0.1805), WEIGHTS, (0.0193, 0.1192, 0.9505))


def lab(x: Tensor) -> Tensor:
    """Convert sRGB images to L*a*b*.

    Args:
        x: float32 [B, 3, H, W] in [0, 1].

    Returns:
        float32 [B, 3, H, W]: L* in [0, 100], a* in [-86.2, 98.3], b* in [-107.9, 94.5].
    """
    red, green, blue = linear_rgb(x).unbind(1)
    fx, fy, fz = (
        cie_f(red * (r / (r + g + b)) + green * (g / (r + g + b)) + blue * (b / (r + g + b)))
        for r, g, b in TO_XYZ
    )
    return torch.stack([(116 * fy - 16).clamp(0, 100), 500 * (fx - fy), 200 * (fy - fz)], 1)
