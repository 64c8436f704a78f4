"""The engines of a loader decode its batches in threads, for a consumer who waits for one after the other."""

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastpsl.files.workers import Workers, settle
from fastpsl.pipelines.decoders.codes import READING
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder, Request, is_isotropic
from fastpsl.pipelines.decoders.memory import Arenas, pinned_empty
from fastpsl.pipelines.decoders.turbo import TurboDecoder
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.device_windows import DeviceWindows, Room
from fastpsl.pipelines.loader.order import PADDING, index_of
from fastpsl.pipelines.loader.stages import LoaderSpec, Plan, assemble, plan

Result = TypeVar("Result")
# Arenas to keep where the consumer has held many batches and dropped them: twice as many as a loader has in
# flight by default.
_MAX_FREE = 8
# How long to wait for the batch that is being read before collecting an older one. Collecting blocks on the
# decoder, which then has one batch fewer to overlap: reading 256 JPEGs from memory takes 2 ms, decoding them
# 8 ms. Storage that is slower than this bound delays a batch by no more than the bound.
_READ_WAIT_S = 0.005


class PendingBatch:
    """A batch that the consumer asks for and threads make, until `is_left` is set: nobody wants it then."""

    def __init__(
        self, spec: LoaderSpec, epoch: int, step: int, numbers: np.ndarray, is_left: threading.Event
    ) -> None:
        self.spec, self.epoch, self.step, self.numbers, self.is_left = spec, epoch, step, numbers, is_left
        # Done when no thread works on the batch any more, also after an error.
        self.done: Future[tuple[Batch, torch.cuda.Event | None]] = Future()
        self._codes = np.zeros(0, np.int8)
        self._lock = threading.Lock()  # one thread alone ends the last chunk, and `result` lists the others
        self._waiting: dict[int, int] = {}  # chunks not finished: start → stop

    def plan(self) -> Plan:
        self.require_wanted()
        return plan(self.spec, self.epoch, self.step, self.numbers)

    def require_wanted(self) -> None:
        """Raise CancelledError where nobody wants the batch."""
        if self.is_left.is_set():
            raise CancelledError

    def decode_in_chunks(
        self,
        workers: Workers,
        codes: np.ndarray,
        decode: Callable[[slice], None],
        future: "Future[Result]",
        finish: Callable[[], Result],
    ) -> None:
        """Run `decode` on chunks of the batch in threads, and `finish` in the last of them for a future.

        The future gets the first error instead, when all chunks have ended.
        """
        size, errors = chunk_samples(len(codes), workers.num_threads), list[BaseException]()
        self._codes = codes
        self._waiting = {i: min(i + size, len(codes)) for i in range(0, len(codes), size)}
        chunks = list(self._waiting.items())  # a copy, because threads shorten the dict from now on

        def run(start: int, stop: int) -> None:
            try:
                self.require_wanted()
                if not errors:  # otherwise nobody gets the batch
                    decode(slice(start, stop))
            except BaseException as error:  # noqa: BLE001 - the consumer's to handle
                errors.append(error)
            with self._lock:
                del self._waiting[start]
                is_last = not self._waiting
            if is_last and errors:
                future.set_exception(errors[0])
            elif is_last:
                settle(future, finish)

        for chunk in chunks:
            workers.submit(run, *chunk)
        if not chunks:
            settle(future, finish)

    def deliver(self, planned: Plan, images: list[Tensor], codes: np.ndarray) -> "tuple[Batch, Any]":
        """Assemble the batch on its device; the event, if there is one, tells when it is there."""
        batch = assemble(planned, images, codes)
        if self.spec.copy_stream is None:
            return batch, None
        batch, copied = batch.to(self.spec.device), torch.cuda.Event()
        copied.record()
        return batch, copied

    def result(self, timeout_s: float) -> Batch:
        """Return the batch, or raise its error, in the consumer's thread."""
        if not futures.wait([self.done], timeout_s).done:
            with self._lock:
                unfinished = [i for start, stop in self._waiting.items() for i in range(start, stop)]
            read_now = [i for i in unfinished if self._codes[i] == READING]
            indices = index_of(self.numbers)
            names = self.spec.names(indices[read_now or unfinished or indices != PADDING])
            raise TimeoutError(
                f"epoch {self.epoch}, step {self.step}: no batch within {timeout_s:g} s, waiting for "
                f"{names}; a thread is stuck or storage is slow (timeout_s sets the limit)"
            )
        batch, copied = self.done.result()
        if copied is not None:
            stream = torch.cuda.current_stream(self.spec.device)
            stream.wait_event(copied)  # the device waits, this thread does not
            # The memory is the copy stream's. Without this, torch would give it to a later batch while a step
            # still reads it. Once per storage, because all small tensors share one.
            owners = {tensor.untyped_storage().data_ptr(): tensor for tensor in batch.tensors()}
            for tensor in owners.values():
                tensor.record_stream(stream)
        return batch


