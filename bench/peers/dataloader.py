"""torch's DataLoader as ImageFolder's users have it: PIL, torchvision and worker processes."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from bench.peers.peer import Peer, Views, Work
from bench.peers.pil_crops import PilCrops, on_device


def of_dataset_file(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of its batches, from a dataset file."""
    from PIL import Image

    from fastpsl.pipelines.beton.reader import Beton

    data, crops = Beton(work.data), PilCrops(work, num_views)

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return data.num_samples

        @override
        def __getitem__(self, index: int) -> Any:
            row = data.rows(np.array([index]))
            stored = data.read(index)
            if row.mode[0]:
                pixels = np.frombuffer(stored, np.uint8).reshape(row.height[0], row.width[0], 3)
                image = Image.fromarray(pixels)
            else:
                image = Image.open(io.BytesIO(stored)).convert("RGB")
            return *crops(image), int(row.label[0])

    return _batches(Photos(), work)


def of_folder(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of its batches, from a folder."""
    from torchvision.datasets import ImageFolder

    class Photos(ImageFolder):
        @override
        def __getitem__(self, index: int) -> Any:
            views, label = super().__getitem__(index)
            return *views, label

    return _batches(Photos(Path(work.files) / "images", PilCrops(work, num_views)), work)


def _batches(photos: torch.utils.data.Dataset[Any], work: Work) -> Iterator[Views]:
    loader = torch.utils.data.DataLoader(
        photos, batch_size=work.batch_size, shuffle=True, drop_last=True, num_workers=work.num_threads,
        pin_memory=work.device != "cpu", persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from on_device(loader, work.device)


PEER = Peer("torchvision + DataLoader", of_dataset_file)
IMAGE_FOLDER = Peer("torchvision + DataLoader", of_folder, reads="folder")
