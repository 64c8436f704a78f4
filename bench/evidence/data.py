"""Write the images of an experiment as dataset files.

    psl_jigsaw-small    the source is the folder tiny-imagenet-200, of whose 200 classes it takes 50
    simclr_*-small      the source is -: the embedded sample, and for the search the next 160 of its kind;
                        -fresh has other images of that kind, 480, 160 and 1,600 for validation, and
                        precision-sample and presets-sample have further ones
    distill-scenes, distill-crops, distill-loss, precision-scenes, presets-scenes
                        the source is the repository Scene-Classification-Dataset, of whose 17,034 photos it
                        takes 5,000, 1,500 and 3,000; a file lite0.pth beside it has the teacher's weights
    distill-clothes, distill-longer
                        the source is the repository clothing-dataset-small, with the same file beside it; the
                        search has every eighth photo of its folder train, held-out those of the others
    worth-*             the source is the folder of a set of splits.py, with lite0.pth in it; train has all
                        training images, or as many as the plan's name ends with, and labelled has those that
                        are not in search; of worth-gpu it is a folder with all that `pack` has made
    all others          the source is CIFAR-10 as published, or a folder with its arrays (images, labels):
                        train.npz and test.npz, or all pieces of both by bench/pack_images.py;
                        -cpu takes 10,000, -gpu all but the 2,000 of the search

Each set has three parts: `train`; `search`, by which rates are chosen; and `held-out`, the validation
images, by which all is scored.
"""

import io
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bench.evidence import splits
from bench.evidence.splits import HELD_OUT, SEARCH, TRAIN
from bench.pack_images import joined, pieces
from fastpsl.pipelines.embedded.draw_sample import NUM_TEST, NUM_TRAIN, VERSION, draw_part
from fastpsl.pipelines.readers.published import published

LABELLED = "labelled"


def tiny_imagenet_50(folder: Path, out: Path, num: int = 400) -> None:
    """Write lists of every fourth class: `num` and 100 training images, and 50 of the validation folder."""
    classes = sorted(path.name for path in (folder / "train").iterdir())[::4]
    lists: dict[str, list[str]] = {TRAIN: [], HELD_OUT: [], SEARCH: _validation(folder, classes)}
    for name in classes:
        images = (folder / "train" / name / "images").glob("*.JPEG")
        in_order = sorted(images, key=lambda path: int(path.stem.rpartition("_")[2]))
        lines = [f"{path.resolve()} {name}" for path in in_order]
        lists[TRAIN] += lines[:num]
        lists[HELD_OUT] += lines[400:]
    for part, lines in lists.items():
        (out / f"{part}.txt").write_text("\n".join(lines) + "\n")


def _validation(folder: Path, classes: Sequence[str]) -> list[str]:
    """Return the lines of the validation folder's images of these classes."""
    rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    return [f"{(folder / 'val' / 'images' / row[0]).resolve()} {row[1]}" for row in rows if row[1] in classes]


def _cifar10(folder: Path, out: Path, num: int | None = None) -> None:
    """Write the first `num` training images of each class, the next 200 for search, and all test images.

    None takes 24 of 25 of a class; the search has the other 200 of CIFAR-10's 5,000.
    """
    images, labels = _cifar10_arrays(folder, "train")
    num = num or len(labels) * 24 // 250
    of_class = [np.flatnonzero(labels == number) for number in range(10)]
    for part, places in ((TRAIN, slice(0, num)), (SEARCH, slice(num, num + 200))):
        chosen = np.sort(np.concatenate([indices[places] for indices in of_class]))
        np.savez(out / f"{part}.npz", images=images[chosen], labels=labels[chosen])
    images, labels = _cifar10_arrays(folder, "test")
    np.savez(out / f"{HELD_OUT}.npz", images=images, labels=labels)


