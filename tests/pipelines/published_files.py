"""Small files in the published layouts of CIFAR and STL-10, with pickles like those of Python 2's cPickle."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.readers import published
from tests.pipelines.written import tar_bytes


def old_pickle(value: Any) -> bytes:
    """Pickle a value by protocol 2, with Python 2's strings."""
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
    assert isinstance(value, np.ndarray)
    order, kind = value.dtype.str[:1].encode(), value.dtype.str[1:].encode()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R(K\x03U\x01" + order
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(_pickled(side) for side in value.shape) + b"t"
    return array + b"(K\x01" + shape + dtype + b"\x89" + _pickled(value.tobytes()) + b"tb"


def random_images(num: int, size_px: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size_px, size_px, 3), dtype=np.uint8)


def cifar_rows(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def cifar10(images: np.ndarray, labels: np.ndarray, names: list[str], is_python: bool) -> dict[str, bytes]:
    """Return five training batches and a test batch of equal size."""
    files, ending = {}, "" if is_python else ".bin"
    for i, part in enumerate(np.split(np.arange(len(images)), 6)):
        rows, part_labels = cifar_rows(images[part]), labels[part]
        name = f"data_batch_{i + 1}{ending}" if i < 5 else f"test_batch{ending}"
        if is_python:
            record = {b"batch_label": b"a batch", b"filenames": [b"a.png"] * len(rows)}
            files[name] = old_pickle(record | {b"labels": part_labels.tolist(), b"data": rows})
        else:
            files[name] = np.concatenate([part_labels[:, None].astype(np.uint8), rows], 1).tobytes()
    meta = {b"num_cases_per_batch": 10000, b"label_names": list(map(str.encode, names)), b"num_vis": 3072}
    if is_python:
        return files | {"batches.meta": old_pickle(meta)}
    return files | {"batches.meta.txt": "\n".join(names).encode() + b"\n\n"}


def cifar100(images: np.ndarray, labels: np.ndarray, names: list[str], is_python: bool) -> dict[str, bytes]:
    """Return a training file of two thirds and a test file of one third."""
    files, num_train = {}, len(images) * 2 // 3
    for name, part in (("train", slice(0, num_train)), ("test", slice(num_train, None))):
        rows, part_labels = cifar_rows(images[part]), labels[part]
        if is_python:
            files[name] = old_pickle(
                {b"data": rows, b"coarse_labels": [0] * len(rows), b"fine_labels": part_labels.tolist()}
            )
        else:
            two = np.stack([np.zeros_like(part_labels), part_labels], 1).astype(np.uint8)
            files[name + ".bin"] = np.concatenate([two, rows], 1).tobytes()
    if is_python:
        files["meta"] = old_pickle(
            {b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": [b"all"]}
        )
    else:
        files |= {"fine_label_names.txt": "\n".join(names).encode(), "coarse_label_names.txt": b"all\n"}
    return files


def stl10(images: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, bytes]:
    """Return a third each as train, test and unlabelled, with planes column by column and labels from 1."""
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
    """Write an archive and its folder, make their checksums the published ones, and return both paths."""
    data = tar_bytes({f"{folder}/{name}": files[name] for name in sorted(files, reverse=True)}, "w:gz")
    (root / archive).write_bytes(data)
    (root / folder).mkdir()
    patch.setitem(published.MD5, archive, hashlib.md5(data).hexdigest())
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
        if f"{folder}/{name}" in published.MD5:
            patch.setitem(published.MD5, f"{folder}/{name}", hashlib.md5(content).hexdigest())
    return root / archive, root / folder
