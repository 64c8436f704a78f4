"""The engine of a loader for a `Decoder` (such as turbo, ffcv): chunks of a batch, in threads."""

import math
from functools import partial

import numpy as np
import torch

from fastpsl.pipelines.decoders.arenas import Arenas
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.loader.pending_batch import PendingBatch
from fastpsl.pipelines.workers import Workers

_MAX_FREE = 8  # arenas to keep where the consumer has held many batches and dropped them


class ByChunks:
    """An engine with threads that decode a batch in chunks; the last chunk finishes the batch."""

    def __init__(self, decoder: Decoder, num_threads: int) -> None:
        self._decoder, self._num_threads = decoder, num_threads
        self._workers = Workers(num_threads, "fastpsl-loader")
        self._arenas = Arenas(limit=_MAX_FREE)

    def start(self, pending: PendingBatch) -> None:
        self._workers.submit(self._run, pending)

    def _run(self, pending: PendingBatch) -> None:
        pending.guard(pending.plan)
        pending.guard(_begin, pending, self._decoder, self._arenas)
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


def _begin(pending: PendingBatch, decoder: Decoder, arenas: Arenas) -> None:
    """Allocate the batch's images, with zeros for padding, and request them of the decoder."""
    spec, num = pending.spec, len(pending.indices)
    shapes = [(num, view.crop.size_px, view.crop.size_px, 3) for view in spec.views]
    if spec.copy_stream is None:
        # One arena for all views. It goes back to the pool with the last tensor that refers to it.
        memory = torch.from_numpy(np.asarray(arenas.take(sum(map(math.prod, shapes)))))
        for shape in shapes:
            pending.images.append(memory[: math.prod(shape)].view(shape))
            memory = memory[math.prod(shape) :]
    else:  # torch's pinned allocator reuses a block after its copies have ended
        pending.images += [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for shape in shapes]
    for images in pending.images:
        images[pending.num_valid :] = 0
    outs = [images.numpy()[: pending.num_valid] for images in pending.images]
    pending.request = decoder.begin(pending.rows, pending.boxes, outs)
    pending.codes = pending.request.codes
