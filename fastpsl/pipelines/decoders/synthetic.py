"""No data at all: the ceiling to compare a loader with, and a stand-in for a beton where none is needed."""

from typing import final

import numpy as np
from typing_extensions import override

from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.decoders.codes import GOOD, REASONS, check_request
from fastpsl.pipelines.decoders.decoder import Decoder

_NUM_PICTURES = 16


@final
class Synthetic:
    """Stands in for a Beton of `num_samples` pictures of height x width px; label = index % num_classes."""

    kind = "synthetic"
    split = ""

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
        self.class_names: list[str] | None = [f"class {label}" for label in range(num_classes)]
        self._size = (height, width)

    def image_sizes(self) -> tuple[int, int, int, int]:
        return self._size + self._size

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Nothing to read: the picture is chosen by the dataset index."""
        rows = SampleTable.empty(indices)
        rows.fd[:], rows.offset[:], rows.num_bytes[:], rows.mode[:] = -1, 0, 0, 0
        rows.height[:], rows.width[:] = self._size
        rows.label[:] = rows.indices % self.num_classes
        return rows

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


class SyntheticDecoder(Decoder):
    """Copies one of a few pictures of noise, chosen by the sample's index; reads nothing, crops nothing."""

    name = "synthetic"
    reasons = REASONS

    def __init__(self) -> None:
        self._pictures: dict[int, np.ndarray] = {}

    @override
    def decode(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        check_request(boxes, outs, len(rows.indices))
        for out in outs:
            size = out.shape[1]
            pictures = self._pictures.get(size)
            if pictures is None:  # two threads may both make it: the same values, the last one stays
                pictures = np.random.default_rng(size).integers(
                    0, 256, (_NUM_PICTURES, size, size, 3), np.uint8
                )
                self._pictures[size] = pictures
            for i, index in enumerate(rows.indices):
                out[i] = pictures[index % _NUM_PICTURES]
        return np.full(len(rows.indices), GOOD, np.int8)
