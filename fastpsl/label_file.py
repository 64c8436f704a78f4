"""labels.npz: a pseudo-label of each image, how many classes there are, and which data set it is of."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastpsl.checkpoint import write_atomically
from fastpsl.pipelines.beton_file import output_errors
from fastpsl.pipelines.rows import Data

NAME = "labels.npz"
FORMAT = 1


@dataclass(frozen=True)
class Labels:
    """labels: int32 [N], 0 to num_classes - 1, row i is sample i of the data. made_by: the recipe, in words. num_split: classes that
    would be empty, and were given halves of others.
    """

    labels: np.ndarray
    num_classes: int
    made_by: str
    num_split: int = 0


def write_labels(
    path: Path, labels: np.ndarray, num_classes: int, data_digest: str, made_by: str, num_split: int = 0
) -> Path:
    """Write `labels` (integers [N], 0 to num_classes - 1), of the data with digest `data_digest`; at any moment `path` is absent, old or whole.

    ValueError where it cannot be written.
    """
    assert labels.ndim == 1 and len(labels) and 0 <= labels.min() and labels.max() < num_classes
    file = io.BytesIO()
    np.savez(
        file,
        format=FORMAT,
        labels=labels.astype(np.int32),
        num_classes=num_classes,
        data_digest=data_digest,
        made_by=made_by,
        num_split=num_split,
    )
    with output_errors(path):
        write_atomically(path, file.getbuffer())
    return path


def read_labels(path: Path, data: Data) -> Labels:
    """The labels in `path`, which must be `data`'s. ValueError where they are not, where one is out of range, or where `path` is no such file."""
    found, digest = _read(path)
    labels, num_classes = found.labels, found.num_classes
    if not 1 <= num_classes <= len(labels):
        raise ValueError(
            f"{path} is of {num_classes:,} classes for {len(labels):,} images, and none may be empty: write the labels anew"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        sample = int(wrong.argmax())
        raise ValueError(
            f"{path}: sample {sample:,} has label {labels[sample]}, and there are classes 0 to {num_classes - 1:,}: write the labels anew"
        )
    if len(labels) != data.num_samples:
        raise ValueError(
            f"{path} labels {len(labels):,} images, and the data has {data.num_samples:,}: give the data that was learned from"
        )
    if digest != data.digest():
        raise ValueError(
            f"{path} labels the images of another data set (digest {digest[:8]}, the data's is {data.digest()[:8]}): "
            "give the data that was learned from"
        )
    return found


def _read(path: Path) -> tuple[Labels, str]:
    """What the file says, and its data's digest."""
    if not path.exists():
        raise ValueError(f"no labels {path}: a recipe of pseudo-labels writes them at its end")
    try:
        with zipfile.ZipFile(path) as archive:  # numpy alone believes a damaged header's length
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} fails its checksum")
        with np.load(path, allow_pickle=False) as arrays:
            version, labels = int(arrays["format"]), arrays["labels"]
            num_classes, digest, made_by, num_split = (
                arrays[n].item() for n in ("num_classes", "data_digest", "made_by", "num_split")
            )
    except Exception as error:  # noqa: BLE001  (zipfile, zlib, numpy: each has its own for a damaged file)
        reason = " ".join(str(error).strip("'\"").split())[:120] or type(error).__name__
        raise ValueError(f"{path} is no readable file of labels ({reason}): give a recipe's {NAME}") from None
    if version != FORMAT:
        raise ValueError(
            f"{path} is of format {version}, and this version reads {FORMAT}: write the labels anew"
        )
    if labels.dtype != np.int32 or labels.ndim != 1 or not isinstance(num_classes, int):
        raise ValueError(
            f"{path} holds labels of {labels.dtype} {list(labels.shape)}, not int32 [N]: give a recipe's {NAME}"
        )
    return Labels(labels, num_classes, str(made_by), int(num_split)), str(digest)
