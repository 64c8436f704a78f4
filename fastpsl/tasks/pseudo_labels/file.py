"""labels.npz: a pseudo-label of each image, which image that is, and which data set and recipe they come from."""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastpsl.engine.options import RunOptions
from fastpsl.engine.run_data import open_both
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.files.atomic import output_errors, write_atomically
from fastpsl.pipelines.files.bounded import check_zip

NAME = "labels.npz"
FORMAT = 2
_HELD_OUT = {"test", "val", "valid", "validation"}
_AGAIN = "write the labels anew"
_BYTES_PER_LABEL = 16  # label, index and entropy
_MAX_OTHER_BYTES = 1 << 24  # texts, numbers, and a few labels too many, of which a line tells more


@dataclass(frozen=True, eq=False)
class Labels:
    """labels: int32 [N], 0 to num_classes - 1, row i is sample i of the data. made_by: the recipe, in words. num_split: classes that
    would be empty, and were given halves of others. entropy: float32 [N], of the distribution over classes that a label was the
    largest of, in nats; NaN where there was none. split: which part of its source the data is, as that calls it; "" where it
    is not known. configuration: what the labels depend on, plain JSON values: "source" and its settings.
    """

    labels: np.ndarray
    num_classes: int
    made_by: str
    num_split: int
    entropy: np.ndarray
    split: str = ""
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Equal for the same labels, whatever file they are in and however they were made."""
        return hashlib.blake2b(self.labels.astype("<i4").tobytes(), digest_size=16).hexdigest()


def write_labels(
    path: Path,
    labels: np.ndarray,
    num_classes: int,
    data: Dataset,
    made_by: str,
    *,
    num_split: int = 0,
    entropy: np.ndarray | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Path:
    """Write `labels` (integers [N], 0 to num_classes - 1), row i of sample i of `data`; at any moment `path` is absent, old or whole.

    entropy: floats [N], in nats. configuration: JSON values. ValueError where `path` cannot be written.
    """
    assert labels.shape == (data.num_samples,) and 0 <= labels.min() and labels.max() < num_classes
    if entropy is None:
        entropy = np.full(len(labels), np.nan)
    assert entropy.shape == labels.shape
    file = io.BytesIO()
    np.savez(
        file,
        format=FORMAT,
        labels=labels.astype(np.int32),
        indices=np.arange(len(labels)),
        entropy=entropy.astype(np.float32),
        num_classes=num_classes,
        data_digest=data.digest(),
        split=data.split,
        made_by=made_by,
        num_split=num_split,
        configuration=json.dumps(dict(configuration or {}), sort_keys=True),
    )
    with output_errors(path):
        write_atomically(path, file.getbuffer())
    return path


def read_labels(path: Path, data: Dataset) -> Labels:
    """The labels in `path`, which must be `data`'s. ValueError where they are not, where one is out of range, or where `path` is no such file."""
    return _checked(path, _read(path, data.num_samples), data)


@cache
def labels_of(path: Path, options: RunOptions) -> Labels:
    """The labels in `path` to learn from, which must be those of --data. ValueError as in `read_labels`, and where they are the labels of
    the held-out images or of a split that is made for testing.
    """
    data, val = open_both(options)
    try:
        file = _read(path, data.num_samples)
        held_out = val is not None and file.digest == val.digest() != data.digest()
        split = next((split for split in (file.labels.split, data.split) if _is_held_out(split)), None)
        if held_out or split is not None:
            which = "the held-out images" if held_out else f"a split named {split}"
            raise ValueError(
                f"{path} labels {which}: these are the test pictures, of which nothing may be learned; give labels of the training images"
            )
        return _checked(path, file, data)
    finally:
        for each in (data, val):
            if each is not None:
                each.close()


@dataclass(frozen=True, eq=False)
class _File:
    """What a file says, not yet compared with any data. indices: int64 [N], the sample of each row."""

    labels: Labels
    indices: np.ndarray
    digest: str


def _is_held_out(split: str) -> bool:
    """Also of "validation_1" or "train+test"."""
    return not _HELD_OUT.isdisjoint(re.split("[^a-z]+", split.lower()))


def _checked(path: Path, file: _File, data: Dataset) -> Labels:
    """The labels in the data's order. ValueError where they are another data set's, lack a sample, or are out of range."""
    found, indices = file.labels, file.indices
    labels, num_classes = found.labels, found.num_classes
    if not 1 <= num_classes <= len(labels):
        raise ValueError(
            f"{path} is of {num_classes:,} classes for {len(labels):,} images, and 1 to {len(labels):,} can be learned: {_AGAIN}"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}: sample {indices[row]:,} has label {labels[row]}, and there are classes 0 to {num_classes - 1:,}: {_AGAIN}"
        )
    if file.digest != data.digest():
        raise ValueError(
            f"{path} labels {len(labels):,} images of another data set (digest {file.digest[:8]}, the data's is "
            f"{data.digest()[:8]}, of {data.num_samples:,} images): give the data that was learned from"
        )
    outside = (indices < 0) | (indices >= data.num_samples)
    if outside.any():
        raise ValueError(
            f"{path} labels sample {indices[outside.argmax()]:,}, and the data has samples 0 to {data.num_samples - 1:,}: {_AGAIN}"
        )
    counts = np.bincount(indices, minlength=data.num_samples)
    if (counts != 1).any():
        sample = int((counts != 1).argmax())
        raise ValueError(
            f"{path} labels sample {sample:,} {'twice' if counts[sample] else 'not at all'}, and each needs one label: {_AGAIN}"
        )
    order = np.argsort(indices)
    return replace(found, labels=labels[order], entropy=found.entropy[order])


def _read(path: Path, num_samples: int) -> _File:
    if not path.exists():
        raise ValueError(
            f"no labels {path}: a recipe of pseudo-labels writes them at its end, `fastpsl labels` others"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file of labels, such as the {NAME} in a run's folder")
    try:
        # numpy alone believes a damaged header's length.
        check_zip(path, _MAX_OTHER_BYTES + _BYTES_PER_LABEL * num_samples)
        with np.load(path, allow_pickle=False) as arrays:
            version = int(arrays["format"])
            if version == FORMAT:
                labels, indices, entropy = (arrays[n] for n in ("labels", "indices", "entropy"))
                num_classes, num_split = (arrays[n].item() for n in ("num_classes", "num_split"))
                made_by, split, digest = (str(arrays[n].item()) for n in ("made_by", "split", "data_digest"))
                configuration = dict(json.loads(str(arrays["configuration"].item())))
    except Exception as error:  # noqa: BLE001  (zipfile, zlib, numpy, json: each has its own for a damaged file)
        reason = " ".join(str(error).strip("'\"").split())[:120] or type(error).__name__
        raise ValueError(f"{path} is no readable file of labels ({reason}): give a recipe's {NAME}") from None
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}, and this version reads {FORMAT}: {_AGAIN}")
    for name, array, dtype in (
        ("labels", labels, np.int32),
        ("indices", indices, np.int64),
        ("entropy", entropy, np.float32),
    ):
        if array.dtype != dtype or array.ndim != 1 or len(array) != len(labels):
            raise ValueError(
                f"{path} holds {name} of {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} [N]: give a recipe's {NAME}"
            )
    if {type(num_classes), type(num_split)} != {int}:
        raise ValueError(f"{path} holds numbers of classes that are no integers: give a recipe's {NAME}")
    return _File(
        Labels(labels, num_classes, made_by, num_split, entropy, split, configuration), indices, digest
    )
