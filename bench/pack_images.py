"""Carries small images to a machine without a network: packs an .npz, as `fastpsl data write` reads it,
without loss and in pieces, and unpacks a piece.

    python bench/pack_images.py pack cifar10/train.npz packed --each 12000     1.7 KB per image of CIFAR-10
                                                                               instead of 3
    python bench/pack_images.py unpack packed/train-1of5.packed train.npz

A piece has --each images, as they stand: sheets of 1,024 as lossless WebP, and the labels. Its name says how
many pieces there are.
"""

import io
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import parser_of, run_program

_ROWS = 32  # rows and columns of a sheet


def pack(source: Path, folder: Path, each: int) -> list[Path]:
    """Pack images, uint8 [N, H, W, 3], and labels [N] of an .npz in pieces; return their paths."""
    with np.load(source) as arrays:
        if not {"images", "labels"} <= set(arrays.files):
            raise ValueError(f"{source}: holds {', '.join(arrays.files)}; images and labels are wanted")
        images, labels = arrays["images"], arrays["labels"]
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        raise ValueError(
            f"{source}: images are {images.dtype} {list(images.shape)}; uint8 [n, h, w, 3] is wanted"
        )
    if each < 1 or not len(images):
        raise ValueError(f"{source}: {len(images)} images in pieces of {each}: both must be above 0")
    starts = range(0, len(images), each)
    paths = [folder / f"{source.stem}-{n}of{len(starts)}.packed" for n in range(1, len(starts) + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    for path, start in zip(paths, starts, strict=True):
        _pack(images[start : start + each], labels[start : start + each], path)
    return paths


def _pack(images: np.ndarray, labels: np.ndarray, out: Path) -> None:
    """Write a piece."""
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


def _places(piece: Path) -> tuple[int, ...]:
    """Return which piece a file is, and of how many."""
    return tuple(int(number) for number in re.findall(r"\d+", piece.stem.rpartition("-")[2]))


def pieces(folder: Path, stem: str) -> list[Path]:
    """Return all pieces in order; ValueError if one is missing."""
    found = sorted(folder.glob(f"{stem}-*of*.packed"), key=_places)
    nums = {_places(path)[1] for path in found}
    if len(nums) != 1 or len(found) != max(nums):
        there = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{folder}: of {stem}'s pieces there is {there}; bring all, of one packing")
    return found


def joined(folder: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of all pieces; ValueError if one is missing."""
    images, labels = zip(*map(unpacked, pieces(folder, stem)), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def unpack(source: Path, out: Path) -> int:
    """Write the .npz that `pack` has read, and return the number of images."""
    images, labels = unpacked(source)
    np.savez(out, images=images, labels=labels)
    return len(labels)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path, help="a folder, or the .npz to unpack to")
    parser.add_argument("--each", type=int, default=12_000, help="images of a piece")
    options = parser.parse_args()
    if options.what == "pack":
        for path in pack(options.source, options.out, options.each):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    else:
        print(f"{options.out}: {unpack(options.source, options.out):,} images")


if __name__ == "__main__":
    run_program(main)
