"""A dataset file of many distinct JPEGs with a photo's bytes and decoding time, for machines with few photos.

    python bench/photos.py photos.beton --num 6000

Sides, bytes per pixel and their spread are those of 500 ImageNet originals re-encoded at a longer side of
500 px, quality 90: 0.165 Mpx, 55 KB in the mean. The images are noise with a photo's statistics: amplitude
falls as 1/f (Field 1987, doi 10.1364/JOSAA.4.002379). Local contrast varies by a smooth field, and colour is
smoother than brightness. Each is cut at random, mirrored or turned, from the same few fields, with a
contrast that gives its JPEG the drawn number of bytes. With as many bytes, a pixel took 1.00 of a real one's
time with ffcv, beside 300 clothing photos.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import counted, parser_of, run_program
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.beton.encode import Target, store_array
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.interface.source import Sample

QUALITY, NUM_CLASSES = 90, 100
# Height, width and share. These are the two usual frames of cameras, upright and across, squares, and images
# that were small from the start: 0.165 Mpx in the mean, as 500 ImageNet originals had.
Side = tuple[int, int, float]
SIDES: tuple[Side, ...] = (
    (375, 500, 0.42), (333, 500, 0.20), (500, 375, 0.10), (500, 333, 0.07), (500, 500, 0.03),
    (281, 500, 0.05),
    (240, 320, 0.06), (300, 400, 0.04), (200, 260, 0.03),
)  # fmt: skip
BYTES_PER_PIXEL = 0.333  # 55 KB over 0.165 Mpx
# Standard deviations of the logarithm of bytes per pixel, and of the blocks' contrast. 150 clothing photos at
# 500 px had 0.33 and 0.94.
SPREAD_OF_BYTES = 0.35
SPREAD_OF_CONTRAST = 0.9
_FIELD_PX = 1024
_ENCODINGS = 5  # the last one counts; its bytes are within some percent of the drawn number
_POWER = 0.75  # bytes grow with about this power of the contrast


class Fields:
    """A set of periodic noise fields, float32 [2 * 1024, 2 * 1024], of mean 0 and deviation 1.

    They are tiled twice, so that every cut of up to 1024 px lies inside.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def field(self, number: int, exponent: float) -> np.ndarray:
        """Return noise with an amplitude that falls as f^-exponent."""
        random = np.random.default_rng((self.seed, number))
        spectrum = np.fft.rfft2(random.standard_normal((_FIELD_PX, _FIELD_PX)))
        rows, columns = np.fft.fftfreq(_FIELD_PX)[:, None], np.fft.rfftfreq(_FIELD_PX)[None]
        frequency = np.hypot(rows, columns)
        frequency[0, 0] = 1.0
        spectrum *= frequency**-exponent
        spectrum[0, 0] = 0.0
        noise = np.fft.irfft2(spectrum, (_FIELD_PX, _FIELD_PX))
        return np.tile((noise / noise.std()).astype(np.float32), (2, 2))

    @cached_property
    def detail(self) -> np.ndarray:
        return self.field(0, 1.0)

    @cached_property
    def contrast(self) -> np.ndarray:
        """Factors of the detail's amplitude, smooth over about 50 px."""
        return np.exp(SPREAD_OF_CONTRAST * self.field(1, 1.6))

    @cached_property
    def shade(self) -> np.ndarray:
        return self.field(2, 2.0)

    @cached_property
    def colour(self) -> np.ndarray:
        return self.field(3, 1.5)


