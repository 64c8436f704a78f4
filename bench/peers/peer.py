"""What a loader is told, and what a peer is."""

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.interface.dataset import MODE_RAW

SHUFFLE = 1000  # samples in the shuffle buffers of DALI's reader and WebDataset, as in their examples
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels from 0 to 1

# The kinds of ours that read packed coefficients by `turbo`, by the processor's best loops or by others, and
# that read JPEGs by others. A number is that of unpack.c.
PACKED = "coefficients"
LOOPS = {PACKED: -1, "coefficients_avx2": 1, "coefficients_plain": 0, "turbo_avx2": 1, "turbo_plain": 0}
Reads = Literal["dataset file", "folder", "tar"]
Views = Sequence[Any]
"""A batch's views, tensors [B, ...]."""


@dataclass(frozen=True)
class Work:
    """A loader and its task, or a training."""

    kind: str  # a key of PEERS, one of our decoders, or a key of LOOPS
    data: str  # a dataset file, or a glob of shards
    files: str  # a folder written by `copy_out`, for loaders that need files
    batch_size: int
    num_threads: int
    size_px: int
    device: str
    floats: bool = False  # whether each crop is flipped at random and normalised to float32, instead of uint8
    from_folder: bool = False  # whether ours reads the folder of the files instead of the dataset file
    hw_decoder_load: float | None = None  # share of DALI's hardware decoder on a GPU, 0 to 1
    recipe: str = ""  # ours, in training; it has the values for its sample where size_px is below 224
    stage: str = ""
    decoder: str = "auto"
    backbone: str | None = None  # the network of what trains; None for its own
    precision: str = "auto"  # of what trains: fp32, bf16 or fp16; auto is ours
    form: str = ""  # of peers that train: one of bench.peers.simclr.Form


@dataclass(frozen=True)
class Peer:
    """A loader or a training beside which ours is measured."""

    title: str
    # Work and number of views → endlessly the views of batches, or of what trains the numbers of samples.
    batches: Callable[[Work, int], Iterator[Any]]
    packages: tuple[str, ...] = ()  # what must be installed, by names of imports
    reads: Reads = "dataset file"  # folders and tars hold files that were copied out of a dataset file

    def reason(self) -> str | None:
        """Return why it cannot run on this machine, or None if it can."""
        return None if all(map(_is_installed, self.packages)) else "not installed"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


MAX_FILES = 10_000  # images that are copied out
TAR = "images.tar"  # all JPEGs and nothing else


def copied(num_samples: int) -> np.ndarray:
    """Return the indices of the samples that are copied out: all, or MAX_FILES in even steps."""
    return np.unique(np.linspace(0, num_samples - 1, min(num_samples, MAX_FILES)).round().astype(np.int64))


def has_raw(data: Beton) -> bool:
    """Return whether raw images are among the samples that are copied out."""
    return bool((data.rows(copied(data.num_samples)).mode == MODE_RAW).any())


def copy_out(data: str, folder: Path, num_shards: int) -> tuple[int, int]:
    """Write images/LABEL/NUMBER.jpg, shards/*.tar and TAR; return the numbers of JPEGs and of samples."""
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
