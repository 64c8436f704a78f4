"""What PIL's users share: torchvision's transforms of PIL images, and batches brought to the device."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from bench.peers.peer import MEAN, SHUFFLE, STD, Peer, Views, Work


class PilCrops:
    """A transform from a PIL image to `num_views` tensors [3, S, S]: uint8, or as torchvision trains on.

    The transforms to float32 are those of its references/classification, with their defaults.
    """

    def __init__(self, work: Work, num_views: int):
        import torch
        from torchvision import transforms
        from torchvision.transforms import v2

        self.crop: Any
        if work.floats:
            self.crop = v2.Compose([
                v2.RandomResizedCrop(work.size_px, antialias=True), v2.RandomHorizontalFlip(),
                v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
                v2.ToPureTensor(),
            ])  # fmt: skip
        else:
            crop = transforms.RandomResizedCrop(work.size_px)
            self.crop = transforms.Compose([crop, transforms.PILToTensor()])
        self.num_views = num_views

    def __call__(self, image: Any) -> list[Any]:
        return [self.crop(image) for _ in range(self.num_views)]


def on_device(loader: Any, device: str) -> Iterator[Views]:
    """Yield the views of a loader's batches, which end with the labels and are copied to the device."""
    for batch in loader:
        if device != "cpu":
            batch = [tensor.to(device, non_blocking=True) for tensor in batch]
        yield batch[:-1]


def dataset_file_batches(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of its batches, from a dataset file."""
    from PIL import Image

    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.interface.dataset import MODE_RAW

    data, crops = Beton(work.data), PilCrops(work, num_views)

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return data.num_samples

        @override
        def __getitem__(self, index: int) -> Any:
            row = data.rows(np.array([index]))
            stored = data.read(index)
            if row.mode[0] == MODE_RAW:
                pixels = np.frombuffer(stored, np.uint8).reshape(row.height[0], row.width[0], 3)
                image = Image.fromarray(pixels)
            else:
                image = Image.open(io.BytesIO(stored)).convert("RGB")
            return *crops(image), int(row.label[0])

    return _endless(Photos(), work)


def folder_batches(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of its batches, from a folder."""
    from torchvision.datasets import ImageFolder

    class Photos(ImageFolder):
        @override
        def __getitem__(self, index: int) -> Any:
            views, label = super().__getitem__(index)
            return *views, label

    return _endless(Photos(Path(work.files) / "images", PilCrops(work, num_views)), work)


def _endless(photos: torch.utils.data.Dataset[Any], work: Work) -> Iterator[Views]:
    loader = torch.utils.data.DataLoader(
        photos, batch_size=work.batch_size, shuffle=True, drop_last=True, num_workers=work.num_threads,
        pin_memory=work.device != "cpu", persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from on_device(loader, work.device)


DATALOADER = Peer("torchvision + DataLoader", dataset_file_batches)
IMAGE_FOLDER = Peer("torchvision + DataLoader", folder_batches, reads="folder")


def webdataset_batches(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of its batches."""
    import webdataset

    crops = PilCrops(work, num_views)
    shards = sorted(str(path) for path in (Path(work.files) / "shards").glob("*.tar"))
    samples = webdataset.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(SHUFFLE)
    pairs = samples.decode("pilrgb").to_tuple("jpg", "cls").map(lambda pair: (*crops(pair[0]), pair[1]))
    loader = webdataset.WebLoader(
        pairs.batched(work.batch_size, partial=False), batch_size=None, num_workers=work.num_threads,
        pin_memory=work.device != "cpu",
    )  # fmt: skip
    yield from on_device(loader, work.device)


WEBDATASET = Peer("WebDataset", webdataset_batches, ("webdataset",), reads="tar")