def photo(
    fields: Fields,
    index: int,
    bytes_per_pixel: float = BYTES_PER_PIXEL,
    sides: Sequence[Side] = SIDES,
    quality: int = QUALITY,
) -> bytes:
    """Return JPEG `index` of the fields' seed, with `bytes_per_pixel` in the mean over many."""
    random = np.random.default_rng((fields.seed, 10, index))
    height, width, _ = sides[random.choice(len(sides), p=[share for _, _, share in sides])]
    target_bytes = bytes_per_pixel * np.exp(
        SPREAD_OF_BYTES * random.standard_normal() - SPREAD_OF_BYTES**2 / 2
    )
    target_bytes *= height * width

    def cut(field: np.ndarray) -> np.ndarray:
        top, left, turns, mirrored = random.integers((0, 0, 0, 0), (_FIELD_PX, _FIELD_PX, 4, 2))
        rows, columns = (height, width) if turns % 2 == 0 else (width, height)
        part = np.rot90(field[top : top + rows, left : left + columns], turns)
        return part[:, ::-1] if mirrored else part

    detail = cut(fields.detail) * cut(fields.contrast)
    flat = 128 + 30 * random.standard_normal() + 35 * cut(fields.shade)
    tint = np.array([0.0, -0.34, 1.77], np.float32) * random.uniform(4, 14)  # blue and yellow, like Cb
    warm = np.array([1.40, -0.71, 0.0], np.float32) * random.uniform(4, 14)
    colour = cut(fields.colour)[..., None] * tint + cut(fields.colour)[..., None] * warm
    contrast = 12.0
    for _ in range(_ENCODINGS):
        pixels = np.clip((flat + contrast * detail)[..., None] + colour, 0, 255).astype(np.uint8)
        data = store_array(np.ascontiguousarray(pixels), Target(quality=quality)).data
        contrast *= float(target_bytes / len(data)) ** (1 / _POWER)
    return data


def write_photos(
    out: Path,
    num: int,
    seed: int = 0,
    num_workers: int | None = None,
    bytes_per_pixel: float = BYTES_PER_PIXEL,
    sides: Sequence[Side] = SIDES,
    quality: int = QUALITY,
) -> None:
    """Write a dataset file of photos 0 to num - 1 of a seed, with made-up labels."""
    fields = Fields(seed)
    _ = fields.detail, fields.contrast, fields.shade, fields.colour  # before threads use them
    num_workers = num_workers or len(os.sched_getaffinity(0))

    def samples() -> Iterator[Sample]:
        jpegs = map_in_order(
            lambda i: photo(fields, i, bytes_per_pixel, sides, quality), range(num), num_workers, "photos"
        )
        for index, jpeg in jpegs:
            yield Sample(f"{index:06}.jpg", jpeg, index % NUM_CLASSES)

    names = [f"made up {label:02}" for label in range(min(NUM_CLASSES, num))]
    record: dict[str, object] = {"source": f"noise with a photo's statistics, seed {seed}"}
    write_beton(
        samples(), out, num_samples=num, class_names=names, num_workers=num_workers, overwrite=True,
        record=record
    )  # fmt: skip


def written(out: Path) -> str:
    """Return a line with the size of the JPEGs and of the file, which consists of whole pages."""
    with Beton(out) as data:
        num_bytes = data.rows(np.arange(data.num_samples)).num_bytes
    mean, whole, size = (value / 1e3 for value in (num_bytes.mean(), num_bytes.sum(), out.stat().st_size))
    jpegs = f"{counted(len(num_bytes), 'JPEG')} of {mean:.1f} KB in the mean, together {whole / 1e3:,.1f} MB"
    return f"{out}: {jpegs}; the file has {size / 1e3:,.1f} MB"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path, help="the dataset file to write, over what was there")
    parser.add_argument("--num", type=int, default=6000, help="JPEGs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same one gives the same images (default: 0)")
    mean = "of the JPEGs, in the mean (default: ImageNet's, %(default)s)"
    parser.add_argument("--bytes-per-pixel", type=float, default=BYTES_PER_PIXEL, help=mean)
    parser.add_argument("--workers", type=int, help="threads that draw and encode (default: one per core)")
    options = parser.parse_args()
    if options.num < 1 or options.bytes_per_pixel <= 0:
        raise ValueError(
            f"--num {options.num} --bytes-per-pixel {options.bytes_per_pixel:g}: both must be above 0"
        )
    started = time.perf_counter()
    write_photos(options.out, options.num, options.seed, options.workers, options.bytes_per_pixel)
    seconds = time.perf_counter() - started
    print(f"{written(options.out)}; {seconds:.1f} s ({options.num / seconds:,.1f} per second)")


if __name__ == "__main__":
    run_program(main)