def chunk_samples(num_samples: int, num_threads: int) -> int:
    """Return how many samples of a batch a thread decodes at a time, 8 to 64.

    Images of 64 px are decoded a tenth faster in chunks of 64 than of 16, because Python has less to do. Many
    threads need many chunks: with the 4 batches that a loader has in flight by default, two for each.
    """
    # 8 was not measured: a lower bound would give more threads work, and each call fewer samples.
    return min(max(8, 2 * num_samples // num_threads), 64)


class ThreadEngine:
    """An engine for a `Decoder` (turbo, ffcv, pillow, synthetic): threads decode a batch in chunks.

    With `crops_on_device`, the device crops isotropic views, of which the decoder fills windows in an arena.
    """

    def __init__(self, decoder: Decoder, num_threads: int, crops_on_device: bool = False) -> None:
        self._decoder, self._num_threads = decoder, num_threads
        self._workers = Workers(num_threads, "fastpsl-loader")
        self._arenas = Arenas(limit=_MAX_FREE)
        # One for all batches, so that their arenas have one size.
        self._room = Room() if crops_on_device else None

    def start(self, pending: PendingBatch) -> None:
        self._workers.submit(self._run, pending)

    def _run(self, pending: PendingBatch) -> None:
        try:
            planned = pending.plan()
            images, request, windows = self._begin(planned)
        except BaseException as error:  # noqa: BLE001 - the consumer's to handle
            pending.done.set_exception(error)
            return
        pending.decode_in_chunks(
            self._workers,
            request.codes,
            partial(self._decode, request),
            pending.done,
            partial(_deliver, pending, planned, images, request.codes, windows),
        )

    def _begin(self, planned: Plan) -> tuple[list[Tensor], Request, DeviceWindows | None]:
        """Allocate the batch's images, with zeros for padding, and request them of the decoder.

        Images are uint8 [B, S, S, 3] for each view, or empty if the device crops all of them.
        """
        spec, boxes, num = planned.spec, planned.boxes, len(planned.indices)
        sizes_px, is_pinned = [view.crop.size_px for view in spec.views], spec.copy_stream is not None
        windows, nums = None, [num] * len(sizes_px)
        if self._room is not None and any(map(is_isotropic, boxes)):
            windows = DeviceWindows(planned.rows, boxes, sizes_px, self._room, is_pinned)
            nums = [0 if windows.has_all(k) else num for k in range(len(sizes_px))]
        shapes = [(num, size_px, size_px, 3) for num, size_px in zip(nums, sizes_px, strict=True)]
        if is_pinned:  # torch's pinned allocator reuses a block after its copies have ended
            images = [pinned_empty(*shape) for shape in shapes]
        else:
            # One arena for all views. It goes back to the pool with the last tensor that refers to it.
            lengths = list(map(math.prod, shapes))
            memory = torch.from_numpy(np.asarray(self._arenas.take(sum(lengths))))  # or more bytes
            parts = memory[: sum(lengths)].split(lengths)
            images = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        for of_view in images:
            of_view[planned.num_valid :] = 0
        outs = [of_view.numpy()[: planned.num_valid] for of_view in images]
        if windows is None:
            return images, self._decoder.begin(planned.rows, boxes, outs), None
        assert isinstance(self._decoder, TurboDecoder)
        arena = windows.arena.numpy()
        return images, self._decoder.begin(planned.rows, boxes, outs, windows.planned, arena), windows

    def _decode(self, request: Request, part: slice) -> None:
        self._decoder.decode_part(request, part)
        # After the part, whose times the decoder counts.
        self._workers.grow(self._decoder.wanted_threads(self._num_threads))

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def close(self, limit_s: float) -> None:
        self._workers.close(limit_s)


def _deliver(
    pending: PendingBatch,
    planned: Plan,
    images: list[Tensor],
    codes: np.ndarray,
    windows: DeviceWindows | None,
) -> "tuple[Batch, Any]":
    with pending.spec.on_copy_stream():
        if windows is not None:
            images = windows.crop(images, len(planned.indices), pending.spec.device)
        return pending.deliver(planned, images, codes)


class _Read(NamedTuple):
    """A pending batch, and a future of its plan and of its samples in the decoder's input form."""

    pending: PendingBatch
    ready: "Future[tuple[Plan, Any]]"


class QueueEngine:
    """An engine for a `BatchDecoder` (dali, resident): threads read, and one more drives the decoder.

    The driver alone submits and collects, in the order of the calls of `start`.
    """

    def __init__(self, decoder: BatchDecoder, num_threads: int) -> None:
        self._decoder = decoder
        self._workers = Workers(num_threads, "fastpsl-loader")
        self._driver = Workers(1, "fastpsl-loader-driver")
        self._queue: SimpleQueue[_Read | None] = SimpleQueue()
        # The driver refers to the queue and the decoder only, so deleting this object ends it.
        self._end = weakref.finalize(self, self._queue.put, None)
        self._driver.submit(_drive, self._queue, decoder)

    def start(self, pending: PendingBatch) -> None:
        read = _Read(pending, Future())
        self._queue.put(read)
        self._workers.submit(self._run, *read)

    def _run(self, pending: PendingBatch, ready: "Future[tuple[Plan, Any]]") -> None:
        try:
            planned = pending.plan()
            samples = self._decoder.begin(planned.rows)
        except BaseException as error:  # noqa: BLE001 - the consumer's to handle
            ready.set_exception(error)
            return
        pending.decode_in_chunks(
            self._workers,
            np.zeros(planned.num_valid, np.int8),
            partial(self._decoder.encode, planned.rows, samples),
            ready,
            lambda: (planned, samples),
        )

    @property
    def closed(self) -> bool:
        return self._workers.closed

    def close(self, limit_s: float) -> None:
        self._end()
        self._workers.close(limit_s)  # first, because the driver waits for what they read
        self._driver.close(limit_s)


def _drive(queue: "SimpleQueue[_Read | None]", decoder: BatchDecoder) -> None:
    submitted: deque[tuple[PendingBatch, Plan]] = deque()
    upcoming: deque[_Read] = deque(maxlen=1)
    is_open = True
    while is_open or submitted:
        if is_open and not upcoming:
            try:
                read = queue.get(block=not submitted)  # a batch in the decoder is to be collected meanwhile
                if read is None:
                    is_open = False
                else:
                    upcoming.append(read)
                del read  # an idle driver keeps no batch alive
            except Empty:
                pass
        has_room = bool(upcoming) and len(submitted) < decoder.depth
        # The wait is unbounded where nothing is submitted: the consumer's timeout covers a read that hangs.
        limit_s = _READ_WAIT_S if submitted else None
        if has_room and futures.wait([upcoming[0].ready], limit_s).done:
            _submit(upcoming.pop(), decoder, submitted)
        elif submitted:
            pending, planned = submitted.popleft()
            settle(pending.done, _collect, pending, planned, decoder)
            del pending, planned
    decoder.close()


def _submit(read: _Read, decoder: BatchDecoder, submitted: deque[tuple[PendingBatch, Plan]]) -> None:
    pending, spec = read.pending, read.pending.spec
    try:
        planned, samples = read.ready.result()
        pending.require_wanted()
        if planned.num_valid:
            sizes_px = [view.crop.size_px for view in spec.views]
            with spec.on_copy_stream():
                decoder.submit(planned.rows, samples, planned.boxes, sizes_px)
    except BaseException as error:  # noqa: BLE001 - the consumer's to handle
        pending.done.set_exception(error)
        return
    if planned.num_valid:  # also where the consumer has left meanwhile, because the decoder holds the batch
        submitted.append((pending, planned))
    else:
        settle(pending.done, _collect, pending, planned, None)


def _collect(pending: PendingBatch, planned: Plan, decoder: BatchDecoder | None) -> "tuple[Batch, Any]":
    """Take a batch from the decoder, and append zeros for its padding; None for one of padding alone."""
    spec, num_missing = pending.spec, len(planned.indices) - planned.num_valid
    with spec.on_copy_stream():
        codes, images = (np.zeros(0, np.int8), []) if decoder is None else decoder.collect()
        if num_missing:
            sizes_px = [view.crop.size_px for view in spec.views]
            shapes = [(num_missing, size_px, size_px, 3) for size_px in sizes_px]
            zeros = [torch.zeros(shape, dtype=torch.uint8, device=spec.device) for shape in shapes]
            images = [torch.cat(pair) for pair in zip(images, zeros, strict=True)] if images else zeros
        return pending.deliver(planned, images, codes)
