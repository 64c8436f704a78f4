"""No data at all: the ceiling to compare a loader with, and a stand-in for a beton where none is needed."""

from typing import final

import numpy as np

from fastpsl.pipelines.beton import Rows
from fastpsl.pipelines.decoders.codes import GOOD, REASONS, check_request

_NUM_PICTURES = 16


@final
class Synthetic:
    """Stands in for a Beton of `num_samples` pictures of height x width px; label = index % num_classes."""

    max_bytes = 0

    def __init__(self, num_samples: int, num_classes: int = 10, height: int = 400, width: int = 500) -> None:
        for name, value in (
            ("samples", num_samples),
            ("classes", num_classes),
            ("height", height),
            ("width", width),
        ):
            if value < 1:
                raise ValueError(f"Synthetic data with {name} = {value}: it must be 1 or more")
        self.num_samples, self.num_classes = num_samples, num_classes
        self.class_names = [f"class {label}" for label in range(num_classes)]
        self._size = (height, width)

    def image_sizes(self) -> tuple[int, int, int, int]:
        return self._size + self._size

    def rows(self, indices: np.ndarray) -> Rows:
        """The offset is the dataset index: pictures repeat by it, whatever the batch."""
        num = len(indices)
        height, width = self._size
        return Rows(
            fd=np.full(num, -1, np.int32),
            offset=np.asarray(indices, np.int64),
            num_bytes=np.zeros(num, np.int64),
            height=np.full(num, height, np.int32),
            width=np.full(num, width, np.int32),
            mode=np.zeros(num, np.uint8),
            label=np.asarray(indices, np.int64) % self.num_classes,
        )

    def labels(self) -> np.ndarray:
        return (np.arange(self.num_samples) % self.num_classes).astype(np.int32)

    def name(self, index: int) -> str:
        return f"synthetic sample {index}"

    def digest(self) -> str:
        return f"synthetic-{self.num_samples}-{self.num_classes}-{self._size[0]}x{self._size[1]}"

    def close(self) -> None:
        pass

    def __enter__(self) -> "Synthetic":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class SyntheticDecoder:
    """Copies one of a few pictures of noise, chosen by the sample's offset; reads nothing, crops nothing."""

    name = "synthetic"
    reasons = REASONS

    def __init__(self) -> None:
        self._pictures: dict[int, np.ndarray] = {}

    def decode(self, rows: Rows, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        check_request(boxes, outs, len(rows.offset))
        for out in outs:
            size = out.shape[1]
            pictures = self._pictures.get(size)
            if pictures is None:  # two threads may both make it: the same values, the last one stays
                pictures = np.random.default_rng(size).integers(
                    0, 256, (_NUM_PICTURES, size, size, 3), np.uint8
                )
                self._pictures[size] = pictures
            for i, offset in enumerate(rows.offset):
                out[i] = pictures[offset % _NUM_PICTURES]
        return np.full(len(rows.offset), GOOD, np.int8)
