"""A decoder that keeps all raw images of a dataset file on the device, and makes batches there."""

import os
from collections import deque
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.kernels.device_crops import area_form, crop_area, crop_isotropic
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.decoder import BatchDecoder, cannot, is_isotropic
from fastpsl.pipelines.decoders.memory import to_device
from fastpsl.pipelines.interface.dataset import Dataset, SampleTable

if TYPE_CHECKING:
    from fastpsl.pipelines.beton.reader import Beton

# Up to this size `auto` keeps a set resident: CIFAR (154 MB) and STL-10's labelled part (138 MB), not all of
# STL-10 (2.9 GB).
SMALL_BYTES = 1 << 30
_CHUNK = 4096  # samples read at a time: 13 MB of the host's memory for CIFAR (not measured)


def num_bytes(data: Dataset) -> int:
    """Return the size of a dataset file's images on the device."""
    _, _, height, width = data.image_sizes()
    return data.num_samples * height * width * 3


def is_small(data: Dataset) -> bool:
    """Return whether a dataset file has raw images of one size, small enough for any device."""
    beton = cast("Beton", data)
    return not _why_not(beton) and num_bytes(beton) <= SMALL_BYTES


def _why_not(data: "Beton") -> str:
    low_height, low_width, height, width = data.image_sizes()
    if not data.is_raw:
        return "some images are JPEGs or their coefficients"
    if (low_height, low_width) != (height, width):
        return f"the images have sizes from {low_height} x {low_width} to {height} x {width} px"
    return ""


def free_bytes(device: torch.device) -> int:
    """Return the memory that is available on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        table = dict(line.split(":", 1) for line in file)
    return int(table["MemAvailable"].split()[0]) * 1024


class ResidentDecoder(BatchDecoder):
    """A decoder with all images of a dataset file on the device.

    Attributes:
        table: The rows of all samples, so that a batch's are not looked up in the file.
    """

    name = "resident"
    depth = 1  # `submit` does no work that could overlap

    def __init__(self, data: Dataset, device: torch.device) -> None:
        beton = cast("Beton", data)
        why_not = _why_not(beton)
        if why_not:
            remedy = ", or write images of one size with `fastpsl data write --mode raw`"
            raise ValueError(
                f"decoder 'resident' keeps raw images of one size, and of {beton.paths[0]} {why_not}; "
                f"use turbo{'' if beton.is_packed else ' or dali'}{'' if beton.is_raw else remedy}"
            )
        needed, free = num_bytes(beton), free_bytes(device)
        if needed > free:
            raise ValueError(
                f"decoder 'resident': {beton.paths[0]} is {needed / 1e9:.2f} GB, and {device} has "
                f"{free / 1e9:.2f} GB free; use turbo or dali, which read as they go"
            )
        self._device = device
        self._images, self.table = _load(beton, device)
        self._waiting: deque[tuple[np.ndarray, list[np.ndarray], list[int]]] = deque()

    @override
    def begin(self, rows: SampleTable) -> None:
        pass

    @override
    def encode(self, rows: SampleTable, encoded: None, part: slice) -> None:
        """Do nothing, because the images are on the device."""

    @override
    def submit(self, rows: SampleTable, encoded: None, boxes: list[np.ndarray], sizes_px: list[int]) -> None:
        self._waiting.append((rows.indices, boxes, sizes_px))

    @override
    def collect(self) -> tuple[np.ndarray, list[Tensor]]:
        indices, boxes, sizes_px = self._waiting.popleft()
        places = self._moved(indices)
        status = np.zeros(len(indices), np.int8)
        images = []
        for box, size_px in zip(boxes, sizes_px, strict=True):
            status[cannot(box, size_px, *self._images.shape[1:3])] = codes.BAD_BOX
        for box, size_px in zip(boxes, sizes_px, strict=True):
            # Any valid box serves for a bad sample, because its image is undefined.
            whole = np.array([0, 0, *self._images.shape[1:3], codes.AREA], np.int32)
            valid = np.where((status == codes.GOOD)[:, None], box, whole)
            if _is_identity(valid, size_px, whole):
                images.append(self._images[places])  # anew, because views share no memory
            elif is_isotropic(box):
                images.append(crop_isotropic(self._images[places], self._moved(valid), size_px))
            elif kernel := area_form(self._device):
                images.append(kernel.crop(self._images, places, self._moved(valid), size_px))
            else:
                images.append(crop_area(self._images[places], self._moved(valid), size_px))
        return status, images

    def _moved(self, values: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(values)), self._device)

    @override
    def close(self) -> None:
        self._images = self._images[:0].clone()


def _is_identity(boxes: np.ndarray, size_px: int, whole: np.ndarray) -> bool:
    """Return whether `crop_area` would return every image unchanged, without a sync with the device.

    A loader's batch of 128 images of 32 px took 0.8 ms of CPU time this way, and 7 by `crop_area` (AMD EPYC,
    median of three).
    """
    return bool((whole[2:4] == size_px).all() and (boxes == whole).all())


def _load(data: "Beton", device: torch.device) -> tuple[Tensor, SampleTable]:
    """Read all images, uint8 [N, H, W, 3], to the device, and their rows.

    Raises:
        ValueError: The file has been cut short.
    """
    _, _, height, width = data.image_sizes()
    tables = [data.rows(np.arange(0))]
    images = torch.empty((data.num_samples, height, width, 3), dtype=torch.uint8, device=device)
    with operation(f"{data.paths[0]}: reading all of it into memory", "images", data.num_samples) as progress:
        for start in progress.track(range(0, data.num_samples, _CHUNK), _CHUNK):
            part = images[start : start + _CHUNK]
            host = part if device.type == "cpu" else torch.empty(part.shape, dtype=torch.uint8, device="cpu")
            pixels = host.numpy()
            indices = np.arange(start, start + len(part))
            data.wait(indices)
            rows = data.rows(indices)
            tables.append(rows)
            for i, (fd, offset) in enumerate(zip(rows.fd.tolist(), rows.offset.tolist(), strict=True)):
                if os.preadv(fd, [pixels[i].reshape(-1)], offset) != pixels[i].size:
                    raise ValueError(
                        f"{data.name(start + i)}: the file ends before the sample does; copy the file again"
                    )
            if host is not part:
                part.copy_(host)
    if device.type == "cuda":  # because batches are gathered on another stream
        torch.cuda.current_stream(device).synchronize()
    columns = [np.concatenate(parts) for parts in zip(*(table[:-1] for table in tables), strict=True)]
    return images, SampleTable._make([*columns, tables[0].reading])