def _cifar10_arrays(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all images, uint8 [N, 32, 32, 3], and their labels, int64 [N]."""
    arrays = source / f"{split}.npz"
    if arrays.exists():
        with np.load(arrays) as file:
            return file["images"], file["labels"]
    if [*source.glob(f"{split}-*of*.packed")]:
        return joined(source, split)
    samples = list(published(source, "cifar10", split).samples())
    labels = np.array([sample.label for sample in samples])
    return np.stack([np.asarray(sample.image) for sample in samples]), labels


def drawn(folder: Path, out: Path, first: int = 0, num_held_out: int = NUM_TEST) -> None:
    """Draw images of the embedded sample's kind from `first` on; from 0 on they are the sample's own."""
    for part, num in ((TRAIN, NUM_TRAIN), (HELD_OUT, num_held_out), (SEARCH, NUM_TEST)):
        draw_part(out / f"{part}.beton", out / f"{part}-32.beton", first, num, VERSION)
        first += num


def scenes(folder: Path, out: Path) -> None:
    """Write lists of the labelled photos, which have 150 px, in an order by seed 0."""
    root = folder / splits.SETS["scenes"].root
    lines = [f"{(root / name).resolve()} {label}\n" for label, name in splits.shuffled_scenes(root)]
    _jpegs({TRAIN: lines[:5000], SEARCH: lines[5000:6500], HELD_OUT: lines[6500:9500]}, folder, out)


def clothes(folder: Path, out: Path) -> None:
    """Write lists of the photos, which have 400 px or more, with their folders' names as classes."""
    of_folder = {
        name: [f"{path.resolve()} {path.parent.name}\n" for path in sorted((folder / name).glob("*/*.jpg"))]
        for name in ("train", "validation", "test")
    }
    train, search = list(of_folder["train"]), of_folder["train"][::8]
    del train[::8]
    held_out = of_folder["validation"] + of_folder["test"]
    _jpegs({TRAIN: train, SEARCH: search, HELD_OUT: held_out}, folder, out)


def of_split(
    name: str, folder: Path, out: Path, num: int | None = None, side_px: int = 160, quality: int = 95
) -> None:
    """Write the data of a committed split, whose images must be those; of training images all, or `num`."""
    lists: dict[str, list[str]] = {part: [] for part in (TRAIN, LABELLED, SEARCH, HELD_OUT)}
    for line in splits.read(name):
        image = f"{splits.SETS[name].checked(folder, line)} {line.label}\n"
        lists[LABELLED if line.part == TRAIN else line.part].append(image)
    if num is not None:  # four fifths and a fifth, as of all
        for part, size in ((SEARCH, num // 5), (LABELLED, num - num // 5)):
            lists[part] = sorted(random.Random(0).sample(lists[part], size))
    lists[TRAIN] = lists[LABELLED] + lists[SEARCH]
    _jpegs(lists, folder, out, side_px, quality)


def _jpegs(
    lists: Mapping[str, Sequence[str]], folder: Path, out: Path, side_px: int = 160, quality: int = 95
) -> None:
    """Write dataset files of JPEGs, and a copy of the teacher's weights."""
    for part, lines in lists.items():
        (out / f"{part}.txt").write_text("".join(lines))
    write_betons(out, "--mode", "jpg", "--short-side", str(side_px), "--quality", str(quality))
    shutil.copy(folder / "lite0.pth", out)


def pack(name: str, folder: Path, out: Path, num_pieces: int) -> None:
    """Write a split's dataset files of small JPEGs as pieces of an archive.

    train-labelled and train-search have the training images.
    """
    names = {LABELLED: f"{TRAIN}-{LABELLED}", SEARCH: f"{TRAIN}-{SEARCH}", HELD_OUT: HELD_OUT}
    archive = io.BytesIO()
    with (
        tempfile.TemporaryDirectory() as work,
        tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar,  # the files have holes
    ):
        of_split(name, folder, Path(work), side_px=128, quality=80)
        for part, packed in names.items():
            for ending in (".beton", ".beton.json"):
                tar.add(Path(work) / f"{part}{ending}", f"{packed}{ending}")
        tar.add(folder / "lite0.pth", "lite0.pth")
    data = archive.getvalue()
    size = -(-len(data) // num_pieces)
    out.mkdir(parents=True, exist_ok=True)
    for number in range(num_pieces):
        piece = out / f"{name}-{number + 1}of{num_pieces}.packed"
        piece.write_bytes(data[number * size : (number + 1) * size])


def _unpacked(name: str, folder: Path, out: Path) -> None:
    """Write the dataset files of all pieces that `pack` made."""
    data = b"".join(piece.read_bytes() for piece in pieces(folder, name))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(out, filter="data")


SETS: Mapping[str, Callable[[Path, Path], None]] = {
    **dict.fromkeys(
        ("uic-cpu", "deepcluster-cpu", "iic-cpu", "sslpp-cpu", "psl_rotation-cpu", "psl_simclr-cpu",
         "psl_levels-cpu", "uic_time-cpu", "sslpp_controls-cpu"),
        partial(_cifar10, num=1000),
    ),
    **dict.fromkeys(("uic-gpu", "deepcluster-gpu", "iic-gpu", "sslpp-gpu", "psl-gpu"), _cifar10),
    "psl_jigsaw-small": tiny_imagenet_50, "psl_jigsaw-rates": partial(tiny_imagenet_50, num=200),
    "simclr_sample-small": drawn, "simclr_plans-small": drawn,
    "simclr_fresh-small": partial(drawn, first=100_000, num_held_out=1600),
    "precision-sample": partial(drawn, first=110_000, num_held_out=1600),
    "presets-sample": partial(drawn, first=120_000, num_held_out=1600),
    "distill-scenes": scenes, "distill-crops": scenes, "distill-clothes": clothes,
    "distill-longer": clothes, "distill-loss": scenes, "precision-scenes": scenes,
    "presets-scenes": scenes, **{f"worth-{name}": partial(of_split, name) for name in splits.SETS},
    **{f"worth-continued-{name}": partial(of_split, name) for name in ("scenes", "clothes")},
    **dict.fromkeys(
        ("worth-settings", "worth-settings-ends", "worth-settings-labels", "worth-scenes-longer"),
        partial(of_split, "scenes"),
    ),
    **dict.fromkeys(("worth-settings-clothes", "worth-settings-clothes-ends"), partial(of_split, "clothes")),
    **{f"worth-scenes-{num}": partial(of_split, "scenes", num=num) for num in (500, 2000)},
    "worth-gpu": partial(_unpacked, "scenes"),
}  # fmt: skip


def write(plan: str, source: Path | None, out: Path) -> None:
    """Write the data of a plan into a new folder."""
    if plan not in SETS:
        raise ValueError(f"{plan}: plans with data are {', '.join(SETS)}")
    if source is None:
        raise ValueError(f"{out}: there is none yet; give --source, the images of {plan} (see data.py)")
    partial_folder = out.with_name(f"{out.name}.partial")
    partial_folder.mkdir(parents=True, exist_ok=True)
    SETS[plan](source, partial_folder)
    if not [*partial_folder.glob("*.beton")]:
        write_betons(partial_folder)
    partial_folder.rename(out)


def write_betons(folder: Path, *how: str) -> None:
    """Write a dataset file of each part: by default a raw one, which `--decoder resident` keeps."""
    for part in (TRAIN, LABELLED, SEARCH, HELD_OUT):
        sources = [path for path in (folder / f"{part}.npz", folder / f"{part}.txt") if path.exists()]
        if (folder / f"{part}.beton").exists() or (part == LABELLED and not sources):
            continue
        (source,) = sources
        words: list[str | Path] = ["data", "write", source, folder / f"{part}.beton"]
        words += [*(how or ("--mode", "raw")), "--overwrite"]
        # A list numbers its classes by the names that it has.
        if source.suffix == ".txt" and part != TRAIN:
            words += ["--classes", folder / f"{TRAIN}.beton"]
        subprocess.run([sys.executable, "-c", "from fastpsl.cli import main; main()", *words], check=True)
