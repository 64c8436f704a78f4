"""What PIL's users share: torchvision's transforms of PIL images, and batches brought to the device."""

from collections.abc import Iterator
from typing import Any

from bench.peers.peer import MEAN, STD, Views, Work


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
