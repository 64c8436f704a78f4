"""Some samples of a data set as a data set of their own."""

import hashlib
from typing import Any, final

import numpy as np

from fastpsl.pipelines.data.dataset import Dataset, SampleTable

_CHUNK = 65_536  # rows looked at in one go


@final
class Subset:
    """Samples `indices` (integers [n]) of `data`, in that order: sample i here is sample indices[i] there.

    Classes are those of `data`, also where none of their samples is here. Every decoder that reads `data` reads this, as
    samples still say where they lie; the quasi-random order does not, since it reads whole pages. ValueError where there are
    no indices, or one of them is out of range or there twice.
    """

    def __init__(self, data: Dataset, indices: np.ndarray) -> None:
        chosen = np.asarray(indices, np.int64)
        if chosen.ndim != 1 or not len(chosen):
            raise ValueError(f"a subset of {data.num_samples:,} samples without any: give one index or more")
        if chosen.min() < 0 or chosen.max() >= data.num_samples:
            wrong = chosen[(chosen < 0) | (chosen >= data.num_samples)][0]
            raise ValueError(
                f"sample {wrong} of a subset: the data has samples 0 to {data.num_samples - 1:,}"
            )
        values, counts = np.unique(chosen, return_counts=True)
        if counts.max() > 1:
            raise ValueError(f"sample {values[counts > 1][0]} is in the subset twice; give each index once")
        self.data, self.indices = data, chosen
        self.kind = data.kind
        self.num_samples, self.num_classes = len(chosen), data.num_classes
        self.class_names, self.split = data.class_names, data.split
        self._sizes: tuple[int, int, int, int] | None = None

    def __getattr__(self, name: str) -> Any:
        """What only some kinds of data have, such as a beton's `is_raw` and `paths`."""
        if name in ("is_raw", "paths"):
            return getattr(self.data, name)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def image_sizes(self) -> tuple[int, int, int, int]:
        """(min height, min width, max height, max width) over these samples, px."""
        if self._sizes is None:
            low, high = [], []
            for start in range(0, self.num_samples, _CHUNK):
                rows = self.data.rows(self.indices[start : start + _CHUNK])
                sizes = np.stack([rows.height, rows.width])
                low.append(sizes.min(1))
                high.append(sizes.max(1))
            least, most = np.min(low, 0).tolist(), np.max(high, 0).tolist()
            self._sizes = (least[0], least[1], most[0], most[1])
        return self._sizes

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Where samples lie; `indices` of the rows are positions here, as those that were asked for."""
        asked = np.asarray(indices, np.int64)
        if len(asked) and not (0 <= asked.min() and asked.max() < self.num_samples):
            raise IndexError(f"sample {asked.min()} .. {asked.max()} of {self.num_samples}")
        return self.data.rows(self.indices[asked])._replace(indices=asked)

    def labels(self) -> np.ndarray:
        """int32 [num_samples]; -1 = none."""
        return self.data.labels()[self.indices]

    def name(self, index: int) -> str:
        """The sample's name in the whole data set."""
        return self.data.name(int(self.indices[index]))

    def digest(self) -> str:
        """Equal for the same samples, in the same order, of equal data sets."""
        digest = hashlib.blake2b(self.data.digest().encode(), digest_size=16)
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the whole data set."""
        self.data.close()

    def __enter__(self) -> "Subset":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
