"""What a loader is told, and what a peer is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

SHUFFLE = 1000  # samples in the shuffle buffers of DALI's reader and WebDataset, as in their examples
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels from 0 to 1

Reads = Literal["dataset file", "folder", "tar"]
Views = Sequence[Any]
"""A batch's views, tensors [B, ...]."""


@dataclass(frozen=True)
class Work:
    """A loader and its task, or a training.

    Attributes:
        kind: A key of PEERS, or one of our decoders.
        data: A dataset file, or a glob of shards.
        files: A folder written by `copy_out`, for loaders that need files.
        floats: Whether each crop is flipped at random and normalised to float32, instead of uint8.
        from_folder: Whether ours reads the folder of the files instead of the dataset file.
        hw_decoder_load: The share of DALI's hardware decoder on a GPU, 0 to 1; None for the default.
        recipe: The recipe of ours in training. It has the values for its sample where size_px is below 224.
        stage: Its stage.
        decoder: Its decoder.
        backbone: The network of what trains; None for its own.
    """

    kind: str
    data: str
    files: str
    batch_size: int
    num_threads: int
    size_px: int
    device: str
    floats: bool = False
    from_folder: bool = False
    hw_decoder_load: float | None = None
    recipe: str = ""
    stage: str = ""
    decoder: str = "auto"
    backbone: str | None = None


@dataclass(frozen=True)
class Peer:
    """A loader or a training beside which ours is measured.

    Attributes:
        title: Its name for people.
        batches: Function of the work and the number of views. It returns an endless iterator over the views
            of batches, or of what trains over the numbers of samples.
        packages: What must be installed, by names of imports.
        reads: What it reads. Folders and tars hold files that were copied out of a dataset file.
        why_missing: Function that returns a further reason why it cannot run here, or None.
    """

    title: str
    batches: Callable[[Work, int], Iterator[Any]]
    packages: tuple[str, ...] = ()
    reads: Reads = "dataset file"
    why_missing: Callable[[], str | None] = lambda: None

    @property
    def needs_files(self) -> bool:
        return self.reads != "dataset file"

    def reason(self) -> str | None:
        """Return why it cannot run on this machine, or None if it can."""
        if not all(map(_is_installed, self.packages)):
            return "not installed"
        return self.why_missing()


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
