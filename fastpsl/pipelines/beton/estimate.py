"""What a dataset file will weigh, and how long it takes to write, estimated from some images in memory."""

import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from random import Random

import numpy as np

from fastpsl.console.progress import clock
from fastpsl.console.words import gigabytes, number_of
from fastpsl.files.atomic import partial_path
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.beton.encode import Stored, Target
from fastpsl.pipelines.beton.shard import ALLOCATION, COEFFICIENTS, IMAGE_TYPE, INT_TYPE, row_dtype
from fastpsl.pipelines.beton.write import DEFAULT_PAGE_BYTES, TooSmall, convert_one, max_bad_count, no_image
from fastpsl.pipelines.image.depth import Scale
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.source import Sample, Source

_ROW_BYTES = row_dtype((IMAGE_TYPE, INT_TYPE)).itemsize
_END_BYTES = ALLOCATION.itemsize + 4  # of each image after the data: its place, its checksum
_NUM_PACKED = 4096  # images that are laid into pages to learn how much room stays empty; more would be slower


@dataclass(frozen=True)
class Estimate:
    """An estimate of the size and the time of writing a source, by some of its images."""

    num_total: int  # the number of images of the source
    num_seen: int  # the number of images that were converted
    how: str  # how they were chosen, in words
    num_bytes: float  # the size of the file
    # The least size that is likely (three standard errors); half of it where the images seen are the
    # first ones.
    low_bytes: float
    high_bytes: float  # the greatest that is likely; infinite where the images seen are the first ones
    seconds: float  # the time for reading and converting, with this many threads on this machine
    num_threads: int
    # How many images seen are "passed", "encoded", "mended", "bad" and "small"; and "coefficients"
    counts: Counter[str]
    sides: np.ndarray  # the (height, width) of those that would be stored, int [n, 2]
    first_bad: str  # the first bad image and its fault
    scale: Scale  # what was seen of values of more than 8 bits

    def line(self, out: Path) -> str:
        """Return size, time and free space in one line."""
        threads = number_of(self.num_threads, "thread")
        return (
            f"{out}: about {self.size()} of {self.num_total:,} images, {clock(self.seconds)} with "
            f"{threads} if the disk keeps up, {self.by()}; {gigabytes(free_bytes(out))} are free"
        )

    def size(self) -> str:
        """Return the size with its range."""
        if math.isinf(self.high_bytes):
            return f"{gigabytes(self.num_bytes)} (if the rest is like these)"
        low, high = gigabytes(self.low_bytes), gigabytes(self.high_bytes)
        return gigabytes(self.num_bytes) if low == high else f"{gigabytes(self.num_bytes)} ({low} to {high})"

    def by(self) -> str:
        """Return which images the estimate rests on."""
        return "by all of them" if self.num_seen == self.num_total else f"by {self.num_seen:,}, {self.how}"

    def details(self, max_bad: str) -> Iterator[str]:
        """Yield what becomes of the images and their sizes, a line each."""
        counts = self.counts
        taken = "taken over" if counts["coefficients"] else "taken over byte for byte"
        yield (
            f"of {self.num_seen:,} images: {counts['passed']:,} {taken}, "
            f"{counts['encoded']:,} encoded, {counts['mended']:,} encoded after a libjpeg warning, "
            f"{counts['bad']:,} bad, {counts['small']:,} too small"
        )
        if num_packed := counts["coefficients"]:
            yield f"{num_packed:,} of them as packed coefficients, which ffcv cannot read"
        if len(self.sides):
            yield _sides(self.sides)
        num_bad_images = counts["bad"] / self.num_seen * self.num_total
        if num_bad_images > max_bad_count(max_bad, self.num_total):
            yield (
                f"at this rate {num_bad_images:,.0f} images are bad, more than --max-bad {max_bad} allows, "
                f"and writing would stop; the first is {self.first_bad}"
            )

    def require_space(self, out: Path) -> None:
        """Raise ValueError if the file surely does not fit the disk."""
        if self.low_bytes > free_bytes(out):
            raise ValueError(
                f"{out}: takes about {self.size()}, {self.by()}, and {gigabytes(free_bytes(out))} are free "
                f"there; free some space, choose another disk, or shrink with --max-side or --short-side"
            )


