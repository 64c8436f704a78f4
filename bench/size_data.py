"""The images of bench/sizes.py: drawn ones with the bytes of real JPEGs, or a folder of your own."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench.photos import QUALITY, SIDES, Side, write_photos


class Form(NamedTuple):
    """The form of the images of one size.

    Attributes:
        sides: Height, width and share.
        mean_bytes: Mean bytes of a JPEG.
        source: Whose form that is.
        quality: Quality of the drawn JPEGs.
    """

    sides: tuple[Side, ...]
    mean_bytes: int
    source: str
    quality: int = QUALITY

    @property
    def bytes_per_pixel(self) -> float:
        return self.mean_bytes / sum(height * width * share for height, width, share in self.sides)


def _shorter(side: int) -> tuple[Side, ...]:
    """Return the shapes of images with this shorter side: 4:3 and 3:2, three quarters of them upright."""
    across = ((side, round(side * 4 / 3), 0.6), (side, round(side * 3 / 2), 0.15))
    return *across, *((width, height, share / 3) for height, width, share in across)


# Bytes are of the sets named; drawn JPEGs of bench/photos.py had 55 KB at 500 px, half of what
# `--max-side 500` makes of ImageNet. Where JPEGs of cameras are taken over as they are, as there, quality is
# 96: noise at 90 would need more contrast than 8 bits have to be as heavy.
SIZES = {
    "64": Form(((64, 64, 1.0),), 2_050, "Tiny ImageNet: 248 MB for 120,000 images"),
    "160": Form(_shorter(160), 7_300, "Imagenette of 160 px: 99 MB for 13,394 images"),
    "224": Form(((224, 224, 1.0),), 13_000, "ImageNet's middle squares at quality 75"),
    "256": Form(_shorter(256), 36_900, "ImageNet with --short-side 256, bench/results/beton_size.json"),
    "500": Form(SIDES, 108_600, "ImageNet with --max-side 500, bench/results/beton_size.json", 96),
    # Shapes whose mean is 473 x 386, ImageNet's; the frames of 500 px are its usual ones.
    "originals": Form(
        (
            (375, 500, 0.38), (333, 500, 0.18), (500, 375, 0.09), (500, 333, 0.06), (500, 500, 0.03),
            (281, 500, 0.04), (240, 320, 0.05), (300, 400, 0.04), (200, 260, 0.04), (480, 640, 0.03),
            (768, 1024, 0.03), (1024, 768, 0.01), (150, 200, 0.02),
        ),
        118_500, "ImageNet's training set, bench/results/beton_size.json", 96,
    ),
}  # fmt: skip


def crop_px(size: str) -> int:
    """Return the side of the crops of a size: its own, 224 at most."""
    return min(int(size), 224) if size.isdecimal() else 224


def drawn(size: str, num: int, folder: Path) -> Path:
    """Return the dataset file of the drawn images of a size, which the first call writes."""
    form = SIZES[size]
    path = folder / f"{size}-{form.mean_bytes}-{num}.beton"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_photos(path, num, 0, None, form.bytes_per_pixel, form.sides, form.quality)
    return path


def own(source: str, folder: Path) -> str:
    """Return a dataset file of your own images; those of a folder are taken over as they are.

    Raises:
        ValueError: `fastpsl data write` cannot write the folder's images.
    """
    if not Path(source).is_dir():
        return source
    path = folder / "own.beton"
    command = [sys.executable, "-m", "fastpsl.cli", "data", "write", source, str(path)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode:
        raise ValueError(f"--data {source}: {process.stderr.strip().splitlines()[-1]}")
    return str(path)
