"""Whole pictures of their own sizes with what is annotated on them, in batches: for detection and segmentation.

They are few and large, and the step is long: threads read them, each by `read`. The order, its split over
ranks and the place to go on from are the Loader's (order.py).
"""

import functools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from fastpsl.pipelines.batch import BadSample, BadSampleError
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.decoders.torchvision import TorchvisionDecoder
from fastpsl.pipelines.loader.order import epoch_order, num_steps, step_indices
from fastpsl.pipelines.loader.workers import Workers, default_num_threads
from fastpsl.pipelines.views import ViewSpec

AnnotatedImage = tuple[Tensor, dict[str, Tensor]]
"""A picture, uint8 [3, h, w], and what is known of it."""


@final
@dataclass
class AnnotatedBatch:
    """One rank's part of a step, on the device.

    images: uint8 [3, h, w] each. targets: of each image, as `read` gives them. indices: int64 [B], in the data set. labels: -1 [B].
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    indices: Tensor
    labels: Tensor
    epoch: int
    step: int
    bad: list[BadSample] = field(default_factory=list)

    def inputs(self, views: Sequence[ViewSpec], dtype: torch.dtype) -> list[Tensor]:
        """None: the pictures are no views."""
        assert not views
        return []

    def first(self, num: int) -> "AnnotatedBatch":
        """Copy the first `num` pictures (all, where there are fewer) with their targets to the host, to be shown to people."""
        return AnnotatedBatch(
            [image.cpu() for image in self.images[:num]],
            [{key: value.cpu() for key, value in target.items()} for target in self.targets[:num]],
            self.indices[:num].cpu(),
            self.labels[:num].cpu(),
            self.epoch,
            self.step,
            self.bad,
        )


@final
class AnnotatedLoader:
    """Batches of `batch_size` (of a rank) in the order of (seed, epoch), the last partial global batch of an epoch dropped.

    read: (index, epoch) → the picture and its annotations, in threads; a pure function, so that any position can be reached at once.
    ValueError where there are fewer samples than a global batch; `epoch` raises what `read` does, and TimeoutError.
    """

    decoder_name = "torchvision"
    decoder_reason = "whole pictures"
    views: tuple[ViewSpec, ...] = ()

    def __init__(
        self,
        read: Callable[[int, int], AnnotatedImage],
        num_samples: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        num_threads: int | None = None,
        device: torch.device | None = None,
        prefetch_batches: int = 4,
        timeout_s: float = 120.0,
    ) -> None:
        if num_samples < batch_size * world:
            raise ValueError(
                f"{num_samples} samples are fewer than one global batch of {batch_size * world}; lower the batch size or use more data"
            )
        self.read, self.num_samples, self.batch_size, self.seed = read, num_samples, batch_size, seed
        self.rank, self.world, self.device = rank, world, device or torch.device("cpu")
        self.prefetch_batches, self.timeout_s = prefetch_batches, timeout_s
        self.num_steps = num_steps(num_samples, batch_size * world, train=True)
        self._workers = Workers(num_threads or default_num_threads(), "pictures")

    def epoch(
        self, epoch: int, first_step: int = 0, order: np.ndarray | None = None
    ) -> Generator[AnnotatedBatch, None, None]:
        """Batches of an epoch from `first_step` on; nothing before it is read. Leaving it early cancels what has not begun."""
        assert order is None and 0 <= first_step <= self.num_steps, first_step
        if self._workers.closed:
            raise ValueError("the loader is closed; make a new one")
        return self._batches(epoch, first_step)

    def _batches(self, epoch: int, first_step: int) -> Generator[AnnotatedBatch, None, None]:
        places = epoch_order(self.seed, epoch, self.num_samples)
        under_way: deque[tuple[int, np.ndarray, list[Future[AnnotatedImage]]]] = deque()
        steps = iter(range(first_step, self.num_steps))

        def start_readings() -> None:
            while len(under_way) < self.prefetch_batches and (step := next(steps, None)) is not None:
                indices = step_indices(places, step, self.batch_size, self.rank, self.world)
                readings = [Future[AnnotatedImage]() for _ in indices]
                for index, reading in zip(indices.tolist(), readings, strict=True):
                    self._workers.submit(self._read, index, epoch, reading)
                under_way.append((step, indices, readings))

        try:
            start_readings()
            while under_way:
                step, indices, readings = under_way[0]
                batch = self._batch(epoch, step, indices, [self._wait(reading) for reading in readings])
                under_way.popleft()
                start_readings()  # before the consumer goes to work: the batch in its hands does not count
                yield batch
        finally:
            for _, _, readings in under_way:
                for reading in readings:
                    reading.cancel()

    def _read(self, index: int, epoch: int, reading: Future[AnnotatedImage]) -> None:
        if not reading.set_running_or_notify_cancel():
            return
        try:
            reading.set_result(self.read(index, epoch))
        except BaseException as error:  # noqa: BLE001  (raised in the consumer)
            reading.set_exception(error)

    def _wait(self, reading: Future[AnnotatedImage]) -> AnnotatedImage:
        done, _ = wait([reading], self.timeout_s)
        if not done:
            self.close(0.0)
            raise TimeoutError(
                f"no picture within {self.timeout_s:g} s: look at the storage, or raise --timeout-s"
            )
        return reading.result()

    def _batch(
        self, epoch: int, step: int, indices: np.ndarray, read: list[AnnotatedImage]
    ) -> AnnotatedBatch:
        def move(tensor: Tensor) -> Tensor:
            if self.device.type != "cuda":
                return tensor
            return tensor.pin_memory().to(self.device, non_blocking=True)

        return AnnotatedBatch(
            images=[move(image) for image, _ in read],
            targets=[{name: move(value) for name, value in target.items()} for _, target in read],
            indices=move(torch.from_numpy(indices)),
            labels=torch.full((len(read),), -1, device=self.device),
            epoch=epoch,
            step=step,
        )

    def close(self, limit_s: float | None = None) -> None:
        self._workers.close(self.timeout_s if limit_s is None else limit_s)

    def __enter__(self) -> "AnnotatedLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_decoder = functools.cache(TorchvisionDecoder)


def read_picture(data: Dataset, index: int) -> Tensor:
    """Sample `index` whole and upright, uint8 [3, h, w]. BadSampleError, which names it, where it cannot be decoded."""
    code, picture = _decoder().picture(data.rows(np.array([index])), 0)
    if picture is None:
        raise BadSampleError(f"{data.name(index)}: {_decoder().reasons[code]}")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
