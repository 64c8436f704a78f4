"""The engine of a loader for a `Decoder` (such as turbo, ffcv): chunks of a batch, in threads."""

import math
from functools import partial

import numpy as np
import torch

from fastpsl.files.workers import Workers
from fastpsl.pipelines.decoders.decoder import Decoder, is_isotropic
from fastpsl.pipelines.decoders.memory import Arenas, pinned_empty
from fastpsl.pipelines.decoders.turbo import TurboDecoder
from fastpsl.pipelines.loader.device_windows import DeviceWindows, Room
from fastpsl.pipelines.loader.pending_batch import PendingBatch

_MAX_FREE = 8  # arenas to keep where the consumer has held many batches and dropped them


class ByChunks:
    """An engine with threads that decode a batch in chunks; the last chunk finishes the batch."""

    def __init__(self, decoder: Decoder, num_threads: int, crops_on_device: bool = False) -> None:
        self._decoder, self._num_threads = decoder, num_threads
        self._workers = Workers(num_threads, "fastpsl-loader")
        self._arenas = Arenas(limit=_MAX_FREE)
        self._room = Room() if crops_on_device else None

    def start(self, pending: PendingBatch) -> None:
        self._workers.submit(self._run, pending)

    def _run(self, pending: PendingBatch) -> None:
        pending.guard(pending.plan)
        pending.guard(_begin, pending, self._decoder, self._arenas, self._room)
        pending.decode_in_chunks(self._workers, partial(self._decode, pending), pending.finish)

    def _decode(self, pending: PendingBatch, part: slice) -> None:
        assert pending.request is not None
        self._decoder.decode_part(pending.request, part)
        self._workers.grow(self._decoder.wanted_threads(self._num_threads))

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def close(self, limit_s: float) -> None:
        self._workers.close(limit_s)


def _begin(pending: PendingBatch, decoder: Decoder, arenas: Arenas, room: Room | None = None) -> None:
    """Allocate the batch's images, with zeros for padding, and request them of the decoder.

    With `room`, the device crops isotropic views, and the decoder puts their windows into an arena.
    """
    spec, num = pending.spec, len(pending.indices)
    sizes_px, is_pinned = [view.crop.size_px for view in spec.views], spec.copy_stream is not None
    nums = [num] * len(sizes_px)
    if room is not None and any(map(is_isotropic, pending.boxes)):
        pending.windows = DeviceWindows(pending.rows, pending.boxes, sizes_px, room, is_pinned)
        nums = [0 if pending.windows.has_all(k) else num for k in range(len(sizes_px))]
    shapes = [(num, size_px, size_px, 3) for num, size_px in zip(nums, sizes_px, strict=True)]
    if is_pinned:  # torch's pinned allocator reuses a block after its copies have ended
        pending.images += [pinned_empty(*shape) for shape in shapes]
    else:
        # One arena for all views. It goes back to the pool with the last tensor that refers to it.
        memory = torch.from_numpy(np.asarray(arenas.take(sum(map(math.prod, shapes)))))
        for shape in shapes:
            pending.images.append(memory[: math.prod(shape)].view(shape))
            memory = memory[math.prod(shape) :]
    for images in pending.images:
        images[pending.num_valid :] = 0
    outs = [images.numpy()[: pending.num_valid] for images in pending.images]
    if pending.windows is None:
        pending.request = decoder.begin(pending.rows, pending.boxes, outs)
    else:
        assert isinstance(decoder, TurboDecoder)
        windows, arena = pending.windows.planned, pending.windows.arena.numpy()
        pending.request = decoder.begin(pending.rows, pending.boxes, outs, windows, arena)
    pending.codes = pending.request.codes
