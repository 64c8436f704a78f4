"""Split a public set of images into parts, and write the list that plans read.

    python -m bench.evidence.splits scenes FOLDER      FOLDER holds the set as it is published

A list, bench/evidence/splits/SET.csv, has a line for each image: its part, its class, its path and the first
16 digits of its SHA-256. splits.json beside the lists has their sizes and licenses. It counts how many images
of a part have a near duplicate in another: a perceptual hash that differs in at most NEAR of 64 bits. And it
counts the validation images that are also among the others, byte by byte, and those that have another label
there.

`search` is a fifth of each class of the training images, by which rates and lengths are chosen. It is trained
on like the others, without labels; no label that a search learns from is of it.
"""

import csv
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from bench.program import run_program
from fastpsl.files.atomic import write_atomically
from fastpsl.files.digest import sha256_of_file

FOLDER = Path(__file__).parent / "splits"
TRAIN, SEARCH, HELD_OUT = "train", "search", "held-out"
NEAR = 6  # bits
_SEARCHED = 5  # one of so many training images


class Line(NamedTuple):
    """An image of a set."""

    part: str
    label: str
    path: str  # below the set's root
    sha256: str  # its first 16 digits


class Set(NamedTuple):
    """A public set: where its images are, and how they are split."""

    source: str
    license: str
    root: str  # the folder of its images, below that of the set
    parts: "Callable[[Path], Iterator[tuple[str, list[Labelled]]]]"

    def checked(self, folder: Path, line: Line) -> Path:
        """Return where an image is; ValueError if it is missing or another one."""
        path = folder / self.root / line.path
        if not path.is_file():
            raise ValueError(f"{path}: is missing; give the folder that has the set as {self.source} has it")
        if _digest(path) != line.sha256:
            raise ValueError(f"{path}: is another image than the split's; give the set of {self.source}")
        return path


def _digest(path: Path) -> str:
    return sha256_of_file(path)[:16]


_SCENES = ("buildings", "forest", "glacier", "mountain", "sea", "street")
Labelled = tuple[str, str]  # the label and the path of an image


def shuffled_scenes(root: Path) -> list[Labelled]:
    """Return the labelled photos in an order by seed 0."""
    rows = [line.split(",") for line in (root.parent / "train.csv").read_text().split()[1:]]
    random.Random(0).shuffle(rows)
    return [(_SCENES[int(label)], name) for name, label in rows]


def _scenes(root: Path) -> Iterator[tuple[str, list[Labelled]]]:
    """Yield 3,000 held-out photos that no earlier plan here has used, and all others."""
    images = shuffled_scenes(root)  # earlier plans use the first 9,500
    yield HELD_OUT, images[9500:12500]
    yield TRAIN, images[:9500] + images[12500:]


def _clothes(root: Path) -> Iterator[tuple[str, list[Labelled]]]:
    for part, name in ((HELD_OUT, "test"), (TRAIN, "train")):
        paths = sorted((root / name).glob("*/*.jpg"))
        yield part, [(path.parent.name, str(path.relative_to(root))) for path in paths]


def _satellite(root: Path) -> Iterator[tuple[str, list[Labelled]]]:
    paths = sorted(root.glob("*/*.jpg"))
    return _by_class([(path.parent.name[1:], str(path.relative_to(root))) for path in paths], 4)


def _steel(root: Path) -> Iterator[tuple[str, list[Labelled]]]:
    return _by_class([(path.stem.rpartition("_")[0], path.name) for path in root.glob("*.jpg")], 5)


def _by_class(images: Sequence[Labelled], one_of: int) -> Iterator[tuple[str, list[Labelled]]]:
    """Yield one of so many images of each class as held out, and all others."""
    drawn = _drawn(images, one_of)
    yield HELD_OUT, drawn
    yield TRAIN, sorted({*images} - {*drawn})


