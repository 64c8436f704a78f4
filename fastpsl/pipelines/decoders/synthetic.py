"""The decoder that copies noise in place of images."""

import numpy as np
from typing_extensions import override

from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.decoders.codes import GOOD, REASONS, check_request
from fastpsl.pipelines.decoders.decoder import Decoder

_NUM_IMAGES = 16


class SyntheticDecoder(Decoder):
    """A decoder that copies one of a few noise images, by the sample's index; it reads and crops nothing."""

    name = "synthetic"
    reasons = REASONS

    def __init__(self) -> None:
        self._images: dict[int, np.ndarray] = {}

    @override
    def decode(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        check_request(boxes, outs, len(rows.indices))
        for out in outs:
            size = out.shape[1]
            images = self._images.get(size)
            if images is None:  # without a lock, because two threads would draw the same values
                images = np.random.default_rng(size).integers(0, 256, (_NUM_IMAGES, size, size, 3), np.uint8)
                self._images[size] = images
            for i, index in enumerate(rows.indices):
                out[i] = images[index % _NUM_IMAGES]
        return np.full(len(rows.indices), GOOD, np.int8)
