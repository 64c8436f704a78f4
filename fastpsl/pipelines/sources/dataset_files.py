"""Dataset files as a source: their images are written again, in another mode, size or order of files."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import (
    MODE_COEFFICIENTS,
    MODE_RAW,
    BadImage,
    SampleTable,
    read_bytes,
)
from fastpsl.pipelines.data.source import Counted, Picks, Sample
from fastpsl.pipelines.decoders.codes import REASONS, SHORT_READ
from fastpsl.pipelines.image.coefficients import to_jpeg

_CHUNK = 4096  # rows of the tables read at a time


def stored_image(rows: SampleTable, i: int) -> "bytes | np.ndarray | BadImage":
    """Return a sample as an image to be written: an image file's bytes, or RGB uint8 [H, W, 3]."""
    data = read_bytes(rows, i)
    if len(data) != rows.num_bytes[i]:
        return BadImage(REASONS[SHORT_READ])
    if rows.mode[i] == MODE_RAW:
        return np.frombuffer(data, np.uint8).reshape(int(rows.height[i]), int(rows.width[i]), 3)
    if rows.mode[i] != MODE_COEFFICIENTS:
        return data
    try:
        return to_jpeg(data)
    except BadImage as error:
        return error


@dataclass
class DatasetFiles(Counted):
    """The samples of a dataset file, or of a glob of shards."""

    data: Beton

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in order."""
        here = self.here[skip:]
        names = islice(self.data.names(), here.start, None)
        for start in range(here.start, here.stop, _CHUNK):
            rows = self.data.rows(np.arange(start, min(start + _CHUNK, here.stop)))
            for i in range(len(rows.indices)):
                yield Sample(next(names), stored_image(rows, i), int(rows.label[i]))

    def picks(self, num: int, random: Random) -> Picks:
        """Draw images of this shard."""
        indices = random.sample(self.here, min(num, len(self.here)))
        rows = self.data.rows(np.array(indices, np.int64))
        samples = (Sample(str(at), stored_image(rows, i), int(rows.label[i])) for i, at in enumerate(indices))
        return Picks("picked at random", True, samples)


def dataset_files(src: str, shard: tuple[int, int] = (0, 1)) -> DatasetFiles:
    """Open a dataset file or a glob of shards as a source; `shard` (i, n) keeps the i-th of n runs."""
    data = Beton(src)
    return DatasetFiles(
        data, counts=[data.num_samples], mode="raw" if data.is_raw else "jpg", shard=shard,
        class_names=data.class_names, left_out=data.left_out, reading=data.reading,
    )  # fmt: skip
