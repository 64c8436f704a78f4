"""Small files laid out as CIFAR's and STL-10's published ones; the pickles as Python 2's cPickle writes them."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.sources import editions
from tests.pipelines.tars import tar_bytes


def old_pickle(value: Any) -> bytes:
    """Protocol 2, with Python 2's strings."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: Any) -> bytes:
    if isinstance(value, bytes):
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(key) + _pickled(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.uint8
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(_pickled(side) for side in value.shape) + b"t"
    return made + b"(K\x01" + shape + dtype + b"\x89" + _pickled(value.tobytes()) + b"tb"


def pictures(num: int, size_px: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size_px, size_px, 3), dtype=np.uint8)


def cifar_rows(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def cifar10(images: np.ndarray, labels: np.ndarray, names: list[str], is_python: bool) -> dict[str, bytes]:
    """Five batches and a test batch of equal size."""
    files, ending = {}, "" if is_python else ".bin"
    for i, some in enumerate(np.split(np.arange(len(images)), 6)):
        rows, here = cifar_rows(images[some]), labels[some]
        name = f"data_batch_{i + 1}{ending}" if i < 5 else f"test_batch{ending}"
        if is_python:
            record = {
                b"batch_label": b"a batch",
                b"labels": here.tolist(),
                b"data": rows,
                b"filenames": [b"a.png"] * len(rows),
            }
            files[name] = old_pickle(record)
        else:
            files[name] = np.concatenate([here[:, None].astype(np.uint8), rows], 1).tobytes()
    files["batches.meta" if is_python else "batches.meta.txt"] = (
        old_pickle(
            {
                b"num_cases_per_batch": 10000,
                b"label_names": [name.encode() for name in names],
                b"num_vis": 3072,
            }
        )
        if is_python
        else "\n".join(names).encode() + b"\n\n"
    )
    return files


def cifar100(images: np.ndarray, labels: np.ndarray, names: list[str], is_python: bool) -> dict[str, bytes]:
    """Two thirds train, one third test."""
    files = {}
    for name, some in (
        ("train", slice(0, len(images) * 2 // 3)),
        ("test", slice(len(images) * 2 // 3, None)),
    ):
        rows, here = cifar_rows(images[some]), labels[some]
        if is_python:
            files[name] = old_pickle(
                {b"data": rows, b"coarse_labels": [0] * len(rows), b"fine_labels": here.tolist()}
            )
        else:
            two = np.stack([np.zeros_like(here), here], 1).astype(np.uint8)
            files[name + ".bin"] = np.concatenate([two, rows], 1).tobytes()
    if is_python:
        files["meta"] = old_pickle(
            {b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": [b"all"]}
        )
    else:
        files |= {"fine_label_names.txt": "\n".join(names).encode(), "coarse_label_names.txt": b"all\n"}
    return files


def stl10(images: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, bytes]:
    """A third each: train, test, unlabelled; the planes column by column, labels from 1."""
    columns = np.ascontiguousarray(images.transpose(0, 3, 2, 1))
    third = len(images) // 3
    return {
        "test_X.bin": columns[third : 2 * third].tobytes(),
        "test_y.bin": (labels[third : 2 * third] + 1).astype(np.uint8).tobytes(),
        "train_X.bin": columns[:third].tobytes(),
        "train_y.bin": (labels[:third] + 1).astype(np.uint8).tobytes(),
        "unlabeled_X.bin": columns[2 * third :].tobytes(),
        "class_names.txt": "\n".join(names).encode(),
        "fold_indices.txt": b"0 1",
    }


def publish(
    root: Path, archive: str, folder: str, files: dict[str, bytes], patch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The archive and its folder in `root`; their sums become the published ones."""
    data = tar_bytes({f"{folder}/{name}": files[name] for name in sorted(files, reverse=True)}, "w:gz")
    (root / archive).write_bytes(data)
    (root / folder).mkdir()
    patch.setitem(editions.MD5, archive, hashlib.md5(data).hexdigest())
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
        if f"{folder}/{name}" in editions.MD5:
            patch.setitem(editions.MD5, f"{folder}/{name}", hashlib.md5(content).hexdigest())
    return root / archive, root / folder
