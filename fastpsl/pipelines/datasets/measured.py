"""The values of a data set's images of more than 8 bits, measured in some that are spread over the set."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, final

import numpy as np

from fastpsl.console.progress import operation
from fastpsl.console.words import warn
from fastpsl.files.atomic import write_atomically
from fastpsl.files.system_errors import input_error
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.image.depth import warn_if_dark
from fastpsl.pipelines.image.image_file import look_at_values, read_image_file
from fastpsl.pipelines.interface.dataset import BadImage, is_of_one_file, spread_indices
from fastpsl.pipelines.interface.reading import Reading, range_text
from fastpsl.pipelines.interface.source import Source

NUM_MEASURED = 256
_VERSION = 1  # a new number whenever a measurement may differ
_THREADS = 16


@final
@dataclass(frozen=True)
class Measured:
    """A measurement.

    Attributes:
        num: The number of images that were looked at.
        deep: Of each with more than 8 bits: the least and the greatest value, and the value that becomes 255
            without a range.
        version: The kind of measurement.
    """

    num: int
    deep: list[tuple[float, float, float]] = field(default_factory=list)
    version: int = _VERSION

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the greatest value of all, which has images of more than 8 bits."""
        return min(low for low, _, _ in self.deep), max(high for _, high, _ in self.deep)

    def applied(self, source: object, reading: Reading) -> Reading:
        """Return the reading with the measured range, if it is wanted; warn of what is clipped or dark.

        Raises:
            ValueError: No image has more than 8 bits, or all have one value.
        """
        if reading.measures and not self.deep:
            raise ValueError(
                f"{source}: --range auto, and none of {self.num:,} images looked at has more than 8 bits; "
                "leave it out"
            )
        if reading.measures:
            return replace(reading, range=self.extremes, measures=False)
        if reading.range:
            low, high = reading.range
            outside = sum(least < low or most > high for least, most, _ in self.deep)
            if outside:
                least, most = self.extremes
                warn(
                    f"{source}: {outside:,} of {self.num:,} images looked at have values outside of "
                    f"--range {range_text(reading.range)} ({least:,g} to {most:,g}), which are clipped",
                    stacklevel=3,
                )
        elif self.deep:
            warn_if_dark(source, *self.extremes, max(full for _, _, full in self.deep))
        return reading


def measure_source(name: str, source: Source, bands: tuple[int, ...]) -> Measured:
    """Look at images that are to be written: of files the same ones as in a folder, else a few."""
    num = min(source.num_samples, NUM_MEASURED)
    first = next(iter(source.samples()), None)
    if first and isinstance(first.image, Path):
        images: Iterable[Any]
        chosen = {*spread_indices(source.num_samples, num).tolist()}
        images = [sample.image for i, sample in enumerate(source.samples()) if i in chosen]
    else:
        images = (sample.image for sample in islice(source.picks(num, Random(0)).samples, num))
    return measure(name, images, num, bands)


def measure(source: object, images: Iterable[Any], num: int, bands: tuple[int, ...] = ()) -> Measured:
    """Look at the values of images: files, files' bytes, or other objects, which have 8 bits and are passed
    over.

    Raises:
        ValueError: The system does not let them be read.
    """
    with operation(f"{source}: looking at values of more than 8 bits", "images", num) as progress:
        results = map_in_order(lambda image: _look(image, bands), images, _THREADS, "values")
        return Measured(num, [seen for _, seen in progress.track(results) if seen])


def _look(image: Any, bands: tuple[int, ...]) -> tuple[float, float, float] | None:
    try:
        if isinstance(image, Path | str):
            image = read_image_file(image)
        scale = look_at_values(image, bands) if isinstance(image, bytes) else None
    except OSError as error:
        if not is_of_one_file(error):
            raise input_error(image, error) from None
        return None
    except BadImage:  # told when it is read
        return None
    return (scale.low, scale.high, scale.full) if scale and np.isfinite(scale.high) else None


def kept(path: Path) -> Measured | None:
    """Return the measurement in a file; None where it is missing or of another version."""
    try:
        record = json.loads(path.read_bytes())
        measured = Measured(record["num"], [tuple(each) for each in record["deep"]], record["version"])
        return measured if measured.version == _VERSION else None
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):  # after a power cut
        return None


def keep(path: Path, measured: Measured) -> None:
    """Write a measurement to a file."""
    write_atomically(path, json.dumps(asdict(measured)).encode())