def free_bytes(out: Path) -> int:
    """Return the space for `out` on its disk; a partial file that a killed run left makes room."""
    folder = next(folder for folder in out.absolute().parents if folder.is_dir())
    left_over = partial_path(out)
    blocks = left_over.stat().st_blocks if left_over.is_file() else 0
    return shutil.disk_usage(folder).free + 512 * blocks


def estimate(
    source: Source, target: Target, num_threads: int, *, num: int = 400, limit_s: float = 5.0
) -> Estimate:
    """Convert some images of a source, drawn with a fixed seed, and forget them again."""
    # 400 images or 5 s: nobody shall wait longer, and the answer tells how far it may be off.
    num_total = source.num_samples
    picks = source.picks(num, Random(0))
    samples = islice(picks.samples, num)
    if (first := next(samples, None)) is None:
        raise no_image()
    sizes, sides, counts, first_bad = list[int](), list[tuple[int, int]](), Counter[str](), ""
    done, scale = list[None](), Scale(target.reading.range)

    def convert(sample: Sample) -> Stored | BadImage | TooSmall:
        result = convert_one(sample.image, target)
        done.append(None)
        return result

    first_result = convert_one(first.image, target)  # the first takes longer, because code is loaded
    started = time.monotonic()
    results = map_in_order(convert, samples, num_threads, "beton-estimate")
    for sample, result in chain([(first, first_result)], results):
        if isinstance(result, Stored):
            counts[result.how] += 1
            if result.mode == COEFFICIENTS:
                counts["coefficients"] += 1
            scale.add(result.scale)
            sides.append((result.height, result.width))
        elif isinstance(result, BadImage):
            first_bad = first_bad or " ".join(f"{sample.name}: {result}".split())
        counts["bad"] += isinstance(result, BadImage)
        counts["small"] += isinstance(result, TooSmall)
        sizes.append(len(result.data) if isinstance(result, Stored) else 0)
        if (seconds := time.monotonic() - started) > limit_s:
            break
    results.close()
    num_bytes = _file_bytes(np.array(sizes), num_total)
    low, high = num_bytes / 2, math.inf
    if picks.is_random or len(sizes) == num_total:
        # Of the images themselves, which are a sample without repetition.
        error = float(np.std(sizes, ddof=1)) / math.sqrt(len(sizes)) if len(sizes) > 1 else sizes[0]
        spread = 3 * error * num_total * math.sqrt(1 - len(sizes) / num_total)
        low, high = max(num_bytes - spread, 0.0), num_bytes + spread
    return Estimate(
        num_total, len(sizes), picks.how, num_bytes, low, high, seconds / max(len(done), 1) * num_total,
        num_threads, counts, np.array(sides).reshape(-1, 2), first_bad, scale,
    )  # fmt: skip


def _file_bytes(sizes: np.ndarray, num_total: int) -> float:
    """Return the size of a beton of `num_total` images whose sizes are like these, 0 for one left out."""
    page, end = DEFAULT_PAGE_BYTES, 0
    while page < sizes.max():
        page *= 2
    num_packed = min(_NUM_PACKED, num_total)
    packed = list(islice(cycle(sizes.tolist()), num_packed))
    for size in packed:
        rest = -end % page
        end += size + (rest if size > rest else 0)
    table = -(-num_total * _ROW_BYTES // page) * page
    num_stored = num_total * np.count_nonzero(sizes) / len(sizes)
    in_pages = end / max(sum(packed), 1)  # bytes of the file for a byte of images: pages end with empty room
    return float(table + sizes.mean() * num_total * in_pages + num_stored * _END_BYTES)


def _sides(sides: np.ndarray) -> str:
    """Return how the sides of images, int [n, 2] of (height, width), are distributed, in one line."""
    shares = (0.05, 0.5, 0.95)
    shorter, longer = (
        ", ".join(f"{px:.0f}" for px in np.quantile(side, shares, method="nearest"))
        for side in (sides.min(1), sides.max(1))
    )
    height, width = sides.T
    return (
        f"as stored (5 %, median, 95 %): shorter side {shorter} px, longer side {longer} px; "
        f"{(width > height).mean():.0%} wide, {(width < height).mean():.0%} tall, "
        f"{(width == height).mean():.0%} square"
    )
