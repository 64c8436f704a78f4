"""Synthetic data: samples without files, to find the ceiling of a loader's speed or replace a file."""

from typing import final

import numpy as np

from fastpsl.pipelines.data.dataset import SampleTable


@final
class Synthetic:
    """A data set without files, in place of a `Beton` of images of one size; a label is index % num_classes.

    Raises:
        ValueError: If an argument is below 1.
    """

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
        """Return the samples' sizes and labels, with nothing to read."""
        rows = SampleTable.empty(indices)
        rows.fd[:], rows.offset[:], rows.num_bytes[:], rows.mode[:] = -1, 0, 0, 0
        rows.height[:], rows.width[:] = self._size
        rows.label[:] = rows.indices % self.num_classes
        return rows

    def wait(self, indices: np.ndarray) -> None:
        """Do nothing, since all is on this machine."""

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
