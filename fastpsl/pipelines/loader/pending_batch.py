"""A batch in flight: planned (rows, boxes, draws), decoded (by_chunks.py, by_batches.py), then assembled."""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from fastpsl.files.workers import Workers
from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.data.dataset import Dataset, SampleTable
from fastpsl.pipelines.decoders.choose import reason_of
from fastpsl.pipelines.decoders.codes import AREA, GOOD, READING
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder, Request
from fastpsl.pipelines.loader.batch import BadSample, BadSampleError, Batch
from fastpsl.pipelines.loader.device_windows import DeviceWindows
from fastpsl.pipelines.loader.order import PADDING, index_of
from fastpsl.pipelines.views import Crop, ViewSpec

_MAX_NAMES = 3  # samples named in one line of an error


def chunk_samples(num_samples: int, num_threads: int) -> int:
    """Return how many samples of a batch a thread decodes at a time, 8 to 64.

    Images of 64 px are decoded a tenth faster in chunks of 64 than of 16, because Python has less to do. Many
    threads need many chunks: with the 4 batches that a loader has in flight by default, two for each.
    """
    return min(max(8, 2 * num_samples // num_threads), 64)


@final
@dataclass(frozen=True)
class LoaderSpec:
    """The settings that all batches of a loader share.

    Attributes:
        data: The open data set.
        views: The views of each sample.
        seed: The seed of the draws.
        decoder: The decoder of the images.
        on_bad_sample: "raise" or "skip".
        device: The device of the batches.
        copy_stream: The stream for copies to a CUDA device; None on the CPU.
    """

    data: Dataset
    views: tuple[ViewSpec, ...]
    seed: int
    decoder: Decoder | BatchDecoder
    on_bad_sample: str
    device: torch.device
    copy_stream: torch.cuda.Stream | None

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Return a context in which this thread's CUDA work goes to the copy stream, if there is one."""
        if self.copy_stream is None:
            return nullcontext()
        # A thread starts on device 0, and leaving the stream would create a CUDA context there.
        torch.cuda.set_device(self.device)
        return torch.cuda.stream(self.copy_stream)


class PendingBatch:
    """A batch that the consumer's thread creates and other threads fill.

    `finish` is called once; after that `result` returns at once.

    Args:
        spec: The loader's settings.
        epoch: The epoch, from 0.
        step: The step in the epoch, from 0.
        numbers: Dataset indices, int64 [B], or the result of `order.numbered` for an order with repeats.

    Attributes:
        rows: From `plan`: the samples that are not padding.
        boxes: From `plan`: for each view int32 [num_valid, 5].
        draws: From `plan`: for each view a dict per op, padding included.
        codes: From decoding: int8 [num_valid].
        images: From decoding: for each view uint8 [B, S, S, 3], padding included. Empty where the device
            crops all of a view.
        windows: What the device crops, until the batch is finished.
        request: What a `Decoder` works on, until the batch is finished.
    """

    rows: SampleTable
    boxes: list[np.ndarray]
    draws: list[tuple[dict[str, np.ndarray], ...]]
    codes: np.ndarray
    images: list[Tensor]

    def __init__(self, spec: LoaderSpec, epoch: int, step: int, numbers: np.ndarray) -> None:
        self.spec, self.epoch, self.step, self.numbers = spec, epoch, step, numbers
        self.indices = indices = index_of(numbers)
        self.num_valid = int((indices != PADDING).sum())  # padding stands at the end
        self.images = []
        self.windows: DeviceWindows | None = None
        self.request: Request | None = None
        self.done = threading.Event()
        self.cancelled = False
        self._error: BaseException | None = None
        self._batch: Batch | None = None
        self._copied: torch.cuda.Event | None = None
        self._lock = threading.Lock()
        self._waiting: dict[int, int] = {}  # chunks not finished: start → stop

    def plan(self) -> None:
        """Compute rows, boxes and draws, which need no pixels."""
        spec, num = self.spec, self.num_valid
        try:
            spec.data.wait(self.indices[:num])
            self.rows = spec.data.rows(self.indices[:num])
        except ValueError as error:  # a file was cut short: the message names the file, and here the samples
            raise ValueError(f"{error} (while reading {self._names(self.indices[:num])})") from None
        self.boxes, self.draws = [], []
        for number, view in enumerate(spec.views):
            keys = Keys(spec.seed, self.epoch, self.numbers[:num], number)
            self.boxes.append(_boxes(view.crop, keys, self.rows))
            # Padding has draws too (with index -1), because ops are applied to whole batches.
            self.draws.append(view.draw(Keys(spec.seed, self.epoch, self.numbers, number)))
        self.codes = np.zeros(num, np.int8)

    def decode_in_chunks(
        self, workers: Workers, function: Callable[[slice], None], then: Callable[[], None]
    ) -> None:
        """Run a function on chunks of the batch in threads."""
        num = 0 if self.is_over else self.num_valid
        step = chunk_samples(self.num_valid, workers.num_threads)
        self._waiting = {i: min(i + step, num) for i in range(0, num, step)}
        chunks = list(self._waiting.items())

        def run_chunk(start: int, stop: int) -> None:
            self.guard(function, slice(start, stop))
            with self._lock:
                del self._waiting[start]
                is_last = not self._waiting
            if is_last:
                then()

        for chunk in chunks:
            workers.submit(run_chunk, *chunk)
        if not chunks:
            then()

    def finish(self) -> None:
        """Assemble the batch from `images` and `codes`, and wake the consumer, also after an error."""
        self.guard(self._assemble)
        # So that torch reuses pinned memory as soon as its copies have ended.
        self.images, self.windows, self.request = [], None, None
        self.done.set()

    def _assemble(self) -> None:
        with self.spec.on_copy_stream():
            indices = self.indices.astype(np.int64)
            labels = np.full(len(indices), PADDING, np.int64)
            labels[: self.num_valid] = self.rows.label
            bad = self._fill_bad(indices, labels)
            if self.windows is not None:
                self.images = self.windows.crop(self.images, len(indices), self.spec.device)
            batch = Batch(
                images=[images.permute(0, 3, 1, 2) for images in self.images],
                draws=[
                    tuple({key: torch.from_numpy(value) for key, value in draw.items()} for draw in draws)
                    for draws in self.draws
                ],
                indices=torch.from_numpy(indices),
                labels=torch.from_numpy(labels),
                epoch=self.epoch,
                step=self.step,
                bad=bad,
                ops=[view.ops for view in self.spec.views],
            )
            if self.spec.copy_stream is not None:
                batch = batch.to(self.spec.device)
                self._copied = torch.cuda.Event()
                self._copied.record()
            self._batch = batch

    def _fill_bad(self, indices: np.ndarray, labels: np.ndarray) -> list[BadSample]:
        """Replace bad samples by the batch's next good ones, with index -1, and return the bad ones."""
        if not self.codes.any():
            return []
        spec = self.spec
        for i in np.flatnonzero(self.codes < READING).tolist():
            raise _error_of(int(self.codes[i]), spec.data.name(int(indices[i])))
        bad = []
        for i in np.flatnonzero(self.codes != GOOD).tolist():
            reason = reason_of(int(self.codes[i]), self.rows, i)
            bad.append(BadSample(int(indices[i]), spec.data.name(int(indices[i])), reason))
            if spec.on_bad_sample == "raise":
                raise BadSampleError(str(bad[-1]))
        good = np.flatnonzero(self.codes == GOOD)
        if not len(good):
            raise BadSampleError(
                f"{bad[0]} (all {len(bad)} samples of epoch {self.epoch}, step {self.step} are bad)"
            )
        for i in np.flatnonzero(self.codes != GOOD).tolist():
            source = int(good[np.searchsorted(good, i) % len(good)])
            for images in filter(len, self.images):
                images[i] = images[source]
            if self.windows is not None:
                self.windows.fill(i, source)
            labels[i] = labels[source]
            indices[i] = PADDING
        return bad

    @property
    def is_over(self) -> bool:
        """Whether the batch needs no more work, because the consumer has left or an error has occurred."""
        return self.cancelled or self._error is not None

    def guard(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function unless the batch is over, and store its error for the consumer."""
        if self.is_over:
            return
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - the consumer's to handle
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        self._error = error

    def result(self, timeout_s: float) -> Batch:
        """Return the batch, or raise the stored error, in the consumer's thread."""
        if not self.done.wait(timeout_s):
            with self._lock:
                unfinished = [i for start, stop in self._waiting.items() for i in range(start, stop)]
            read_now = [i for i in unfinished if self.codes[i] == READING]
            names = self._names(self.indices[read_now or unfinished or range(self.num_valid)])
            raise TimeoutError(
                f"epoch {self.epoch}, step {self.step}: no batch within {timeout_s:g} s, waiting for "
                f"{names}; a thread is stuck or storage is slow (timeout_s sets the limit)"
            )
        if self._error is not None:
            raise self._error
        assert self._batch is not None
        if self._copied is not None:
            stream = torch.cuda.current_stream(self.spec.device)
            stream.wait_event(self._copied)
            # Once per storage, because all small tensors share one.
            owners = {tensor.untyped_storage().data_ptr(): tensor for tensor in self._batch.tensors()}
            for tensor in owners.values():
                tensor.record_stream(stream)
        return self._batch

    def _names(self, indices: np.ndarray) -> str:
        rest = f" and {len(indices) - _MAX_NAMES} more" if len(indices) > _MAX_NAMES else ""
        return ", ".join(self.spec.data.name(int(index)) for index in indices[:_MAX_NAMES]) + rest


def _error_of(code: int, name: str) -> OSError | MemoryError:
    """Return the system's error that a code below READING tells of."""
    number = READING - code
    if number == errno.ENOMEM:
        return MemoryError(f"{name}: no memory to decode it")
    return OSError(number, os.strerror(number), name)


def _boxes(crop: Crop, keys: Keys, rows: SampleTable) -> np.ndarray:
    """Return int32 [n, 5]: the crop's boxes and their resampling (AREA, ISOTROPIC or DIAGONAL)."""
    resampling = getattr(crop, "resampling", None)
    kinds = np.full(len(keys.indices), AREA, np.int32) if resampling is None else resampling(keys)
    return np.column_stack([crop.boxes(keys, rows.height, rows.width), kinds]).astype(np.int32, copy=False)
