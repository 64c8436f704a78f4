"""Random crops of an image and its mask, as mmsegmentation's Resize, RandomCrop and RandomFlip make them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.pipelines.datasets.voc.annotations import VOID
from fastpsl.transfer.image_input import resized, resized_sides

# From mmsegmentation's (2048, 512): the longer side is at most four times the size of the shorter one.
LONG_OF_SHORT = 4
TRIES = 11


@dataclass(frozen=True)
class ScaledCrop:
    """A random crop of a randomly scaled image, mirrored half the time.

    The shorter side is resized to `size_px` times a random scale, then a square of `size_px` is cropped at
    random. Images that are smaller than the crop stay so. A crop that shows one class alone, or one class in
    at least `max_share` of its pixels, is drawn anew, ten times at most. Void pixels do not count.

    Attributes:
        size_px: Side of the crop.
        scales: Least and largest scale.
        max_share: Largest share of one class.
    """

    size_px: int
    scales: tuple[float, float]
    max_share: float

    def __call__(self, image: Tensor, mask: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """Crop an image (uint8 [3, h, w]) and its mask (uint8 [h, w]) by the keys of this one image."""
        scale, *places = uniforms(keys, Slot.CROP, 1 + 2 * TRIES)[0].tolist()
        least, most = self.scales
        size_px = round(self.size_px * (least + (most - least) * scale))
        sides = resized_sides(mask.shape[0], mask.shape[1], size_px, LONG_OF_SHORT * size_px)
        image = resized(image, sides)
        mask = F.interpolate(mask[None, None], sides, mode="nearest-exact")[0, 0]
        for down, right in np.reshape(places, (TRIES, 2)):
            rows, columns = self._part(down, sides[0]), self._part(right, sides[1])
            if self._is_mixed(mask[rows, columns]):
                break
        image, mask = image[:, rows, columns], mask[rows, columns]
        if uniforms(keys, Slot.FLIP, 1)[0, 0] < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return image.contiguous(), mask.contiguous()

    def _part(self, share: float, side_px: int) -> slice:
        first = int(share * (max(side_px - self.size_px, 0) + 1))
        return slice(first, first + self.size_px)

    def _is_mixed(self, mask: Tensor) -> bool:
        """Return whether the mask has two classes or more, and none takes more than its share."""
        counts = torch.bincount(mask.flatten(), minlength=VOID + 1)[:VOID]
        return int((counts > 0).sum()) > 1 and float(counts.max()) < self.max_share * float(counts.sum())
