"""Carries small images to a machine without a network: packs an .npz, as `fastpsl data write` reads it,
without loss, and unpacks it.

    python bench/pack_images.py pack cifar10/train.npz train.packed --num 30000  1.7 KB per image of CIFAR-10
                                                                                 instead of 3
    python bench/pack_images.py unpack train.packed train.npz

Sheets of 1,024 images as lossless WebP, and the labels. --num takes the first so many, as they stand.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import run_program

_ROWS = 32  # rows and columns of a sheet


def pack(source: Path, out: Path, num: int | None) -> int:
    """Pack the first images, uint8 [N, H, W, 3], and labels [N] of an .npz; return the number of images."""
    with np.load(source) as arrays:
        if not {"images", "labels"} <= set(arrays.files):
            raise ValueError(f"{source}: holds {', '.join(arrays.files)}; images and labels are wanted")
        images, labels = arrays["images"][:num], arrays["labels"][:num]
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        raise ValueError(
            f"{source}: images are {images.dtype} {list(images.shape)}; uint8 [n, h, w, 3] is wanted"
        )
    height, width = images.shape[1:3]
    sheets: dict[str, np.ndarray] = {}
    for number, start in enumerate(range(0, len(images), _ROWS**2)):
        sheet = np.zeros((_ROWS**2, height, width, 3), np.uint8)
        part = images[start : start + _ROWS**2]
        sheet[: len(part)] = part
        whole = sheet.reshape(_ROWS, _ROWS, height, width, 3).transpose(0, 2, 1, 3, 4)
        data = io.BytesIO()
        Image.fromarray(whole.reshape(_ROWS * height, _ROWS * width, 3)).save(
            data, "WEBP", lossless=True, method=4, quality=100
        )
        sheets[f"sheet_{number:05}"] = np.frombuffer(data.getvalue(), np.uint8)
    with open(out, "wb") as file:
        np.savez(file, labels=labels, size=np.array([height, width]), **sheets)  # type: ignore[arg-type]
    return len(images)


def unpacked(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [N, H, W, 3], and the labels [N] that `pack` has read."""
    with np.load(source) as arrays:
        if "size" not in arrays.files:
            raise ValueError(f"{source}: is no file of `pack`")
        (height, width), labels = arrays["size"].tolist(), arrays["labels"]
        parts = []
        for name in sorted(name for name in arrays.files if name.startswith("sheet_")):
            whole = np.asarray(Image.open(io.BytesIO(arrays[name].tobytes())).convert("RGB"))
            sheet = whole.reshape(_ROWS, height, _ROWS, width, 3).transpose(0, 2, 1, 3, 4)
            parts.append(sheet.reshape(_ROWS**2, height, width, 3))
    return np.concatenate(parts)[: len(labels)], labels


def unpack(source: Path, out: Path) -> int:
    """Write the .npz that `pack` has read, and return the number of images."""
    images, labels = unpacked(source)
    np.savez(out, images=images, labels=labels)
    return len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, help="images; default: all")
    options = parser.parse_args()
    if options.what == "pack":
        num = pack(options.source, options.out, options.num)
    else:
        num = unpack(options.source, options.out)
    print(f"{options.out}: {num:,} images, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_program(main)
