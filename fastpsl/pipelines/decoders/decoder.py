"""The two interfaces of decoders: `Decoder` for parts of a batch, `BatchDecoder` for whole batches.

A box is int32 (top, left, height, width, resampling). The first four are in source pixels of the upright
image, the last is AREA, ISOTROPIC or DIAGONAL (codes.py). A code is int8, 0 = good. The image of a sample
with another code is undefined.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from fastpsl.files.atomic import Uncopyable
from fastpsl.kernels.isotropic import margin_px
from fastpsl.pipelines.decoders.codes import AREA, check_request
from fastpsl.pipelines.interface.dataset import SampleTable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Request:
    """A batch to be decoded, part by part."""

    rows: SampleTable  # n samples
    boxes: np.ndarray  # for V views int32 [V, n, 5]
    outs: list[np.ndarray]  # for each view uint8 [n, S, S, 3], RGB, written in place
    codes: np.ndarray  # int8 [n], written; READING while a thread reads the sample, where the decoder tells
    native: Any = None  # what a decoder keeps for the batch

    def outside(self, part: slice) -> np.ndarray:
        """Return whether a box of each of the part's m samples leaves its image: bool [m]."""
        heights, widths = self.rows.height[part], self.rows.width[part]
        views = zip(self.boxes, self.outs, strict=True)
        return np.any([cannot(box[part], out.shape[1], heights, widths) for box, out in views], axis=0)


class Decoder(Uncopyable, ABC):
    """A decoder of samples, part by part (turbo, ffcv, pillow, synthetic)."""

    name: str  # the name for messages and logs
    remark: str = ""  # what makes it slower than it could be here, with the remedy, or ""

    def begin(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> Request:
        """Return a request for the decoding of a batch. Any thread may call it.

        Args:
            rows: The samples, n of them.
            boxes: For each view int32 [n, 5].
            outs: For each view uint8 [n, S, S, 3], RGB, written in place.
        """
        check_request(boxes, outs, len(rows.indices))
        return Request(rows, np.stack(boxes), outs, np.zeros(len(rows.indices), np.int8))

    @abstractmethod
    def decode_part(self, request: Request, part: slice) -> None:
        """Decode a slice of a request's samples, with a start and a stop.

        Any number of threads may call it at once, each with a slice of its own.
        """

    def wanted_threads(self, num_threads: int) -> int:
        """Return how many threads decode as fast as `num_threads` that never wait for storage."""
        return num_threads

    def decode(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        """Decode samples at once; the arguments are those of `begin`. Returns codes, int8 [n]."""
        request = self.begin(rows, boxes, outs)
        if len(request.codes):
            self.decode_part(request, slice(0, len(request.codes)))
        return request.codes


class BatchDecoder(Uncopyable, ABC):
    """A decoder of whole batches that returns images on the loader's device (dali, resident)."""

    name: str  # the name for messages and logs
    remark: str = ""  # what makes it slower than it could be here, with the remedy, or ""
    depth: int  # the most batches that may be submitted before the first is collected

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


def is_isotropic(boxes: np.ndarray) -> bool:
    """Return whether a view's boxes, int32 [n, 5], use the isotropic kernel: all of them do, or none."""
    isotropic = boxes[:, 4] != AREA
    assert isotropic.all() or not isotropic.any()
    return bool(isotropic.any())


def cannot(
    boxes: np.ndarray, size_px: int, heights: "np.ndarray | int", widths: "np.ndarray | int"
) -> np.ndarray:
    """Return whether boxes, int32 [n, 5], with their kernel's margin, leave their images: bool [n]."""
    tops, lefts, box_heights, box_widths = boxes[:, :4].astype(np.int64).T
    isotropic = boxes[:, 4] != AREA
    margins = np.where(isotropic, margin_px(box_heights, size_px), 0).astype(np.int64)
    wrong = (box_heights < 1) | (box_widths < 1) | (isotropic & (box_heights != box_widths))
    wrong |= (tops < margins) | (lefts < margins)
    return wrong | (tops + box_heights + margins > heights) | (lefts + box_widths + margins > widths)


def windows(boxes: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the source windows of isotropic boxes, int32 [n, 5], each as large as its box and the margin.

    Returned are their starts (top, left) and shapes, int32 [n, 2] each, and the boxes relative to their
    windows, int32 [n, 5].
    """
    margins = margin_px(boxes[:, 2], size_px).astype(np.int32)[:, None]
    relative = boxes.copy()
    relative[:, :2] = margins
    return boxes[:, :2] - margins, boxes[:, 2:4] + 2 * margins, relative


_NUM_IMAGES = 16  # so that neighbours in a batch differ; more would take more memory


class SyntheticDecoder(Decoder):
    """A decoder that copies one of a few noise images, by the sample's index; it reads and crops nothing."""

    name = "synthetic"

    def __init__(self) -> None:
        self._images: dict[int, np.ndarray] = {}

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        for out in request.outs:
            size = out.shape[1]
            images = self._images.get(size)
            if images is None:  # without a lock, because two threads would draw the same values
                images = np.random.default_rng(size).integers(0, 256, (_NUM_IMAGES, size, size, 3), np.uint8)
                self._images[size] = images
            for i in range(part.start, part.stop):
                out[i] = images[request.rows.indices[i] % _NUM_IMAGES]
