"""Dataset files as a source: their images are written again, in another mode, size or order of files."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np

from fastpsl.files.system_errors import input_error
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders.codes import REASONS, SHORT_READ
from fastpsl.pipelines.interface.dataset import (
    MODE_COEFFICIENTS,
    MODE_RAW,
    BadImage,
    SampleTable,
    read_bytes,
)
from fastpsl.pipelines.interface.source import Counted, Packed, Picks, Sample

_CHUNK = 4096  # rows of the tables read at a time


def stored_image(rows: SampleTable, i: int) -> "bytes | Packed | np.ndarray | BadImage":
    """Return a sample as an image to be written: a file's bytes, coefficients, or RGB uint8 [H, W, 3]."""
    data = read_bytes(rows, i)
    if len(data) != rows.num_bytes[i]:
        return BadImage(REASONS[SHORT_READ])
    if rows.mode[i] == MODE_RAW:
        return np.frombuffer(data, np.uint8).reshape(int(rows.height[i]), int(rows.width[i]), 3)
    if rows.mode[i] == MODE_COEFFICIENTS:
        return Packed(data, int(rows.height[i]), int(rows.width[i]))
    return data


@dataclass
class DatasetFiles(Counted):
    """The samples of a dataset file, or of a glob of shards, which are open while they are read."""

    src: str

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in order."""
        here = self.here[skip:]
        with Beton(self.src) as data:
            names = islice(data.names(), here.start, None)
            for start in range(here.start, here.stop, _CHUNK):
                indices = np.arange(start, min(start + _CHUNK, here.stop))
                # The names come last, because zip takes from the first before it finds the second at its end.
                for image, label, name in zip(*self._read(data, indices), names, strict=False):
                    yield Sample(name, image, label)

    def picks(self, num: int, random: Random) -> Picks:
        """Choose images of this shard at random."""
        indices = np.array(random.sample(self.here, min(num, len(self.here))), np.int64)

        def samples() -> Iterator[Sample]:
            with Beton(self.src) as data:
                for index, image, label in zip(indices.tolist(), *self._read(data, indices), strict=True):
                    yield Sample(str(index), image, label)

        return Picks("picked at random", True, samples())

    def _read(
        self, data: Beton, indices: np.ndarray
    ) -> "tuple[Iterator[bytes | Packed | np.ndarray | BadImage], list[int]]":
        rows = data.rows(indices)

        def images() -> "Iterator[bytes | Packed | np.ndarray | BadImage]":
            for i in range(len(indices)):
                try:
                    yield stored_image(rows, i)
                except OSError as error:
                    raise input_error(data.name(int(indices[i])), error) from None

        return images(), rows.label.tolist()


def dataset_files(src: str, shard: tuple[int, int] = (0, 1)) -> DatasetFiles:
    """Open a dataset file or a glob of shards as a source; `shard` (i, n) keeps the i-th of n runs."""
    with Beton(src) as data:
        mode = "raw" if data.is_raw else "coefficients" if data.is_packed else "jpg"
        return DatasetFiles(
            src, counts=[data.num_samples], mode=mode, shard=shard, class_names=data.class_names,
            left_out=data.left_out, reading=data.reading,
        )  # fmt: skip
