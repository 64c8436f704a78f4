"""Samples to batches of views: one decode a sample, uint8 on the device, the same for any number of ranks and threads.

A batch is cut into chunks of a few samples that threads of the loader decode; the consumer's own next() keeps a
bounded number of batches under way. There is no producer thread, and what goes wrong is raised in the consumer.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.batch import BadSample, BadSampleError, Batch, checked_device
from fastpsl.pipelines.beton import Beton, Rows
from fastpsl.pipelines.decoders import open_decoder, reason_of
from fastpsl.pipelines.decoders.codes import GOOD
from fastpsl.pipelines.decoders.synthetic import Synthetic
from fastpsl.pipelines.order import PADDING, epoch_order, num_steps, step_indices
from fastpsl.pipelines.views import ViewSpec
from fastpsl.pipelines.workers import Workers, default_num_threads

_CHUNK_SAMPLES = 16  # 8 to 64 are equal on 2 cores; larger ones spare the interpreter lock on many
_NAMED = 3  # samples named in one line of an error


@final
class Loader:
    """Batches of views of `data`, in the order of (seed, epoch).

    batch_size is per rank. Training (`train=True`) shuffles and drops the last partial global batch; evaluation goes
    in dataset order and pads with index -1. `decoder`: see `decoders.open_decoder`. num_threads: by default this
    process's share of the cores. prefetch_batches bounds what is under way; timeout_s bounds the wait for one batch.
    """

    def __init__(
        self,
        data: Beton | Synthetic,
        views: Sequence[ViewSpec],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
        decoder: str = "auto",
        num_threads: int | None = None,
        device: str | torch.device = "cpu",
        prefetch_batches: int = 3,
        timeout_s: float = 120.0,
        on_bad_sample: str = "raise",
    ) -> None:
        num_threads = default_num_threads() if num_threads is None else num_threads
        for name, value in (
            ("batch_size", batch_size),
            ("world", world),
            ("num_threads", num_threads),
            ("prefetch_batches", prefetch_batches),
        ):
            if value < 1:
                raise ValueError(f"Loader: {name} is {value}; it must be 1 or more")
        if not 0 <= rank < world:
            raise ValueError(f"Loader: rank is {rank}; it must be 0 to {world - 1} for a world of {world}")
        if timeout_s <= 0:
            raise ValueError(f"Loader: timeout_s is {timeout_s}; it must be above 0")
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"Loader: on_bad_sample is {on_bad_sample!r}; it must be 'raise' or 'skip'")
        if not views:
            raise ValueError("Loader: no views were given; give at least one ViewSpec")
        if train and data.num_samples < batch_size * world:
            raise ValueError(
                f"{data.num_samples} samples are fewer than one global batch of {batch_size * world} "
                f"(world {world} x batch {batch_size}); lower the batch size or use more data"
            )
        self.device = checked_device(device)
        min_height, min_width, _, _ = data.image_sizes()
        for view in views:
            view.crop.check(min_height, min_width)
        self.data, self.views = data, tuple(views)
        self.batch_size, self.seed, self.rank, self.world, self.train = batch_size, seed, rank, world, train
        self.num_threads, self.prefetch_batches, self.timeout_s = num_threads, prefetch_batches, timeout_s
        self.on_bad_sample = on_bad_sample
        self.num_samples = data.num_samples
        self.num_steps = num_steps(data.num_samples, batch_size * world, train)
        self.decoder, self.decoder_reason = open_decoder(decoder, data)
        self.decoder_name = self.decoder.name
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._workers = Workers(num_threads, "fastpsl-loader")

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches of an epoch from `first_step` on; nothing before it is decoded. Leaving it early is free.

        Raises BadSampleError (a sample cannot be decoded), TimeoutError (no batch within timeout_s) and OSError.
        """
        if epoch < 0 or not 0 <= first_step <= self.num_steps:
            raise ValueError(f"epoch {epoch}, step {first_step}: an epoch has steps 0 to {self.num_steps}")
        if self._workers.closed:
            raise ValueError("the loader is closed; make a new one")
        return self._batches(epoch, first_step)

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        if self.train:
            order = epoch_order(self.seed, epoch, self.num_samples)
        else:
            order = np.arange(self.num_samples)
        under_way: deque[_Job] = deque()
        steps = iter(range(first_step, self.num_steps))
        try:
            while True:
                while len(under_way) < self.prefetch_batches and (step := next(steps, None)) is not None:
                    indices = step_indices(order, step, self.batch_size, self.rank, self.world)
                    job = _Job(self, epoch, step, indices)
                    self._workers.submit(job.prepare)
                    under_way.append(job)
                if not under_way:
                    return
                batch = under_way[0].result(self.timeout_s)
                under_way.popleft()
                yield batch
        except TimeoutError:
            for job in under_way:
                job.cancelled = True
            self.close(limit_s=0.0)  # a thread that is stuck is left behind; it does not hold up the exit
            under_way.clear()
            raise
        finally:
            # Waiting for the chunks that run lets the caller close the data the moment this is over.
            for job in under_way:
                job.cancelled = True
            for job in under_way:
                job.done.wait(self.timeout_s)

    def close(self, limit_s: float | None = None) -> None:
        """Ends the threads. The data is the caller's to close."""
        self._workers.close(self.timeout_s if limit_s is None else limit_s)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Job:
    """One batch on its way: `prepare` runs in a thread, then a `_decode` per chunk; the last of them finishes it."""

    def __init__(self, loader: Loader, epoch: int, step: int, indices: np.ndarray) -> None:
        self.loader, self.epoch, self.step, self.indices = loader, epoch, step, indices
        self.num_valid = int((indices != PADDING).sum())  # padding stands at the end
        self.done = threading.Event()
        self.cancelled = False
        self._error: BaseException | None = None
        self._batch: Batch | None = None
        self._copied: torch.cuda.Event | None = None
        self._lock = threading.Lock()
        self._waiting: dict[int, int] = {}  # chunks not finished: start → stop

    def result(self, timeout_s: float) -> Batch:
        """In the consumer's thread: the batch, or what went wrong."""
        if not self.done.wait(timeout_s):
            with self._lock:
                left = [i for start, stop in self._waiting.items() for i in range(start, stop)]
            names = self._names(self.indices[left or range(self.num_valid)])
            raise TimeoutError(
                f"epoch {self.epoch}, step {self.step}: no batch within {timeout_s:g} s, waiting for {names}; "
                "a thread is stuck or storage is slow (timeout_s sets the limit)"
            )
        if self._error is not None:
            raise self._error
        assert self._batch is not None
        if self._copied is not None:
            stream = torch.cuda.current_stream(self.loader.device)
            stream.wait_event(self._copied)
            for tensor in self._batch.tensors():
                tensor.record_stream(stream)
        return self._batch

    def _names(self, indices: np.ndarray) -> str:
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        return ", ".join(self.loader.data.name(int(index)) for index in indices[:_NAMED]) + more

    def prepare(self) -> None:
        """In a thread: everything that needs no pixels (rows, boxes, draws, memory); then hands out the chunks."""
        self._guard(self._plan)
        chunks = list(self._waiting.items())
        for start, stop in chunks:
            self.loader._workers.submit(self._decode, start, stop)
        if not chunks:
            self._finish()

    def _guard(self, function: Callable[..., None], *arguments: Any) -> None:
        if self.cancelled or self._error is not None:
            return
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer raises it again
            self._error = error

    def _plan(self) -> None:
        loader, num = self.loader, self.num_valid
        try:
            self.rows = loader.data.rows(self.indices[:num])
        except ValueError as error:  # a file was cut short: it says which; here is for whom
            raise ValueError(f"{error} (wanted: {self._names(self.indices[:num])})") from None
        self.boxes: list[np.ndarray] = []
        self.draws: list[tuple[dict[str, np.ndarray], ...]] = []
        for number, view in enumerate(loader.views):
            keys = Keys(loader.seed, self.epoch, self.indices[:num], number)
            self.boxes.append(view.crop.boxes(keys, self.rows.height, self.rows.width))
            # Padding has draws too (those of index -1): ops are applied to whole batches.
            self.draws.append(view.draw(Keys(loader.seed, self.epoch, self.indices, number)))
        self.pixels = [self._memory(view.crop.size_px) for view in loader.views]
        self.outs = [pixels.numpy() for pixels in self.pixels]
        for out in self.outs:
            out[num:] = 0
        self.codes = np.zeros(num, np.int8)
        self._waiting = {i: min(i + _CHUNK_SAMPLES, num) for i in range(0, num, _CHUNK_SAMPLES)}

    def _memory(self, size_px: int) -> Tensor:
        # torch's pinned allocator is the ring: it hands a block out again only after the copies from it have ended.
        shape = (len(self.indices), size_px, size_px, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.loader._copies is not None)

    def _decode(self, start: int, stop: int) -> None:
        self._guard(self._decode_chunk, start, stop)
        with self._lock:
            del self._waiting[start]
            last = not self._waiting
        if last:
            self._finish()

    def _decode_chunk(self, start: int, stop: int) -> None:
        self.codes[start:stop] = self.loader.decoder.decode(
            Rows(*(column[start:stop] for column in self.rows)),
            [boxes[start:stop] for boxes in self.boxes],
            [out[start:stop] for out in self.outs],
        )

    def _finish(self) -> None:
        self._guard(self._assemble)
        self.done.set()

    def _assemble(self) -> None:
        indices = self.indices.astype(np.int64)
        labels = np.full(len(indices), PADDING, np.int64)
        labels[: self.num_valid] = self.rows.label
        bad = self._fill_bad(indices, labels)
        batch = Batch(
            images=[pixels.permute(0, 3, 1, 2) for pixels in self.pixels],
            draws=[
                tuple({key: torch.from_numpy(value) for key, value in draw.items()} for draw in draws)
                for draws in self.draws
            ],
            indices=torch.from_numpy(indices),
            labels=torch.from_numpy(labels),
            epoch=self.epoch,
            step=self.step,
            bad=bad,
        )
        if self.loader._copies is not None:
            # A thread begins on device 0, and leaving the stream below would make a context there.
            torch.cuda.set_device(self.loader.device)
            with torch.cuda.stream(self.loader._copies):
                batch = batch.to(self.loader.device)
                self._copied = torch.cuda.Event()
                self._copied.record()
        self._batch = batch

    def _fill_bad(self, indices: np.ndarray, labels: np.ndarray) -> list[BadSample]:
        """Bad slots are filled with the picture and label of the batch's next good one; their index becomes -1."""
        if not self.codes.any():
            return []
        loader = self.loader
        bad = []
        for i in np.flatnonzero(self.codes != GOOD):
            reason = reason_of(loader.decoder, int(self.codes[i]), self.rows, int(i))
            bad.append(BadSample(int(indices[i]), loader.data.name(int(indices[i])), reason))
            if loader.on_bad_sample == "raise":
                raise BadSampleError(str(bad[-1]))
        good = np.flatnonzero(self.codes == GOOD)
        if not len(good):
            raise BadSampleError(
                f"{bad[0]} (all {len(bad)} samples of epoch {self.epoch}, step {self.step} are bad)"
            )
        for i in np.flatnonzero(self.codes != GOOD):
            source = good[np.searchsorted(good, i) % len(good)]
            for out in self.outs:
                out[i] = out[source]
            labels[i] = labels[source]
            indices[i] = PADDING
        return bad
