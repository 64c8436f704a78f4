"""Batches from a decoder that takes whole batches, in order, some ahead of the one that it gives back (dali, resident)."""

import threading
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, cast

import torch
from torch import Tensor

from fastpsl.pipelines.decoders import BatchDecoder
from fastpsl.pipelines.loader.pending_batch import Job, on_copy_stream
from fastpsl.pipelines.loader.workers import Workers

# A batch that is being read is waited for so long before an older one is collected. Collecting waits for the decoder, which would then have
# one batch fewer to overlap: reading 256 JPEGs from memory takes 2 ms, decoding them 8 ms. Storage that is slower than this bound
# delays a batch by no more than the bound.
_READ_WAIT_S = 0.005


class _Encoded:
    """A job, and its samples as the decoder wants to be given them; `ready` when all of them are there."""

    def __init__(self, job: Job) -> None:
        self.job, self.ready = job, threading.Event()
        self.samples: Any = None

    def begin(self) -> None:
        self.samples = self._decoder.begin(self.job.rows)

    def encode(self, part: slice) -> None:
        self._decoder.encode(self.job.rows, self.samples, part)

    @property
    def _decoder(self) -> BatchDecoder:
        return cast(BatchDecoder, self.job.loader.decoder)


class ByBatches:
    """Threads read, a further one drives the decoder: it alone submits and collects, in the order of `start`."""

    def __init__(self, decoder: BatchDecoder, num_threads: int) -> None:
        self._workers = Workers(num_threads, "fastpsl-loader")
        self._driver = Workers(1, "fastpsl-loader-driver")
        self._queue: SimpleQueue[_Encoded | None] = SimpleQueue()
        # The driver holds the queue and the decoder, never this object: dropping it ends the driver.
        self._end = weakref.finalize(self, self._queue.put, None)
        self._driver.submit(_drive, self._queue, decoder)

    def start(self, job: Job) -> None:
        encoded = _Encoded(job)
        self._queue.put(encoded)
        self._workers.submit(self._prepare, encoded)

    def _prepare(self, encoded: _Encoded) -> None:
        job = encoded.job
        job.guard(job.plan)
        job.guard(encoded.begin)
        job.in_chunks(self._workers, encoded.encode, encoded.ready.set)

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def close(self, limit_s: float) -> None:
        self._end()
        self._workers.close(limit_s)
        self._driver.close(limit_s)


def _drive(queue: "SimpleQueue[_Encoded | None]", decoder: BatchDecoder) -> None:
    submitted: deque[Job] = deque()
    upcoming: deque[_Encoded] = deque(maxlen=1)
    is_open = True
    while is_open or submitted:
        if is_open and not upcoming:
            try:
                encoded = queue.get(block=not submitted)
                if encoded is None:
                    is_open = False
                else:
                    upcoming.append(encoded)
                del encoded  # an idle driver keeps no batch alive
            except Empty:
                pass
        has_room = bool(upcoming) and len(submitted) < decoder.depth
        # A read that hangs is the consumer's timeout; this thread holds up nothing.
        if has_room and upcoming[0].ready.wait(_READ_WAIT_S if submitted else None):
            _submit(upcoming.pop(), decoder, submitted)
        elif submitted:
            _collect(submitted.popleft(), decoder)
    decoder.close()


def _submit(encoded: _Encoded, decoder: BatchDecoder, submitted: deque[Job]) -> None:
    job = encoded.job
    if job.num_valid and not job.is_over:
        sizes_px = [view.crop.size_px for view in job.loader.views]
        try:
            with on_copy_stream(job.loader):
                decoder.submit(job.rows, encoded.samples, job.boxes, sizes_px)
        except BaseException as error:  # noqa: BLE001 - the consumer's to handle
            job.fail(error)
        else:  # also where the consumer has left meanwhile: the batch stands in the decoder's queue
            submitted.append(job)
            return
    _finish(job, [])


def _collect(job: Job, decoder: BatchDecoder) -> None:
    pictures: list[Tensor] = []
    try:
        with on_copy_stream(job.loader):
            job.codes[:], pictures = decoder.collect()
    except BaseException as error:  # noqa: BLE001 - the consumer's to handle
        job.fail(error)
    _finish(job, pictures)


def _finish(job: Job, pictures: list[Tensor]) -> None:
    padded: list[Tensor] = []
    job.guard(lambda: padded.extend(_padded(pictures, job)))
    job.finish(padded)


def _padded(pictures: list[Tensor], job: Job) -> list[Tensor]:
    """With zeros for the padding at the batch's end."""
    num_missing = len(job.indices) - job.num_valid
    if not num_missing:
        return pictures
    padded = []
    with on_copy_stream(job.loader):
        for number, view in enumerate(job.loader.views):
            size = view.crop.size_px
            zeros = torch.zeros((num_missing, size, size, 3), dtype=torch.uint8, device=job.loader.device)
            padded.append(torch.cat([pictures[number], zeros]) if pictures else zeros)
    return padded
