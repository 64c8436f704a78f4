"""The engine of a loader for a `BatchDecoder` (dali, resident): whole batches, in order."""

import threading
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any

import torch

from fastpsl.files.workers import Workers
from fastpsl.pipelines.decoders.decoder import BatchDecoder
from fastpsl.pipelines.loader.pending_batch import PendingBatch

# How long to wait for the batch that is being read before collecting an older one. Collecting blocks on the
# decoder, which then has one batch fewer to overlap: reading 256 JPEGs from memory takes 2 ms, decoding them
# 8 ms. Storage that is slower than this bound delays a batch by no more than the bound.
_READ_WAIT_S = 0.005


class _Encoded:
    """A pending batch with its samples in the decoder's input form; `ready` is set once all are filled in."""

    def __init__(self, pending: PendingBatch, decoder: BatchDecoder) -> None:
        self.pending, self._decoder = pending, decoder
        self.ready = threading.Event()
        self.samples: Any = None

    def begin(self) -> None:
        self.samples = self._decoder.begin(self.pending.rows)

    def encode(self, part: slice) -> None:
        self._decoder.encode(self.pending.rows, self.samples, part)


class ByBatches:
    """An engine with threads that read and one more that drives the decoder.

    The driver alone submits and collects, in the order of the calls of `start`.
    """

    def __init__(self, decoder: BatchDecoder, num_threads: int) -> None:
        self._decoder = decoder
        self._workers = Workers(num_threads, "fastpsl-loader")
        self._driver = Workers(1, "fastpsl-loader-driver")
        self._queue: SimpleQueue[_Encoded | None] = SimpleQueue()
        # The driver refers to the queue and the decoder only, so deleting this object ends it.
        self._end = weakref.finalize(self, self._queue.put, None)
        self._driver.submit(_drive, self._queue, decoder)

    def start(self, pending: PendingBatch) -> None:
        encoded = _Encoded(pending, self._decoder)
        self._queue.put(encoded)
        self._workers.submit(self._run, encoded)

    def _run(self, encoded: _Encoded) -> None:
        pending = encoded.pending
        pending.guard(pending.plan)
        pending.guard(encoded.begin)
        pending.decode_in_chunks(self._workers, encoded.encode, encoded.ready.set)

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def close(self, limit_s: float) -> None:
        self._end()
        self._workers.close(limit_s)
        self._driver.close(limit_s)


def _drive(queue: "SimpleQueue[_Encoded | None]", decoder: BatchDecoder) -> None:
    submitted: deque[PendingBatch] = deque()
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
        # The wait is unbounded where nothing is submitted: the consumer's timeout covers a read that hangs.
        if has_room and upcoming[0].ready.wait(_READ_WAIT_S if submitted else None):
            _submit(upcoming.pop(), decoder, submitted)
        elif submitted:
            _collect(submitted.popleft(), decoder)
    decoder.close()


def _submit(encoded: _Encoded, decoder: BatchDecoder, submitted: deque[PendingBatch]) -> None:
    pending = encoded.pending
    if pending.num_valid and not pending.is_over:
        sizes_px = [view.crop.size_px for view in pending.spec.views]
        try:
            with pending.spec.on_copy_stream():
                decoder.submit(pending.rows, encoded.samples, pending.boxes, sizes_px)
        except BaseException as error:  # noqa: BLE001 - the consumer's to handle
            pending.fail(error)
        else:  # also where the consumer has left meanwhile, because the decoder's queue holds the batch
            submitted.append(pending)
            return
    _finish(pending)


def _collect(pending: PendingBatch, decoder: BatchDecoder) -> None:
    try:
        with pending.spec.on_copy_stream():
            pending.codes[:], pending.images = decoder.collect()
    except BaseException as error:  # noqa: BLE001 - the consumer's to handle
        pending.fail(error)
    _finish(pending)


def _finish(pending: PendingBatch) -> None:
    pending.guard(_pad, pending)
    pending.finish()


def _pad(pending: PendingBatch) -> None:
    """Append zeros for the padding at the batch's end."""
    num_missing = len(pending.indices) - pending.num_valid
    if not num_missing:
        return
    padded = []
    with pending.spec.on_copy_stream():
        for number, view in enumerate(pending.spec.views):
            size = view.crop.size_px
            zeros = torch.zeros((num_missing, size, size, 3), dtype=torch.uint8, device=pending.spec.device)
            padded.append(torch.cat([pending.images[number], zeros]) if pending.images else zeros)
    pending.images = padded
