"""A DALI pipeline that takes batches and returns their crops, in order, and is rebuilt after an error.

Nothing in it is random or depends on the epoch.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.files.workers import Workers
from fastpsl.kernels.isotropic import DIAGONAL
from fastpsl.kernels.isotropic_batch import crop_isotropic
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.decoders.boxes import windows
from fastpsl.pipelines.decoders.dali_errors import named_sample, reason, user_error
from fastpsl.pipelines.decoders.dali_graph import Graph, build, feeds, first_feeds
from fastpsl.pipelines.pinned import to_device

_CHUNK = 8


@dataclass
class _Run:
    """A batch that is submitted; `submit` describes the first five fields."""

    samples: list[Any]
    sizes: np.ndarray
    boxes: list[np.ndarray]
    owner: object
    is_pinned: bool
    feeds: list[tuple[str, Any]] = field(default_factory=list)
    is_fed: bool = False
    message: str = "DALI has ended"  # DALI's message if the batch could not be fed

    def part(self, which: np.ndarray) -> "_Run":
        samples = [self.samples[i] for i in which]
        boxes = [boxes[which] for boxes in self.boxes]
        return _Run(samples, self.sizes[which], boxes, self.owner, self.is_pinned)


class DaliPipeline:
    """A queue of batches through a DALI pipeline; one thread submits and collects.

    Args:
        graph: The description of the pipeline.
        batch_size: The largest batch.
        num_threads: The number of DALI's threads.
        device: The device of the crops.
        depth: The most batches in flight.
        workers: Threads for the isotropic crops on a CPU.

    Raises:
        ValueError: If memory is short or the driver too old.
        RuntimeError: If DALI does not work here.
    """

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
        # On a GPU, the runs and DALI's outputs that its queues may still read.
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
        """Submit a batch without copying it.

        Args:
            samples: n contiguous JPEGs, uint8 [num_bytes], or images, uint8 [H, W, 3].
            sizes: The height and the width of the upright images, int [n, 2].
            boxes: For each crop int32 [n, 5].
            owner: The owner of the samples' memory, referenced until they have been read.
            is_pinned: Whether all samples lie in pinned memory. If not, DALI's threads copy them for a GPU.
        """
        run = _Run(samples, sizes, boxes, owner, is_pinned)
        self._pending.append(run)
        self._feed(run)

    def collect(self) -> tuple[list[Tensor], dict[int, str]]:
        """Return the crops of the oldest batch; on a GPU they are in flight on the current stream.

        Returns:
            For each size the crops, uint8 [n, S, S, 3] on the device. Then the reason for each position that
            DALI could not decode (its crops are black).

        Raises:
            ValueError: If memory is short or the driver too old.
            RuntimeError: If DALI itself does not work any more.
        """
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
        """Delete the pipeline, after which it reads no more of its input.

        Only a GPU's copies from pinned memory may still be in flight. Their results are discarded, and torch
        keeps those pages locked. No reference to an error of DALI may exist here, because its traceback would
        keep the pipeline alive, and its threads would read freed memory.
        """
        self._pipe = None

    def _start(self) -> None:
        """Build a pipeline and test it with black images."""
        try:
            pipe = build(self._graph, self._batch_size, self._num_threads, self._device, self._depth)
            for name, values in first_feeds(self._graph, self._batch_size, self._depth):
                pipe.feed_input(name, values)
            pipe.schedule_run()  # the first call starts as many runs as the prefetch queue holds
            for _ in range(self._depth):
                pipe.share_outputs()
                pipe.release_outputs()
        except Exception as error:
            self._check_user(str(error), of_all=True)
            raise RuntimeError(
                f"DALI does not work here ({reason(str(error))}); use --decoder turbo"
            ) from error
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
        if not run.is_fed:  # some inputs may lack the batch, and would be a batch behind from here on
            self._stop()

    def _check_user(self, message: str, of_all: bool) -> None:
        """Raise a ValueError if the user can fix the cause of a message (`user_error`)."""
        free_bytes = None
        if self._is_gpu and torch.cuda.is_initialized():
            free_bytes = torch.cuda.mem_get_info(self._device)[0]
        error = user_error(message, str(self._device), free_bytes, of_all)
        if error is not None:
            raise error

    def _take(self, run: _Run) -> tuple[list[Tensor], dict[int, str]]:
        """Return the oldest outputs as `collect` does, waiting for DALI's threads but not for the GPU."""
        # DALI binds its outputs to this stream, which waits for them.
        stream = torch.cuda.current_stream(self._device) if self._is_gpu else None
        self._release()
        outputs = self._pipe.share_outputs(stream)
        crops = [self._crop(output, run.boxes[k], k) for k, output in enumerate(outputs[: len(run.boxes)])]
        failed = {}
        if self._graph.turns:
            # Compared, because readers differ in EXIF, and DALI must agree with Pillow on the rotation.
            sizes = np.asarray(outputs[-1].as_array())[:, :2]
            for i in np.flatnonzero((sizes != run.sizes).any(1)).tolist():
                failed[i] = f"decoded as {sizes[i][0]} x {sizes[i][1]} px by DALI"
        self._pipe.release_outputs()
        if self._is_gpu:
            # DALI reuses an output's memory once its last reference is gone, in the order of the stream that
            # it is bound to. The consumer reads on another stream, and torch's record_stream does not apply
            # to memory that is not torch's. So the consumer gets a copy: 38 MB read and written for 256 crops
            # of 224 px, 0.018 ms of the 8.4 ms that decoding them takes at 30,600/s (by 4.25 TB/s, an H200's
            # measured copy bandwidth).
            crops = [crop if self._graph.isotropic[k] else crop.clone() for k, crop in enumerate(crops)]
            copied = torch.cuda.Event(blocking=True)  # blocking sleeps; torch's default spins on a core
            copied.record(stream)
            self._kept.append((copied, run, outputs))
        return crops, failed

    def _release(self, limit: int | None = None) -> None:
        """Release the runs that the GPU has read; wait while more than `limit` (the depth) are held."""
        limit = self._depth if limit is None else limit
        while self._kept and (len(self._kept) > limit or self._kept[0][0].query()):
            self._kept.popleft()[0].synchronize()

    def close(self) -> None:
        """End the pipeline, after which no submitted batch is read any more."""
        self._stop()
        self._pending.clear()
        self._release(0)

    def _crop(self, output: Any, boxes: np.ndarray, k: int) -> Tensor:
        """Return an output of DALI as crops, which the isotropic kernel makes from windows."""
        size = self._graph.sizes_px[k]
        if not self._graph.isotropic[k]:
            return torch.from_dlpack(output.as_tensor())
        _, _, relative = windows(boxes, size)
        if self._is_gpu:
            device_boxes = to_device(torch.from_numpy(relative), self._device)
            return crop_isotropic(torch.from_dlpack(output.as_tensor()), device_boxes, size)
        crops = np.empty((len(boxes), size, size, 3), np.uint8)

        def crop(which: range) -> None:
            for i in which:
                window = np.asarray(output[i])
                top, left, side = (int(value) for value in relative[i, :3])
                is_turned = relative[i, 4] == DIAGONAL
                rows, columns = window.shape[:2]
                isotropic_resize(window.reshape(-1), rows, columns, top, left, side, is_turned, crops[i])

        assert self._workers is not None
        _in_threads(self._workers, crop, len(boxes))
        return torch.from_numpy(crops)

    def _recover(self, run: _Run, message: str | None) -> tuple[list[Tensor], dict[int, str]]:
        """Decode a run without its samples at fault, and feed the later runs again."""
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
                if at_fault is not None:
                    num_refused += 1
                self._check_user(message, of_all=num_refused == num)
                if at_fault is not None:
                    failed[int(which[at_fault])] = reason(message)
                    which = np.delete(which, at_fault)
                    if len(which):
                        waiting.append((which, None))
                else:
                    waiting += [(half, None) for half in np.array_split(which, 2)]
            if self._pipe is None:
                self._start()
        finally:
            for later in self._pending:
                self._feed(later)
        return crops, failed

    def _try(self, run: _Run, which: np.ndarray, crops: list[Tensor], failed: dict[int, str]) -> str | None:
        """Decode some samples of a run into `crops` and `failed`; return DALI's message if it fails."""
        if self._pipe is None:
            self._start()
        part = run.part(which)
        self._feed(part)
        if part.is_fed:
            try:
                part_crops, part_failed = self._take(part)
            except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
                part.message, part.is_fed = str(error), False
        if not part.is_fed:
            self._stop()
            return part.message
        failed.update({int(which[i]): reason for i, reason in part_failed.items()})
        put(crops, which, part_crops)
        return None


def _in_threads(workers: Workers, function: Callable[[range], None], num: int) -> None:
    """Call `function` on parts of range(num) in threads, and raise its first error."""
    parts = [range(start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK)]
    finished = threading.Semaphore(0)
    errors: list[BaseException] = []

    def run_part(part: range) -> None:
        try:
            function(part)
        except BaseException as error:  # noqa: BLE001 - raised in the caller
            errors.append(error)
        finished.release()

    for part in parts:
        workers.submit(run_part, part)
    for _ in parts:
        finished.acquire()
    if errors:
        raise errors[0]


def put(images: list[Tensor], which: np.ndarray, crops: list[Tensor]) -> None:
    """Copy m crops to the positions `which`, int [m], of the images of each view, uint8 [n, S, S, 3]."""
    places = torch.from_numpy(np.ascontiguousarray(which, np.int64))
    places = to_device(places, crops[0].device)
    for image, crop in zip(images, crops, strict=True):
        image.index_copy_(0, places, crop)
