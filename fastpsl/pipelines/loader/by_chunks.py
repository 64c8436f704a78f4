"""Batches from a decoder that takes any few samples on any thread and writes into memory that it is given."""

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from fastpsl.pipelines.decoders import Decoder
from fastpsl.pipelines.loader.pending_batch import Job
from fastpsl.pipelines.loader.workers import Workers

if TYPE_CHECKING:
    from fastpsl.pipelines.loader.loader import Loader


class ByChunks:
    """A batch is cut into chunks that threads decode; the last of them to end finishes the batch."""

    def __init__(self, num_threads: int) -> None:
        self._workers = Workers(num_threads, "fastpsl-loader")

    def start(self, job: Job) -> None:
        self._workers.submit(self._prepare, job)

    def _prepare(self, job: Job) -> None:
        job.guard(job.plan)
        pictures: list[Tensor] = []
        job.guard(lambda: pictures.extend(_memory(job.loader, len(job.indices), job.num_valid)))
        job.in_chunks(self._workers, partial(_decode, job, pictures), partial(job.finish, pictures))

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def close(self, limit_s: float) -> None:
        self._workers.close(limit_s)


def _memory(loader: "Loader", num: int, num_valid: int) -> list[Tensor]:
    """A view each, uint8 [num, S, S, 3], with zeros for padding."""
    pictures = []
    for view in loader.views:
        # torch's pinned allocator is the ring: it hands a block out again only after the copies from it have ended.
        shape, is_pinned = (num, view.crop.size_px, view.crop.size_px, 3), loader.copy_stream is not None
        pictures.append(torch.empty(shape, dtype=torch.uint8, pin_memory=is_pinned))
        pictures[-1][num_valid:] = 0
    return pictures


def _decode(job: Job, pictures: list[Tensor], part: slice) -> None:
    decoder = cast(Decoder, job.loader.decoder)
    boxes = [boxes[part] for boxes in job.boxes]
    job.codes[part] = decoder.decode(
        job.rows.part(part), boxes, [images.numpy()[part] for images in pictures]
    )
