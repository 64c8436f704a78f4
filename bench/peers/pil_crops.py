"""What PIL's users share: torchvision's crops of PIL images, and batches brought to the device."""

from collections.abc import Iterator
from typing import Any


class PilCrops:
    """A transform from a PIL image to `num_views` uint8 tensors [3, S, S]."""

    def __init__(self, size_px: int, num_views: int):
        from torchvision import transforms

        self.crop = transforms.Compose([transforms.RandomResizedCrop(size_px), transforms.PILToTensor()])
        self.num_views = num_views

    def __call__(self, image: Any) -> list[Any]:
        return [self.crop(image) for _ in range(self.num_views)]


def on_device(loader: Any, device: str) -> Iterator[int]:
    """Yield the numbers of samples of a loader's batches, which are copied to the device."""
    for batch in loader:
        if device != "cpu":
            batch = [tensor.to(device, non_blocking=True) for tensor in batch]
        yield len(batch[-1])
