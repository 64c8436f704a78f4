"""SimCLR with torch and torchvision alone: ImageFolder, transforms.v2 on uint8 tensors, DataLoader.

The views have the values of SimCLR's appendix A, as lightly's: crops, flip, jitter, grey and blur.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.peers.peer import MEAN, STD, Peer, Work
from bench.peers.simclr import loader_of, steps


def batches(work: Work, num_views: int) -> Iterator[int]:
    """Train SimCLR, and yield each step's number of samples. Each is shown in two views."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    view = v2.Compose([
        v2.RandomResizedCrop(work.size_px, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8), v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(2 * (work.size_px // 20) + 1, (0.1, 2.0))], p=0.5),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip

    def both(image: Tensor) -> list[Any]:
        return [view(image), view(image)]

    def read(path: str) -> Any:
        return decode_image(path, ImageReadMode.RGB)

    def head(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))

    def nt_xent(first: Tensor, second: Tensor) -> Tensor:
        rows = F.normalize(torch.cat([first, second]).float(), dim=1)
        similarities = (rows @ rows.T / 0.5).fill_diagonal_(-torch.inf)
        return F.cross_entropy(similarities, torch.arange(len(rows), device=rows.device).roll(len(first)))

    data = ImageFolder(str(Path(work.files) / "images"), transform=both, loader=read)
    return steps(work, loader_of(work, data), head, nt_xent)


PEER = Peer("torch and torchvision alone, SimCLR", batches, reads="folder")
