"""The engine of a loader for a `Decoder` (ffcv, torchvision, synthetic): chunks of a batch, in threads."""

from functools import partial

import torch

from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.loader.pending_batch import PendingBatch
from fastpsl.pipelines.loader.workers import Workers


class ByChunks:
    """An engine with threads that decode a batch in chunks; the last chunk finishes the batch."""

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
    """Allocate the batch's images, with zeros for padding."""
    spec, num = pending.spec, len(pending.indices)
    for view in spec.views:
        # No ring of buffers, because torch's pinned allocator reuses a block after its copies have ended.
        shape, is_pinned = (num, view.crop.size_px, view.crop.size_px, 3), spec.copy_stream is not None
        pending.images.append(torch.empty(shape, dtype=torch.uint8, pin_memory=is_pinned))
        pending.images[-1][pending.num_valid :] = 0


def _decode(decoder: Decoder, pending: PendingBatch, part: slice) -> None:
    boxes = [boxes[part] for boxes in pending.boxes]
    outs = [images.numpy()[part] for images in pending.images]
    pending.codes[part] = decoder.decode(pending.rows.part(part), boxes, outs)
