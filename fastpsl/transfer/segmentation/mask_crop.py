"""Random crops of a picture and its mask, as mmsegmentation's Resize, RandomCrop and RandomFlip have them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.pipelines.voc.masks import VOID
from fastpsl.transfer.image_input import resized, resized_sides

# mmsegmentation's (2048, 512): the longer side is at most four times the shorter one's size.
LONG_OF_SHORT = 4
TRIES = 11


@dataclass(frozen=True)
class ScaledCrop:
    """The shorter side `size_px` times a random scale within `scales`, then a random crop of `size_px` x `size_px`, mirrored half the time.

    Pictures that are smaller than the crop stay so. A crop of one class alone, or with more than `max_share` of the pixels that count
    in one, is drawn anew, ten times at most.
    """

    size_px: int
    scales: tuple[float, float]
    max_share: float

    def __call__(self, image: Tensor, mask: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """image: uint8 [3, h, w]; mask: uint8 [h, w]. keys: of this one picture."""
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
        """Whether there are two classes at least, and none takes more than its share."""
        counts = torch.bincount(mask.flatten(), minlength=VOID + 1)[:VOID]
        return int((counts > 0).sum()) > 1 and float(counts.max()) < self.max_share * float(counts.sum())
