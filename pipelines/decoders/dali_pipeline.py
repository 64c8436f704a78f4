"""A DALI pipeline that is fed with batches and gives their crops, in order; after an error it is built anew.

Nothing in it is random or knows of epochs. What needs a GPU (`_is_gpu`) has not been run yet.
"""

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.isotropic import DIAGONAL, crop_isotropic, isotropic_resize
from fastpsl.pipelines.decoders.boxes import windows
from fastpsl.pipelines.decoders.dali_graph import Graph, build, feeds, sample_feeds
from fastpsl.pipelines.workers import Workers

_CHUNK = 8


@dataclass
class _Run:
    samples: list[np.ndarray]  # JPEGs, uint8 [num_bytes], or pictures, uint8 [H, W, 3]
    sizes: np.ndarray  # int [n, 2]: height and width of the upright pictures
    boxes: list[np.ndarray]  # per crop int32 [n, 5]
    feeds: list[tuple[str, Any]] = field(default_factory=list)
    is_fed: bool = False
    message: str = "DALI has ended"  # of DALI, where it was not fed

    def part(self, which: np.ndarray) -> "_Run":
        samples = [self.samples[i] for i in which]
        return _Run(samples, self.sizes[which], [boxes[which] for boxes in self.boxes])


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
        self._pipe: Any = None
        self._start()

    def submit(self, samples: list[np.ndarray], sizes: np.ndarray, boxes: list[np.ndarray]) -> None:
        """Contiguous arrays of one batch; nothing is copied."""
        run = _Run(samples, sizes, boxes)
        self._pending.append(run)
        self._feed(run)

    def collect(self) -> tuple[list[Tensor], dict[int, str]]:
        """Of the oldest run: a crop of each size, uint8 [n, S, S, 3] on the device, and the samples that DALI could not
        decode: position → reason (their crops are black). RuntimeError where DALI itself does not work any more."""
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
        """Nothing of what was fed is read any more after it. An error must not be kept until here: its traceback holds the
        pipeline, whose threads would read what is freed meanwhile."""
        self._pipe = None

    def _start(self) -> None:
        """A new pipeline, proved by a sample; the first call of schedule_run starts as many runs as are prefetched."""
        pipe = build(self._graph, self._batch_size, self._num_threads, self._device, self._depth)
        try:
            for _ in range(self._depth):
                for name, values in sample_feeds(self._graph):
                    pipe.feed_input(name, values)
            pipe.schedule_run()
            for _ in range(self._depth):
                pipe.share_outputs()
                pipe.release_outputs()
        except Exception as error:
            raise RuntimeError(f"DALI does not work here: {_reason(str(error))}") from error
        self._pipe = pipe

    def _feed(self, run: _Run) -> None:
        run.is_fed = False
        if self._pipe is None:
            return
        run.feeds = feeds(self._graph, run.samples, run.boxes)
        try:
            for name, values in run.feeds:
                self._pipe.feed_input(name, values)
            self._pipe.schedule_run()
            run.is_fed = True
        except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
            run.message = str(error)
        if not run.is_fed:  # a pipeline half fed is of no use
            self._stop()

    def _take(self, run: _Run) -> tuple[list[Tensor], dict[int, str]]:
        outputs = self._pipe.share_outputs()
        crops = [self._crop(output, run.boxes[k], k) for k, output in enumerate(outputs[: len(run.boxes)])]
        if self._is_gpu:
            # DALI would hand the memory out again as soon as the tensor goes, whatever streams still read it.
            crops = [crop.clone() for crop in crops]
            copied = torch.cuda.Event()
            copied.record()
            copied.synchronize()
        failed = {}
        if self._graph.turns:
            # What EXIF means is up to its reader: DALI and Pillow must agree on which way up a picture is.
            sizes = np.asarray(outputs[-1].as_array())[:, :2]
            for i in np.flatnonzero((sizes != run.sizes).any(1)).tolist():
                failed[i] = f"decoded as {sizes[i][0]} x {sizes[i][1]} px by DALI"
        self._pipe.release_outputs()
        return crops, failed

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
        waiting: list[tuple[np.ndarray, str | None]] = [(np.arange(num), message)]
        try:
            while waiting:
                which, message = waiting.pop()
                if message is None:
                    message = self._try(run, which, crops, failed)
                if message is None:
                    continue
                at_fault = _named_sample(message)
                if len(which) == 1:
                    failed[int(which[0])] = _reason(message)
                elif at_fault is not None and at_fault < len(which):
                    failed[int(which[at_fault])] = _reason(message)
                    waiting.append((np.delete(which, at_fault), None))
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
        for into, crop in zip(crops, taken, strict=True):
            for i, position in enumerate(which.tolist()):
                into[position].copy_(crop[i])
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


def _named_sample(message: str) -> int | None:
    """The position in its batch of a sample that DALI names: of those that are at fault the first."""
    found = re.search(r"sample #(\d+)", message)
    return int(found[1]) if found else None


def _reason(message: str) -> str:
    """DALI's message without its frame of traceback and advice, in one line."""
    text = message.rsplit("encountered:", 1)[-1].replace("Current pipeline object is no longer valid.", "")
    return " ".join(text.replace("Critical error in pipeline:", "").split()).rstrip(" :")
