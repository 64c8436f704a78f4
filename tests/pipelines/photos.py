"""Synthetic images that behave like photos (slopes, edges, texture), their JPEGs, and betons of them."""

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.pipelines.beton.encode import Stored
from fastpsl.pipelines.beton.file import BetonFile
from fastpsl.pipelines.decoders import dali, libffcv
from fastpsl.pipelines.image import libturbo

# The decoders that can run here; our C library, ffcv and DALI are optional.
DECODERS = ["pillow"]
DECODERS += [] if libturbo.why_missing() else ["turbo"]
DECODERS += [] if libffcv.why_missing() else ["ffcv"]
# These read betons only.
COMPILED = DECODERS[1:]
DECODERS += [] if dali.why_missing(torch.device("cpu")) else ["dali"]


def needs_ffcv(what: str) -> pytest.MarkDecorator:
    """Return a mark for tests of ffcv itself, which are skipped without it."""
    return pytest.mark.skipif(bool(libffcv.why_missing()), reason=f"needs ffcv: {what}")


def needs_dali(what: str) -> pytest.MarkDecorator:
    """Return a mark for tests of DALI itself, which are skipped without it."""
    why = dali.why_missing(torch.device("cpu"))
    return pytest.mark.skipif(bool(why), reason=f"{why}: {what}")


JPG, RAW = 0, 1
FAR_BYTES = 5 << 30


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """Draw broad colours, a dozen sharp shapes and texture of natural strength: uint8 [height, width, 3]."""
    return _photo(seed, height, width).copy()


@functools.lru_cache(1024)
def _photo(seed: int, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    broad = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    image = np.asarray(broad).astype(np.float32)
    y, x = np.mgrid[:height, :width]
    for _ in range(12):
        centre_y, centre_x = random.uniform(0, height), random.uniform(0, width)
        radius_y, radius_x = random.uniform(0.05, 0.3, 2) * (height, width)
        inside = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1
        image[inside] = 0.5 * image[inside] + 0.5 * random.uniform(0, 255, 3)
    for cell_px, strength in ((8, 10.0), (3, 8.0), (1, 3.0)):
        noise = random.normal(0, strength, (height // cell_px + 2, width // cell_px + 2)).astype(np.float32)
        image += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))[
            ..., None
        ]
    return image.clip(0, 255).astype(np.uint8)


def exif(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation."""
    data = Image.Exif()
    data[0x112] = orientation
    return data


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(image: np.ndarray, **options: Any) -> bytes:
    return file_of(Image.fromarray(image), "JPEG", **{"quality": 90, **options})


def png_of(*chunks: bytes) -> bytes:
    """Return a PNG of chunks, of which each is its kind and its body."""
    sealed = [struct.pack(f">I{len(chunk)}sI", len(chunk) - 4, chunk, zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def pil_decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def ffcv_decode(data: bytes, height: int, width: int) -> np.ndarray:
    """Decode as libffcv does, by the fast DCT."""
    out = np.empty((height, width, 3), np.uint8)
    encoded = np.frombuffer(data, np.uint8).copy()
    handle = libffcv.Handle()
    assert libffcv.decode_into(encoded, len(data), height, width, out, 1, handle.address) == 0
    return out


def area_mean(image: np.ndarray, box: Sequence[float], size: int | tuple[int, int]) -> np.ndarray:
    """Compute the exact mean of the source area under each output pixel, as a product with two matrices.

    The area is at least one source pixel wide and high, and cut off at the box.

    Args:
        image: uint8 [H, W, 3].
        box: (top, left, height, width, ...), in pixels.
        size: The side of the output, or its height and width.

    Returns:
        float64 [height, width, 3].
    """

    def shares(start: float, length: float, num: int, size: int) -> np.ndarray:
        """Return the share of source pixel i in output pixel r, [size, num]."""
        step = length / size
        centres, half = start + (np.arange(size) + 0.5) * step, max(step, 1) / 2
        low, high = np.maximum(centres - half, start), np.minimum(centres + half, start + length)
        pixels = np.arange(num)
        covered = np.minimum(high[:, None], pixels + 1) - np.maximum(low[:, None], pixels)
        return covered.clip(0) / (high - low)[:, None]

    top, left, height, width = (float(value) for value in box[:4])
    high, wide = (size, size) if isinstance(size, int) else size
    rows = np.tensordot(shares(top, height, image.shape[0], high), image.astype(np.float64), 1)
    return np.einsum("cw,rwk->rck", shares(left, width, image.shape[1], wide), rows, optimize=True)


def write(
    path: Path, samples: Sequence[tuple[bytes, int, int, int]], page_bytes: int = 1 << 21, hole_bytes: int = 0
) -> Path:
    """Write a beton of samples (data, height, width, mode) with labels 0, 1, 2, ..., without any check.

    A hole after the first takes no space on the disk.
    """
    beton = BetonFile(path, len(samples), page_bytes)
    for label, (data, height, width, mode) in enumerate(samples):
        beton.add(Stored(data, height, width, mode, "passed"), label)
        if label == 0 and hole_bytes:
            beton.flush()
            beton._written = beton._end = hole_bytes + beton.data_start
    beton.finish()
    beton.file.publish()
    return path


def photo_samples(num: int, seed: int = 0) -> list[tuple[bytes, int, int, int]]:
    """Return JPEGs of various sizes, as `write` takes them."""
    random = np.random.default_rng(seed)
    samples = []
    for i in range(num):
        height, width = (int(side) for side in random.integers(60, 130, 2))
        samples.append((jpeg(photo(seed + i, height, width)), height, width, JPG))
    return samples