def _drawn(images: Sequence[Labelled], one_of: int) -> list[Labelled]:
    """Return one of so many images of each class, drawn by seed 0."""
    drawn = list[Labelled]()
    for _, group in groupby(sorted(images), key=lambda image: image[0]):
        of_class = list(group)
        random.Random(0).shuffle(of_class)
        drawn += of_class[: len(of_class) // one_of]
    return drawn


_GITHUB = "https://github.com"
SETS: Mapping[str, Set] = {
    "scenes": Set(
        f"{_GITHUB}/ndb796/Scene-Classification-Dataset", "CC0 1.0, as its page says",
        "train-scene classification/train", _scenes,
    ),
    "clothes": Set(f"{_GITHUB}/alexeygrigorev/clothing-dataset-small", "CC0 1.0", "", _clothes),
    "satellite": Set(f"{_GITHUB}/palewithout/RSSCN7", "not stated; published for research", "", _satellite),
    "steel": Set(
        f"{_GITHUB}/duanhan123/YOLOv3_PyTorch", "not stated; NEU-DET is published for research",
        "NEU-DET/IMAGES", _steel,
    ),
}  # fmt: skip


def split(name: str, folder: Path) -> list[Line]:
    """Return the lines of a set: of each part in the order of labels and paths."""
    root = folder / SETS[name].root
    parts = dict(SETS[name].parts(root))
    searched = {*_drawn(parts[TRAIN], _SEARCHED)}
    parts |= {SEARCH: [*searched], TRAIN: [image for image in parts[TRAIN] if image not in searched]}
    return [
        Line(part, label, path, _digest(root / path))
        for part in (TRAIN, SEARCH, HELD_OUT)
        for label, path in sorted(parts[part])
    ]


def read(name: str) -> list[Line]:
    """Return the lines of a committed list."""
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return [Line(*row) for row in csv.reader(file)][1:]


def perceptual_hash(path: Path) -> np.ndarray:
    """Return bits, bool [64], that similar images share: which low frequencies are above their median."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(pixels)[:8, :8].ravel()
    bits: np.ndarray = low > np.median(low[1:])  # the first one is the brightness
    return bits


def near_duplicates(hashes: Mapping[str, Sequence[np.ndarray]]) -> dict[str, int]:
    """Return how many images of the second part have a near duplicate in the first, for each two parts."""
    bits = {part: np.stack(of_part) for part, of_part in hashes.items()}
    pairs = ((TRAIN, HELD_OUT), (SEARCH, HELD_OUT), (TRAIN, SEARCH))
    return {
        f"{second} in {first}": sum(bool(((bits[first] ^ one).sum(1) <= NEAR).any()) for one in bits[second])
        for first, second in pairs
    }


def twins(lines: Sequence[Line]) -> dict[str, int]:
    """Return how many validation images are also among the others, and of these those with other labels."""
    labels = dict[str, set[str]]()
    for line in lines:
        if line.part != HELD_OUT:
            labels.setdefault(line.sha256, set()).add(line.label)
    found = [line for line in lines if line.part == HELD_OUT and line.sha256 in labels]
    others = [line for line in found if line.label not in labels[line.sha256]]
    return {"same_bytes": len(found), "same_bytes_other_label": len(others)}


def main() -> int:
    """Write the list of a set, and its counts."""
    if len(sys.argv) != 3 or sys.argv[1] not in SETS:
        raise ValueError(f"{' '.join(sys.argv[1:])}: give a set ({', '.join(SETS)}) and its folder")
    name, folder = sys.argv[1], Path(sys.argv[2])
    lines = split(name, folder)
    rows = [Line._fields, *lines]
    write_atomically(FOLDER / f"{name}.csv", "".join(",".join(row) + "\n" for row in rows).encode())
    hashes: dict[str, list[np.ndarray]] = {part: [] for part in (TRAIN, SEARCH, HELD_OUT)}
    for line in lines:
        hashes[line.part].append(perceptual_hash(folder / SETS[name].root / line.path))
    path = FOLDER / "splits.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    record[name] = {
        "source": SETS[name].source, "license": SETS[name].license,
        "images": {part: len(of_part) for part, of_part in hashes.items()},
        "classes": len({line.label for line in lines}),
        "near_duplicates": near_duplicates(hashes), **twins(lines),
    }  # fmt: skip
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    print(f"{name}: {record[name]}")
    return 0


if __name__ == "__main__":
    run_program(main)
