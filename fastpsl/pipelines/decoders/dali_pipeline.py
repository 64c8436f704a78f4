"""A DALI pipeline that is fed with batches and gives their crops, in order; after an error it is built anew.

Nothing in it is random or knows of epochs. What needs a GPU (`_is_gpu`) has not been run yet.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.isotropic import DIAGONAL, isotropic_resize
from fastpsl.kernels.isotropic_batch import crop_isotropic
from fastpsl.pipelines.decoders.boxes import windows
from fastpsl.pipelines.decoders.dali_errors import named_sample, reason, user_error
from fastpsl.pipelines.decoders.dali_graph import Graph, build, feeds, sample_feeds
from fastpsl.pipelines.loader.workers import Workers

_CHUNK = 8


@dataclass
class _Run:
    samples: list[Any]  # JPEGs, buffers of uint8 [num_bytes], or pictures, uint8 [H, W, 3]
    sizes: np.ndarray  # int [n, 2]: height and width of the upright pictures
    boxes: list[np.ndarray]  # per crop int32 [n, 5]
    owner: object  # held until nothing of `samples` is read any more
    is_pinned: bool  # all of `samples`
    feeds: list[tuple[str, Any]] = field(default_factory=list)
    is_fed: bool = False
    message: str = "DALI has ended"  # of DALI, where it was not fed

    def part(self, which: np.ndarray) -> "_Run":
        samples = [self.samples[i] for i in which]
        boxes = [boxes[which] for boxes in self.boxes]
        return _Run(samples, self.sizes[which], boxes, self.owner, self.is_pinned)


class DaliPipeline:
    """`submit` and `collect` from one thread; `depth` runs are under way at most. `workers` make the isotropic crops on a CPU."""

    def __init__(
        self,
        graph: Graph,
        batch_size: int,
        num_threads: int,
        device: torch.device,
        depth: int,
        workers: Workers | None = None,
    ) -> None:
        self._graph, self._batch_size, self._num_threads = graph, batch_size, num_threads
        self._device, self._depth, self._workers = device, depth, workers
        self._is_gpu = device.type == "cuda"
        self._pending: deque[_Run] = deque()
        # On a GPU: what its queues may still read, until it has: a run's memory and DALI's outputs.
        self._kept: deque[tuple[torch.cuda.Event, _Run, Any]] = deque()
        self._pipe: Any = None
        self._start()

    def submit(
        self,
        samples: list[Any],
        sizes: np.ndarray,
        boxes: list[np.ndarray],
        owner: object = None,
        is_pinned: bool = False,
    ) -> None:
        """Contiguous buffers of one batch; nothing is copied. `owner` is held until they have been read. is_pinned: all lie in pinned
        memory; otherwise DALI, on a GPU, copies them there itself, sample by sample, in its threads."""
        run = _Run(samples, sizes, boxes, owner, is_pinned)
        self._pending.append(run)
        self._feed(run)

    def collect(self) -> tuple[list[Tensor], dict[int, str]]:
        """Of the oldest run: a crop of each size, uint8 [n, S, S, 3] on the device, and the samples that DALI could not
        decode: position → reason (their crops are black). On a GPU they are under way on the current stream. ValueError where
        memory or the driver are at fault, RuntimeError where DALI itself does not work any more."""
        run = self._pending.popleft()
        message = None
        if run.is_fed and self._pipe is not None:
            try:
                return self._take(run)
            except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
                message = str(error)
        self._stop()
        return self._recover(run, message)

    def _stop(self) -> None:
        """Nothing of what was fed is read any more after it, but by copies of pinned memory that a GPU may still have under way: what
        they bring is thrown away, and torch keeps those pages locked. An error must not be kept until here: its traceback holds the
        pipeline, whose threads would read what is freed meanwhile."""
        self._pipe = None

    def _start(self) -> None:
        """A new pipeline, proved by a sample; the first call of schedule_run starts as many runs as are prefetched."""
        try:
            pipe = build(self._graph, self._batch_size, self._num_threads, self._device, self._depth)
            for _ in range(self._depth):
                for name, values in sample_feeds(self._graph):
                    pipe.feed_input(name, values)
            pipe.schedule_run()
            for _ in range(self._depth):
                pipe.share_outputs()
                pipe.release_outputs()
        except Exception as error:
            self._check_user(str(error), of_all=True)
            raise RuntimeError(f"DALI does not work here: {reason(str(error))}") from error
        self._pipe = pipe

    def _feed(self, run: _Run) -> None:
        run.is_fed = False
        if self._pipe is None:
            return
        run.feeds = feeds(self._graph, run.samples, run.boxes, run.is_pinned)
        try:
            for name, values in run.feeds:
                self._pipe.feed_input(name, values)
            self._pipe.schedule_run()
            run.is_fed = True
        except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
            run.message = str(error)
        if not run.is_fed:  # a pipeline half fed is of no use
            self._stop()

    def _check_user(self, message: str, of_all: bool) -> None:
        """ValueError for what is the user's to mend. of_all: nothing that was tried has been decoded."""
        free_bytes = None
        if self._is_gpu and torch.cuda.is_initialized():
            free_bytes = torch.cuda.mem_get_info(self._device)[0]
        error = user_error(message, str(self._device), free_bytes, of_all)
        if error is not None:
            raise error

    def _take(self, run: _Run) -> tuple[list[Tensor], dict[int, str]]:
        """Waits for DALI's threads, not for the GPU: its outputs are bound to the current stream, which waits for them there."""
        stream = torch.cuda.current_stream(self._device) if self._is_gpu else None
        self._release()
        outputs = self._pipe.share_outputs(stream)
        crops = [self._crop(output, run.boxes[k], k) for k, output in enumerate(outputs[: len(run.boxes)])]
        failed = {}
        if self._graph.turns:
            # What EXIF means is up to its reader: DALI and Pillow must agree on which way up a picture is.
            sizes = np.asarray(outputs[-1].as_array())[:, :2]
            for i in np.flatnonzero((sizes != run.sizes).any(1)).tolist():
                failed[i] = f"decoded as {sizes[i][0]} x {sizes[i][1]} px by DALI"
        self._pipe.release_outputs()
        if self._is_gpu:
            # DALI hands an output's memory out again, in the order of the stream that it is bound to, when the last holder lets it
            # go; the consumer reads on a stream of its own, and torch's record_stream knows nothing of memory that is not torch's.
            # So the consumer gets a copy: 38 MB read and written for 256 crops of 224 px, 0.018 ms of the 8.4 ms that decoding
            # them takes at 30,600/s (by 4.25 TB/s, an H200's measured copy bandwidth).
            crops = [crop if self._graph.isotropic[k] else crop.clone() for k, crop in enumerate(crops)]
            copied = torch.cuda.Event(blocking=True)  # waiting sleeps; torch's default would spin on a core
            copied.record(stream)
            self._kept.append((copied, run, outputs))
        return crops, failed

    def _release(self, limit: int | None = None) -> None:
        """Lets go of what the GPU has read; waits for it where more than `limit` runs (the depth) are held."""
        limit = self._depth if limit is None else limit
        while self._kept and (len(self._kept) > limit or self._kept[0][0].query()):
            self._kept.popleft()[0].synchronize()

    def close(self) -> None:
        """Ends the pipeline. Nothing of what was submitted is read any more after it."""
        self._stop()
        self._pending.clear()
        self._release(0)

    def _crop(self, output: Any, boxes: np.ndarray, k: int) -> Tensor:
        """One of DALI's outputs as crops: they are, or are windows of them."""
        size = self._graph.sizes_px[k]
        if not self._graph.isotropic[k]:
            return torch.from_dlpack(output.as_tensor())
        _, _, within = windows(boxes, size)
        if self._is_gpu:
            moved = torch.from_numpy(within).pin_memory().to(self._device, non_blocking=True)
            return crop_isotropic(torch.from_dlpack(output.as_tensor()), moved, size)
        crops = np.empty((len(boxes), size, size, 3), np.uint8)

        def crop(which: range) -> None:
            for i in which:
                window = np.asarray(output[i])
                top, left, side = (int(value) for value in within[i, :3])
                is_turned = within[i, 4] == DIAGONAL
                rows, columns = window.shape[:2]
                isotropic_resize(window.reshape(-1), rows, columns, top, left, side, is_turned, crops[i])

        assert self._workers is not None
        _in_threads(self._workers, crop, len(boxes))
        return torch.from_numpy(crops)

    def _recover(self, run: _Run, message: str | None) -> tuple[list[Tensor], dict[int, str]]:
        """Everything of a run that failed with a message, or was never fed, but for the samples at fault; then all that waits
        behind it is fed again."""
        num = len(run.samples)
        crops = [
            torch.zeros((num, size, size, 3), dtype=torch.uint8, device=self._device)
            for size in self._graph.sizes_px
        ]
        failed: dict[int, str] = {}
        num_refused = 0
        waiting: list[tuple[np.ndarray, str | None]] = [(np.arange(num), message)]
        try:
            while waiting:
                which, message = waiting.pop()
                if message is None:
                    message = self._try(run, which, crops, failed)
                if message is None:
                    continue
                at_fault = 0 if len(which) == 1 else named_sample(message)
                if at_fault is not None and at_fault >= len(which):
                    at_fault = None
                num_refused += at_fault is not None
                self._check_user(message, of_all=num_refused == num)
                if at_fault is not None:
                    failed[int(which[at_fault])] = reason(message)
                    which = np.delete(which, at_fault)
                    waiting += [(which, None)] * (len(which) > 0)
                else:
                    waiting += [(half, None) for half in np.array_split(which, 2)]
            if self._pipe is None:
                self._start()
        finally:
            for later in self._pending:
                self._feed(later)
        return crops, failed

    def _try(self, run: _Run, which: np.ndarray, crops: list[Tensor], failed: dict[int, str]) -> str | None:
        """Some samples of a run alone, put where they belong; DALI's message, where it fails."""
        if self._pipe is None:
            self._start()
        part = run.part(which)
        self._feed(part)
        if part.is_fed:
            try:
                taken, odd = self._take(part)
            except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
                part.message, part.is_fed = str(error), False
        if not part.is_fed:
            self._stop()
            return part.message
        failed.update({int(which[i]): reason for i, reason in odd.items()})
        put(crops, which, taken)
        return None


def _in_threads(workers: Workers, function: Callable[[range], None], num: int) -> None:
    """function for 0 to num - 1, a few at a time; what it raises is raised here."""
    parts = [range(start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK)]
    finished = threading.Semaphore(0)
    errors: list[BaseException] = []

    def one(part: range) -> None:
        try:
            function(part)
        except BaseException as error:  # noqa: BLE001 - the caller's
            errors.append(error)
        finished.release()

    for part in parts:
        workers.submit(one, part)
    for _ in parts:
        finished.acquire()
    if errors:
        raise errors[0]


def put(pictures: list[Tensor], which: np.ndarray, crops: list[Tensor]) -> None:
    """crops[i] to pictures[which[i]] of each view, on one device."""
    places = torch.from_numpy(np.ascontiguousarray(which, np.int64))
    if crops[0].device.type != "cpu":
        places = places.pin_memory().to(crops[0].device, non_blocking=True)
    for into, crop in zip(pictures, crops, strict=True):
        into.index_copy_(0, places, crop)
