"""Batches from a decoder that takes any few samples on any thread and writes into memory that it is given."""

from functools import partial

import torch

from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.loader.pending_batch import PendingBatch
from fastpsl.pipelines.loader.workers import Workers


class ByChunks:
    """Threads that decode a batch in chunks; the last of them to end finishes the batch."""

    def __init__(self, decoder: Decoder, num_threads: int) -> None:
        self._decoder = decoder
        self._workers = Workers(num_threads, "fastpsl-loader")

    def start(self, pending: PendingBatch) -> None:
        self._workers.submit(self._run, pending)

    def _run(self, pending: PendingBatch) -> None:
        pending.guard(pending.plan)
        pending.guard(_allocate, pending)
        pending.decode_in_chunks(self._workers, partial(_decode, self._decoder, pending), pending.finish)

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def close(self, limit_s: float) -> None:
        self._workers.close(limit_s)


def _allocate(pending: PendingBatch) -> None:
    """Give the batch its images' memory, with zeros for padding."""
    spec, num = pending.spec, len(pending.indices)
    for view in spec.views:
        # torch's pinned allocator is the ring: it hands a block out again only after the copies from it have ended.
        shape, is_pinned = (num, view.crop.size_px, view.crop.size_px, 3), spec.copy_stream is not None
        pending.images.append(torch.empty(shape, dtype=torch.uint8, pin_memory=is_pinned))
        pending.images[-1][pending.num_valid :] = 0


def _decode(decoder: Decoder, pending: PendingBatch, part: slice) -> None:
    boxes = [boxes[part] for boxes in pending.boxes]
    outs = [images.numpy()[part] for images in pending.images]
    pending.codes[part] = decoder.decode(pending.rows.part(part), boxes, outs)
