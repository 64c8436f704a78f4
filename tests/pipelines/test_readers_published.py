"""CIFAR-10, CIFAR-100 and STL-10 as published: every layout, checksums and hostile pickles."""

import hashlib
import os
import pickle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from torchvision import datasets
from typing_extensions import override

from fastpsl.files.untrusted import load_plain
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.readers import published
from tests.faults.mutations import mutated
from tests.pipelines import published_files as made
from tests.pipelines.readers import refused, samples

# Archive → format, folder, its files of (images, labels, names), images of 32 or 96 px, and the split sizes.
LAYOUTS: dict[str, tuple[Any, ...]] = {
    "cifar-10-python": ("cifar10", "cifar-10-batches-py", made.cifar10, True, {"train": 25, "test": 5}),
    "cifar-10-binary": ("cifar10", "cifar-10-batches-bin", made.cifar10, False, {"train": 25, "test": 5}),
    "cifar-100-python": ("cifar100", "cifar-100-python", made.cifar100, True, {"train": 20, "test": 10}),
    "cifar-100-binary": ("cifar100", "cifar-100-binary", made.cifar100, False, {"train": 20, "test": 10}),
    "stl10_binary": ("stl10", "stl10_binary", made.stl10, None, {"train": 10, "test": 10, "unlabeled": 10}),
}
OF_TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return format, archive, folder, split → (images, labels), and class names."""
    format, folder, make, is_python, sizes = LAYOUTS[request.param]
    names = [f"class {i}" for i in range(100 if format == "cifar100" else 10)]
    images = made.random_images(30, 96 if format == "stl10" else 32)
    labels = np.random.default_rng(1).integers(0, len(names), 30)
    files = make(images, labels, names, *([] if is_python is None else [is_python]))
    archive, where = made.publish(tmp_path, f"{request.param}.tar.gz", folder, files, monkeypatch)
    monkeypatch.setattr(published, "_BLOCK_BYTES", 60_000)
    starts, splits = np.cumsum([0, *sizes.values()]), dict[str, Any]()
    for (split, num), start in zip(sizes.items(), starts, strict=False):
        of = np.full(num, -1) if split == "unlabeled" else labels[start : start + num]
        splits[split] = images[start : start + num], of
    if "unlabeled" in splits:
        both = splits["train"], splits["unlabeled"]
        splits["train+unlabeled"] = tuple(np.concatenate(part) for part in zip(*both, strict=True))
    return format, archive, where, splits, names


def test_every_split_from_archive_and_folder_in_any_shards_and_as_torchvision(
    layout: Any, monkeypatch: Any
) -> None:
    format, archive, folder, splits, names = layout
    kind = OF_TORCHVISION[format]
    monkeypatch.setattr(kind, "_check_integrity", lambda _: True)
    monkeypatch.setattr(kind, "meta", getattr(kind, "meta", {}) | {"md5": None}, raising=False)
    for split, (images, labels) in splits.items():
        for where, num_shards in ((archive, 1), (folder, 3), (folder.parent, 4)):
            parts = [
                open_source(str(where), format, split=split, shard=(i, num_shards)) for i in range(num_shards)
            ]
            found = [sample for part in parts for sample in part.samples()]
            assert np.array_equal([np.asarray(sample.image) for sample in found], images)
            assert [sample.label for sample in found] == labels.tolist() and found[0].name.endswith("[0]")
            assert parts[0].class_names == names and parts[0].mode == "raw" and not parts[0].notes
        if not list(folder.glob("*.bin")) or format == "stl10":
            choice = {"split": split} if format == "stl10" else {"train": split == "train"}
            theirs = kind(str(folder.parent), **choice)
            data = theirs.data.transpose(0, 2, 3, 1) if format == "stl10" else theirs.data
            own = theirs.labels if format == "stl10" else theirs.targets
            assert (data == images).all() and list(own) == labels.tolist() and theirs.classes == names
    assert open_source(str(archive)).notes == [f"--split train of {', '.join(splits)}"]
    with refused("--split val", "no such split", ", ".join(splits)):
        open_source(str(archive), split="val")


def test_it_becomes_a_dataset_file(layout: Any, tmp_path: Path) -> None:
    _, archive, _, splits, names = layout
    source, out = open_source(str(archive), split="test"), tmp_path / "test.beton"
    target = Target(mode=source.mode)
    write_beton(
        source.samples(), out, num_samples=source.num_samples, class_names=source.class_names, target=target
    )
    with Beton(out) as beton:
        assert beton.class_names == names and beton.read(0) == splits["test"][0][0].tobytes()


def test_any_change_of_a_published_file_is_refused(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    format, archive, folder, splits, _ = layout
    for file in folder.iterdir():
        if f"{folder.name}/{file.name}" in published.MD5:
            data = file.read_bytes()
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            used = [
                split
                for split in splits
                if any(file.name in e.needed(split) for e in published.EDITIONS[format])
            ]
            with refused(file.name, "MD5", "download it again"):
                samples(folder, format=format, split=used[0])
            file.write_bytes(data)
    whole = archive.read_bytes()
    for kept, words in ((whole[:-1], "MD5"), (whole[:-9999], "download it again")):
        archive.write_bytes(kept)
        if words != "MD5":  # the checksum fits, and the archive is damaged
            monkeypatch.setitem(published.MD5, archive.name, hashlib.md5(kept).hexdigest())
        with refused(words):
            samples(archive, format=format)
    archive.unlink()
    next(folder.glob("*train*" if format != "cifar10" else "data_batch_3*")).unlink()
    with refused(f"no {format} there"):
        samples(folder, format=format)


PLAIN = {
    "arrays": [np.arange(12).reshape(3, 4).astype(kind) for kind in ("f4", "f8", "i8", "u1", "u2", "i4")],
    "orders": [np.ones((3, 4), np.float32)[:, ::2], np.asfortranarray(np.eye(3)), np.zeros((0, 4))],
    "one": np.arange(3), "ids": [7, "000005", 0.5], "text": "A: b",
}  # fmt: skip


class Evil:
    @override
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_are_read_and_nothing_else_runs(protocol: int, cwd: Path) -> None:
    """However a pickle is damaged, plain data or a ValueError in one line come of it."""
    loaded = load_plain(pickle.dumps(PLAIN, protocol))
    np.testing.assert_equal(loaded, PLAIN)
    for value in (Evil(), eval, set, os.getcwd, np.array([{}]), np.array(["text"]), np.zeros(3, complex)):
        for record in ({"a": [value]}, {"a": value}, value):
            with refused():
                load_plain(pickle.dumps(record, protocol))
    random = Random(protocol)
    sound = {0: made.old_pickle({b"data": np.zeros((2, 3), np.uint8)})}.get(
        protocol, pickle.dumps(PLAIN, protocol)
    )
    for _ in range(120):
        try:
            assert type(load_plain(mutated(sound, random))) is dict
        except ValueError as error:
            assert "\n" not in str(error)
    assert not list(cwd.iterdir())
