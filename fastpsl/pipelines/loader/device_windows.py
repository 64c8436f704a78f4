"""A batch's windows on their way to the device that crops them."""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.device_crops import crop_ragged, fused_form
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder, is_isotropic
from fastpsl.pipelines.decoders.memory import pinned_empty, to_device
from fastpsl.pipelines.decoders.turbo import TurboDecoder, plan_windows
from fastpsl.pipelines.interface.dataset import SampleTable
from fastpsl.pipelines.loader.batch import pack, unpack
from fastpsl.pipelines.views import ViewSpec


def crops_on_device(decoder: Decoder | BatchDecoder, views: Sequence[ViewSpec], device: torch.device) -> bool:
    """Return whether the device crops isotropic views. Without Triton the CPU does, with a warning."""
    if device.type == "cpu" or not isinstance(decoder, TurboDecoder):
        return False
    if not any(hasattr(view.crop, "resampling") for view in views):
        return False
    return fused_form(device, "on the CPU, which may be slower than the GPU's step") is not None


class Room:
    """The bytes of arenas, which grow. Batches of one size find the same memory in torch's pools again."""

    def __init__(self) -> None:
        self.num_bytes, self._lock = 0, threading.Lock()  # several threads begin batches

    def fit(self, num_bytes: int) -> int:
        """Return the bytes of an arena for `num_bytes`: whole words, and a quarter more where it grows."""
        with self._lock:
            if num_bytes > self.num_bytes:
                self.num_bytes = -(-num_bytes * 5 // 16) * 4  # so that few batches grow it (not measured)
            return self.num_bytes


class DeviceWindows:
    """The windows of a batch: an arena that a decoder fills, and the crops that a device makes of it.

    Boxes are int32 [n, 5] for each view. `planned` tells where the windows lie in `arena`, uint8 [N] on the
    host. The kernel reads words of which a few bytes may lie behind the last window, so an arena has whole
    words.
    """

    def __init__(
        self, rows: SampleTable, boxes: list[np.ndarray], sizes_px: list[int], room: Room, is_pinned: bool
    ) -> None:
        self.planned = plan_windows(rows, boxes, sizes_px)
        num_bytes = room.fit(self.planned.num_bytes)
        if is_pinned:
            self.arena = pinned_empty(num_bytes)
        else:
            self.arena = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
        self._sizes_px = sizes_px
        self._boxes = {k: box.copy() for k, box in enumerate(boxes) if is_isotropic(box)}
        for box in self._boxes.values():
            box[:, :2] -= self.planned.places[:, :2]
        self._places = np.column_stack([self.planned.offsets, self.planned.places[:, 2:]])

    def has_all(self, k: int) -> bool:
        """Return whether the device makes all images of view k."""
        return k in self._boxes and bool(self._places[:, 1].all())

    def crop(self, images: list[Tensor], num: int, device: torch.device) -> list[Tensor]:
        """Return the images of all views, of which the device crops the isotropic ones.

        Given and returned are uint8 [num, S, S, 3] for each view; a given one is empty if the device makes
        all of it. Images of padding are zero. On CUDA all work is queued on the current stream.
        """
        by_cpu = np.flatnonzero(self._places[:, 1] == 0)
        if len(by_cpu) == len(self._places):
            return images
        small = [torch.from_numpy(values) for values in (self._places, by_cpu, *self._boxes.values())]
        buffer, starts = pack(small, pin_memory=device.type == "cuda")
        places, rows, *boxes = unpack(to_device(buffer, device), starts, small)
        # As large as the arena, so that the device's pool has the same block for every batch.
        pixels = torch.empty(len(self.arena), dtype=torch.uint8, device=device)
        used = self.planned.num_bytes
        pixels[:used].copy_(self.arena[:used], non_blocking=True)
        images, widest_px = list(images), int(self._places[:, 2].max())
        for k, box in zip(self._boxes, boxes, strict=True):
            crops = crop_ragged(pixels, places, box, self._sizes_px[k], widest_px)
            if len(by_cpu):
                crops.index_copy_(0, rows, to_device(images[k][by_cpu], device))
            padding = crops.new_zeros(num - len(crops), *crops.shape[1:])
            images[k] = torch.cat([crops, padding]) if len(padding) else crops
        return images
