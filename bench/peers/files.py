"""JPEGs copied out of a dataset file, for peers that cannot read one."""

import io
import tarfile
from pathlib import Path

import numpy as np

from fastpsl.pipelines.beton.reader import Beton

MAX_FILES = 10_000  # images that are copied out
TAR = "images.tar"  # all JPEGs and nothing else


def copied(num_samples: int) -> np.ndarray:
    """Return the indices of the samples that are copied out: all, or MAX_FILES in even steps."""
    return np.unique(np.linspace(0, num_samples - 1, min(num_samples, MAX_FILES)).round().astype(np.int64))


def has_raw(data: Beton) -> bool:
    """Return whether raw images are among the samples that are copied out."""
    return bool(data.rows(copied(data.num_samples)).mode.any())


def copy_out(data: str, folder: Path, num_shards: int) -> tuple[int, int]:
    """Write the JPEGs of a dataset file as images/LABEL/NUMBER.jpg, into shards/*.tar and into TAR.

    Returns:
        The number of JPEGs written, and the number of samples.
    """
    (folder / "shards").mkdir(parents=True)
    shards = [tarfile.open(folder / "shards" / f"{i:04}.tar", "w") for i in range(num_shards)]  # noqa: SIM115
    with Beton(data) as opened, tarfile.open(folder / TAR, "w") as tar:
        num_samples = opened.num_samples
        indices = copied(num_samples)
        labels = opened.rows(indices).label
        for place, (index, label) in enumerate(zip(indices.tolist(), labels.tolist(), strict=True)):
            jpeg = opened.read(index)
            path = folder / "images" / f"{label:06}" / f"{index:09}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
            for suffix, data_bytes in (("jpg", jpeg), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{index:09}.{suffix}")
                member.size = len(data_bytes)
                shards[place % num_shards].addfile(member, io.BytesIO(data_bytes))
                if suffix == "jpg":
                    tar.addfile(member, io.BytesIO(jpeg))
    for shard in shards:
        shard.close()
    return len(indices), num_samples
