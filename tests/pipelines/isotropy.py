"""Detectors of the angle of noise images: a probe of spectra and a small network.

Views are uint8 [N, 3, S, S]. The first half of them trains a detector, the second half tests it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

_TO_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
_BINS = 16


def _log_spectra(planes: Tensor) -> Tensor:
    """Compute the log power in frequency bins, symmetric in axes and signs: [N, 3, S, S] → [N, 408]."""
    size = planes.shape[-1]
    window = torch.hann_window(size)
    power = torch.fft.rfft2(planes * window[:, None] * window).abs().square()[..., 1 : size // 2]
    half = power[..., 1 : size // 2, :] + power[..., size // 2 + 1 :, :].flip(-2)
    bins = F.adaptive_avg_pool2d(half + half.transpose(-1, -2), _BINS)
    rows, columns = np.triu_indices(_BINS)
    return torch.log(bins[..., rows, columns] + 1e-6).flatten(1)


def spectra(views: Tensor) -> Tensor:
    """Return the spectra of luma, colour and their local power, which shows a grid's period: [N, 816]."""
    return torch.cat([_spectra(part) for part in views.split(50)])


def _spectra(views: Tensor) -> Tensor:
    planes = torch.einsum("pc,nchw->nphw", _TO_YCBCR, views.float())
    planes = planes - planes.mean((2, 3), keepdim=True)
    edges = F.pad(planes, (1, 1, 1, 1), "circular")
    vertical = edges[..., :-2, 1:-1] + edges[..., 2:, 1:-1]
    power = (4 * planes - vertical - edges[..., 1:-1, :-2] - edges[..., 1:-1, 2:]).square()
    power = power / power.mean((2, 3), keepdim=True).clamp(min=1e-6) - 1
    return torch.cat([_log_spectra(planes), _log_spectra(power)], 1)


def probe_accuracy(views: Tensor, labels: Tensor) -> float:
    """Return the test accuracy for a base of 0 or 45 degrees (label % 2), by ridge regression on spectra."""
    x, num = spectra(views).double(), len(views) // 2
    x = (x - x[:num].mean(0)) / (x[:num].std(0) + 1e-9)
    sign = (2 * (labels % 2) - 1).double()
    gram = x[:num].T @ x[:num] / num + 0.1 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x[:num].T @ sign[:num] / num)
    return ((x[num:] @ weights > 0) == (sign[num:] > 0)).double().mean().item()


def network_accuracy(views: Tensor, labels: Tensor, steps: int = 100) -> float:
    """Return the test accuracy for the eight labels by a small network; 25 % means that it knows the base."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 5, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 8),
    )  # fmt: skip
    x = views.float()
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    num, batch = len(views) // 2, 48
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(steps):
        part = torch.arange(step * batch, (step + 1) * batch) % num
        loss = F.cross_entropy(network(x[part]), labels[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        right = network(x[num:]).argmax(1) == labels[num:]
    return right.double().mean().item()


def bilinear(image: np.ndarray, box: np.ndarray, degrees: int, size: int) -> np.ndarray:
    """Return a box's window at any angle by Pillow's bilinear transform: uint8 [size, size, 3]."""
    top, left, side = (int(value) for value in box[:3])
    step, turn = side / size, np.deg2rad(degrees)
    cos, sin = step * np.cos(turn), step * np.sin(turn)
    x = left + side / 2 - (cos - sin) * size / 2
    y = top + side / 2 - (sin + cos) * size / 2
    return np.asarray(
        Image.fromarray(image).transform(
            (size, size), Image.Transform.AFFINE, (cos, -sin, x, sin, cos, y), Image.Resampling.BILINEAR
        )
    )
