"""Read and write labels.npz: a pseudo-label of each image, with the data set and the recipe behind them."""

import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastpsl.engine.options import RunOptions
from fastpsl.engine.run import open_both
from fastpsl.files.atomic import write_atomically
from fastpsl.files.digest import blake2b
from fastpsl.files.json_records import Form, parse
from fastpsl.files.system_errors import output_errors, raise_of_the_system
from fastpsl.files.untrusted import open_npz
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.interface.identity import in_digits, not_compared, same_data

NAME = "labels.npz"
SECOND_NAME = "labels_b.npz"  # of IIC's second head, for comparison alone
FORMAT = 2
_VAL = {"test", "val", "valid", "validation"}
_AGAIN = "write the labels anew"
_BYTES_PER_LABEL = 16  # label, index and entropy
_CONFIGURATION = Form("configuration", {})
_MAX_OTHER_BYTES = 1 << 24  # texts, numbers, and surplus labels, for which there is a better error message


@dataclass(frozen=True, eq=False)
class Labels:
    """The pseudo-labels of a data set.

    Attributes:
        labels: int32 [N] in 0 … num_classes - 1. Row i is sample i of the data.
        num_classes: Number of classes.
        made_by: The recipe, in words.
        num_split: Number of classes that would be empty and were given halves of others.
        entropy: float32 [N], in nats: entropy of the distribution over classes whose maximum the label is;
            NaN if there was none.
        split: Name of the data's split in its source; empty if it is not known.
        configuration: "source" and the settings that the labels depend on, as JSON values.
    """

    labels: np.ndarray
    num_classes: int
    made_by: str
    num_split: int
    entropy: np.ndarray
    split: str = ""
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Return a digest of the labels alone, whatever their file and origin."""
        return blake2b(self.labels.astype("<i4").tobytes(), digest_size=16).hexdigest()


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
    """Write labels to a file, which is absent, old or complete at any moment.

    Args:
        path: The file to write, such as labels.npz.
        labels: Integers [N] in 0 … num_classes - 1. Row i is sample i of `data`.
        num_classes: Number of classes.
        data: The data set that is labelled.
        made_by: The recipe, in words.
        num_split: As in `Labels`.
        entropy: As in `Labels`; None for none.
        configuration: As in `Labels`.

    Returns:
        The path.

    Raises:
        ValueError: `path` cannot be written.
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
    """Read the labels of a data set.

    Args:
        path: The file, such as labels.npz of a run.
        data: The data set.

    Returns:
        The labels, in the order of the data.

    Raises:
        ValueError: `path` is no file of labels, they are not the data's, or one is out of range.
    """
    return _checked(path, _read(path, data.num_samples), data)


@cache
def labels_of(path: Path, options: RunOptions) -> Labels:
    """Return the labels in `path` to learn from, which must be those of --data."""
    data, val = open_both(options)
    try:
        file = _read(path, data.num_samples)
        digest, of_val = data.digest(), val.digest() if val is not None else ""
        is_val = same_data(file.digest, of_val) and not same_data(of_val, digest)
        split = next((split for split in (file.labels.split, data.split) if _is_val_split(split)), None)
        if is_val or split is not None:
            which = "the validation images" if is_val else f"a split named {split}"
            raise ValueError(
                f"{path} labels {which}: these are the test images, of which nothing may be learned; "
                "give labels of the training images"
            )
        return _checked(path, file, data)
    finally:
        for each in (data, val):
            if each is not None:
                each.close()


@dataclass(frozen=True, eq=False)
class _File:
    """The contents of a file before any check; `indices` is the sample of each row, int64 [N]."""

    labels: Labels
    indices: np.ndarray
    digest: str


def _is_val_split(split: str) -> bool:
    """Return whether a split's name has a word for test data, as "validation_1" and "train+test" have."""
    return not _VAL.isdisjoint(re.split("[^a-z]+", split.lower()))


def _checked(path: Path, file: _File, data: Dataset) -> Labels:
    """Return the labels in the data's order, or raise ValueError as `read_labels` does."""
    stored, indices = file.labels, file.indices
    labels, num_classes = stored.labels, stored.num_classes
    if not 1 <= num_classes <= len(labels):
        raise ValueError(
            f"{path} is of {num_classes:,} classes for {len(labels):,} images, "
            f"and 1 to {len(labels):,} can be learned: {_AGAIN}"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}: sample {indices[row]:,} has label {labels[row]}, "
            f"and there are classes 0 to {num_classes - 1:,}: {_AGAIN}"
        )
    digest = data.digest()
    if not same_data(file.digest, digest):
        raise ValueError(
            f"{path} labels {len(labels):,} images of another data set (digest {in_digits(file.digest)}, "
            f"the data's is {in_digits(digest)}, of {data.num_samples:,} images): "
            "give the data that was learned from"
        )
    for line in not_compared(str(path), file.digest, digest):
        warnings.warn(line, stacklevel=2)
    outside = (indices < 0) | (indices >= data.num_samples)
    if outside.any():
        raise ValueError(
            f"{path} labels sample {indices[outside.argmax()]:,}, "
            f"and the data has samples 0 to {data.num_samples - 1:,}: {_AGAIN}"
        )
    counts = np.bincount(indices, minlength=data.num_samples)
    if (counts != 1).any():
        sample = int((counts != 1).argmax())
        raise ValueError(
            f"{path} labels sample {sample:,} {'twice' if counts[sample] else 'not at all'}, "
            f"and each needs one label: {_AGAIN}"
        )
    order = np.argsort(indices)
    return replace(stored, labels=labels[order], entropy=stored.entropy[order])


def _read(path: Path, num_samples: int) -> _File:
    if not path.exists():
        raise ValueError(
            f"no labels {path}: there is no such file; a recipe of pseudo-labels writes it at its end, "
            "`fastpsl labels` writes others"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file of labels, such as the {NAME} in a run's folder")
    try:
        # numpy would allocate whatever length a damaged header states.
        with open_npz(path, _MAX_OTHER_BYTES + _BYTES_PER_LABEL * num_samples) as arrays:
            version = int(arrays["format"])
            if version == FORMAT:
                labels, indices, entropy = (arrays[n] for n in ("labels", "indices", "entropy"))
                num_classes, num_split = (arrays[n].item() for n in ("num_classes", "num_split"))
                made_by, split, digest = (str(arrays[n].item()) for n in ("made_by", "split", "data_digest"))
                text = str(arrays["configuration"].item())
                configuration = _CONFIGURATION.checked(path, parse(path, text.encode()))
    except ValueError as error:
        raise_of_the_system(path, error)
        raise ValueError(f"{path} is no readable file of labels ({error}): give a recipe's {NAME}") from None
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}, and this version reads {FORMAT}: {_AGAIN}")
    for name, array, dtype in (
        ("labels", labels, np.int32),
        ("indices", indices, np.int64),
        ("entropy", entropy, np.float32),
    ):
        if array.dtype != dtype or array.ndim != 1 or len(array) != len(labels):
            raise ValueError(
                f"{path} holds {name} of {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} [N]: "
                f"give a recipe's {NAME}"
            )
    if {type(num_classes), type(num_split)} != {int}:
        raise ValueError(f"{path} holds numbers of classes that are no integers: give a recipe's {NAME}")
    stored = Labels(labels, num_classes, made_by, num_split, entropy, split, configuration)
    return _File(stored, indices, digest)
