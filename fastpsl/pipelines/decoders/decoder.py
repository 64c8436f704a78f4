"""The two interfaces of decoders: `Decoder` for chunks of a batch, `BatchDecoder` for whole batches.

A box is int32 (top, left, height, width, resampling). The first four are in source pixels of the upright
image, the last is AREA, ISOTROPIC or DIAGONAL (codes.py). A code is int8, 0 = good. The image of a sample
with another code is undefined.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpsl.pipelines.data.dataset import SampleTable

if TYPE_CHECKING:  # writing a beton imports this file but not torch, which takes seconds and half a GB
    from torch import Tensor


class Decoder(ABC):
    """A decoder of any number of samples (ffcv, torchvision, synthetic).

    Attributes:
        name: The name for messages and logs.
        reasons: The text for each code.
    """

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
    """A decoder of whole batches that returns images on the loader's device (dali, resident).

    Attributes:
        name: The name for messages and logs.
        reasons: The text for each code.
        depth: The most batches that may be submitted before the first is collected.
    """

    name: str
    reasons: dict[int, str]
    depth: int

    @abstractmethod
    def begin(self, rows: SampleTable) -> Any:
        """Return an empty container for the input of `submit`. Any thread may call it."""

    @abstractmethod
    def encode(self, rows: SampleTable, encoded: Any, part: slice) -> None:
        """Fill in a slice of the container that `begin` returned.

        Any number of threads may call it at once, each with a slice of its own.
        """

    @abstractmethod
    def submit(self, rows: SampleTable, encoded: Any, boxes: list[np.ndarray], sizes_px: list[int]) -> None:
        """Begin one batch. Only one thread submits and collects.

        Args:
            rows: The samples, n of them.
            encoded: The container that `begin` returned, filled in.
            boxes: For each view int32 [n, 5].
            sizes_px: For each view the side S of its images.
        """

    @abstractmethod
    def collect(self) -> "tuple[np.ndarray, list[Tensor]]":
        """Return the codes, int8 [n], and for each view uint8 [n, S, S, 3] of the oldest batch.

        Every submitted batch must be collected, also after an error.
        """

    @abstractmethod
    def close(self) -> None:
        """Free device memory and end threads."""
