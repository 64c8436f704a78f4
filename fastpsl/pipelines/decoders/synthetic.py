"""The decoder that copies noise in place of images."""

import numpy as np
from typing_extensions import override

from fastpsl.pipelines.decoders.decoder import Decoder, Request

_NUM_IMAGES = 16


class SyntheticDecoder(Decoder):
    """A decoder that copies one of a few noise images, by the sample's index; it reads and crops nothing."""

    name = "synthetic"

    def __init__(self) -> None:
        self._images: dict[int, np.ndarray] = {}

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        for out in request.outs:
            size = out.shape[1]
            images = self._images.get(size)
            if images is None:  # without a lock, because two threads would draw the same values
                images = np.random.default_rng(size).integers(0, 256, (_NUM_IMAGES, size, size, 3), np.uint8)
                self._images[size] = images
            for i in range(part.start, part.stop):
                out[i] = images[request.rows.indices[i] % _NUM_IMAGES]
