"""Isotropic windows for tests: the compiled form, a plain sum, and the arithmetic of the GPU's kernels."""

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.isotropic import DIAGONAL, REACH_SIGMAS
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.decoders.decoder import cannot

LUMA = np.array([0.299, 0.587, 0.114])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def window(image: np.ndarray, top: int, left: int, side: int, resampling: int, size: int) -> np.ndarray:
    out = np.zeros((size, size, 3), np.uint8)
    height, width = image.shape[:2]
    assert not cannot(np.array([[top, left, side, side, resampling]]), size, height, width)
    isotropic_resize(image.reshape(-1), height, width, top, left, side, resampling == DIAGONAL, out)
    return out


def plain(image: np.ndarray, top: int, left: int, side: int, degrees: float, size: int) -> np.ndarray:
    """Return float64 [size, size, 3]: full Gaussians over the image at points that a rotation turns."""
    step, turn = side / size, np.deg2rad(degrees)
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * step
    # An image turned counter-clockwise, with rows going down, shows at (y, x) the point turned back.
    points_y = top + side / 2 + np.sin(turn) * x + np.cos(turn) * y
    points_x = left + side / 2 + np.cos(turn) * x - np.sin(turn) * y
    rows, columns = np.arange(image.shape[0]) + 0.5, np.arange(image.shape[1]) + 0.5
    means = []
    for sigma in (max(1.0, 0.5 * step), max(3.0, 0.5 * step)):
        by_row = np.exp(-((points_y[..., None] - rows) ** 2) / (2 * sigma**2))
        by_column = np.exp(-((points_x[..., None] - columns) ** 2) / (2 * sigma**2))
        sums = np.einsum("rcy,rcx,yxk->rck", by_row, by_column, image.astype(np.float64), optimize=True)
        means.append(sums / (by_row.sum(2) * by_column.sum(2))[..., None])
    fine, broad = means
    return (broad + ((fine - broad) @ LUMA)[..., None]).clip(0, 255)


def rounded(images: Tensor, boxes: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return uint8 [B, size, size, 3] by dense float32 products, with the roundings of the GPU's kernels.

    `dtype` replaces half precision for planes (luma minus 128), weights and the values between the passes.
    """
    return torch.cat(
        [_rounded(images[i : i + 32], boxes[i : i + 32], size, dtype) for i in range(0, len(images), 32)]
    )


def _rounded(images: Tensor, boxes: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    def cut(values: Tensor) -> Tensor:
        return values.to(dtype).to(torch.float32)

    tops, lefts, sides = boxes[:, :3].to(torch.float64).unbind(1)
    turned, step = boxes[:, 4] == DIAGONAL, sides / size
    i, at = torch.arange(2 * size - 1), torch.arange(size)
    points = torch.where(
        turned[:, None], (i - (size - 1)) * (step * 0.5**0.5)[:, None], (i - (size - 1) / 2) * step[:, None]
    )
    upright = at[:, None] * (2 * size - 1) + at
    diagonal = (at[:, None] + at) * (2 * size - 1) + (at - at[:, None] + size - 1)
    pick = torch.where(turned[:, None, None], diagonal, upright).flatten(1)

    def weights(middle: Tensor, sigma: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        distance = torch.arange(limit) + 0.5 - (points + middle[:, None])[:, :, None]
        distance = (distance / sigma[:, None, None]).to(torch.float32)
        values = cut(torch.exp(-0.5 * distance.square()) * (distance.abs() <= REACH_SIGMAS))
        return values, 1 / values.sum(2, keepdim=True).clamp(min=1e-6)

    def mixed(plane: Tensor, sigma_px: float) -> Tensor:
        sigma = (0.5 * step).clamp(min=sigma_px)
        rows, row_shares = weights(tops + sides / 2, sigma, plane.shape[1])
        columns, column_shares = weights(lefts + sides / 2, sigma, plane.shape[2])
        between = cut(rows @ cut(plane) * row_shares)
        return (between @ columns.mT * column_shares.mT).flatten(1).gather(1, pick)

    red, green, blue = images.to(torch.float32).unbind(3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    y = mixed(luma - 128, 1.0) + 128
    b, r = mixed(blue - luma, 3.0), mixed(red - luma, 3.0)
    out = torch.stack([y + r, y - (0.299 * r + 0.114 * b) / 0.587, y + b], 2)
    return out.add(0.5 + 2**-13).clamp(0, 255).to(torch.uint8).view(-1, size, size, 3)
