"""The two kinds of decoder: by chunks, into memory that they are given, and by whole batches, into memory of their own.

A box is int32 (top, left, height, width, resampling): source pixels of the upright image, and AREA, ISOTROPIC or DIAGONAL
(codes.py). A code is int8, 0 = good; the image of a sample with another code is undefined.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpsl.pipelines.data.dataset import SampleTable

if TYPE_CHECKING:  # writing a beton comes by here, and needs no torch: half a GB, and seconds
    from torch import Tensor


class Decoder(ABC):
    """A decoder of any few samples (ffcv, torchvision, synthetic). name: for messages and logs. reasons: code → text."""

    name: str
    reasons: dict[int, str]

    @abstractmethod
    def decode(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        """Decode n samples, on any number of threads at once.

        Args:
            rows: The samples, n of them.
            boxes: For each view int32 [n, 5].
            outs: For each view uint8 [n, S, S, 3], RGB, written in place.

        Returns:
            Codes, int8 [n].
        """


class BatchDecoder(ABC):
    """A decoder of whole batches, whose images come on the loader's device (dali, resident).

    name, reasons: as a `Decoder` has them. depth: how many batches may be submitted before the first is collected.
    """

    name: str
    reasons: dict[int, str]
    depth: int

    @abstractmethod
    def begin(self, rows: SampleTable) -> Any:
        """Return room for what `submit` needs of samples that can be had before. Any thread may call it."""

    @abstractmethod
    def encode(self, rows: SampleTable, encoded: Any, part: slice) -> None:
        """Fill in a slice of what `begin` returned. Any number of threads may call it, a slice of the batch each."""

    @abstractmethod
    def submit(self, rows: SampleTable, encoded: Any, boxes: list[np.ndarray], sizes_px: list[int]) -> None:
        """Begin one batch. One thread alone submits and collects.

        Args:
            rows: The samples, n of them.
            encoded: What `begin` returned, filled in.
            boxes: For each view int32 [n, 5].
            sizes_px: For each view the side S of its images.
        """

    @abstractmethod
    def collect(self) -> "tuple[np.ndarray, list[Tensor]]":
        """Return codes, int8 [n], and for each view uint8 [n, S, S, 3] of the oldest batch submitted.

        Batches come in order, and each that was submitted is collected, also after an error.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back device memory and threads."""
