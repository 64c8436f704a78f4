"""Choose the images of the small experiments, and write them as .npz or as lists for `fastpsl data write`.

python -m bench.evidence.data tiny-imagenet FOLDER OUT   FOLDER is tiny-imagenet-200
python -m bench.evidence.data cifar10 FOLDER OUT         FOLDER has train.npz and test.npz (images, labels)
python -m bench.evidence.data digits OUT                 scikit-learn's 1,797 digits of 8 px
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bench.program import run_program

CLASSES_OF_TINY_IMAGENET = 4  # every fourth: 50 of 200
TRAIN, HELD_OUT, SEARCH = "train", "held-out", "search"


def tiny_imagenet(folder: Path, out: Path) -> None:
    """Write three lists of images of 50 classes.

    Train has the first 400 images of a class in the training folder, held-out the other 100, and search, by
    which rates are chosen, the 50 of the validation folder.
    """
    classes = sorted(path.name for path in (folder / "train").iterdir())[::CLASSES_OF_TINY_IMAGENET]
    lists: dict[str, list[str]] = {TRAIN: [], HELD_OUT: [], SEARCH: []}
    for name in classes:
        images = sorted((folder / "train" / name / "images").glob("*.JPEG"), key=_number)
        lists[TRAIN] += [f"{path.resolve()} {name}" for path in images[:400]]
        lists[HELD_OUT] += [f"{path.resolve()} {name}" for path in images[400:]]
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        file, name, *_ = line.split("\t")
        if name in classes:
            lists[SEARCH].append(f"{(folder / 'val' / 'images' / file).resolve()} {name}")
    for part, lines in lists.items():
        (out / f"{part}.txt").write_text("\n".join(lines) + "\n")


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def cifar10(folder: Path, out: Path) -> None:
    """Write the first 1,000 training images of each class, 200 more for the search, and all test images."""
    with np.load(folder / "train.npz") as file:
        images, labels = file["images"], file["labels"]
    of_class = [np.flatnonzero(labels == number) for number in range(10)]
    for part, places in ((TRAIN, slice(0, 1000)), (SEARCH, slice(1000, 1200))):
        chosen = np.sort(np.concatenate([indices[places] for indices in of_class]))
        np.savez(out / f"{part}.npz", images=images[chosen], labels=labels[chosen])
    with np.load(folder / "test.npz") as file:
        np.savez(out / f"{HELD_OUT}.npz", images=file["images"], labels=file["labels"])


def digits(out: Path) -> None:
    """Write 1,000 digits to train on, 300 for the search and 497 held-out ones, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    images, labels = np.repeat(grey[..., None], 3, 3), data.target.astype(np.int64)
    for part, places in ((TRAIN, slice(1000)), (SEARCH, slice(1000, 1300)), (HELD_OUT, slice(1300, None))):
        np.savez(out / f"{part}.npz", images=images[places], labels=labels[places])


SETS: Mapping[str, Callable[..., None]] = {
    "tiny-imagenet": tiny_imagenet, "cifar10": cifar10, "digits": digits,
}  # fmt: skip


def main() -> None:
    """Write the set that the command line names.

    Raises:
        ValueError: The set is unknown, or folders are missing.
    """
    name, *folders = sys.argv[1:] or [""]
    if name not in SETS or len(folders) != (1 if name == "digits" else 2):
        raise ValueError("give tiny-imagenet FOLDER OUT, cifar10 FOLDER OUT or digits OUT")
    paths = [Path(folder) for folder in folders]
    paths[-1].mkdir(parents=True, exist_ok=True)
    SETS[name](*paths)


if __name__ == "__main__":
    run_program(main)
