"""A loader of whole images in their own sizes with their annotations, for detection and segmentation.

Images are few and large and the step is long, so threads call a plain function for each. The order, its split
over ranks and resuming are as in `Loader` (order.py).
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor

from fastpsl.files.atomic import Uncopyable
from fastpsl.files.workers import Workers, default_num_threads
from fastpsl.pipelines.decoders.choose import reason_of
from fastpsl.pipelines.decoders.memory import to_device
from fastpsl.pipelines.decoders.whole_images import decode_whole
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import BadSample, BadSampleError
from fastpsl.pipelines.loader.order import num_steps, step_indices, training_order
from fastpsl.pipelines.views import ViewSpec

AnnotatedImage = tuple[Tensor, dict[str, Tensor]]
"""An image, uint8 [3, h, w], and its annotations by name."""


@final
@dataclass
class AnnotatedBatch:
    """One rank's part of a step, on the device."""

    images: list[Tensor]  # B of them, uint8 [3, h, w]
    targets: list[dict[str, Tensor]]  # the annotations of each image, as the loader's `read` returns them
    indices: Tensor  # of the dataset, int64 [B]
    labels: Tensor  # -1 for each image, int64 [B]
    epoch: int  # from 0
    step: int  # in the epoch, from 0
    bad: list[BadSample] = field(default_factory=list)  # always empty; a sample that cannot be read raises
    # The tensors that a task's `loss` leaves for its `after_step`, by name.
    extra: dict[str, Tensor] = field(default_factory=dict)

    def inputs(self, views: Sequence[ViewSpec], dtype: torch.dtype) -> list[Tensor]:
        """Return an empty list, because whole images are not views."""
        assert not views
        return []

    def with_extra(self, variant: int, extra: Mapping[str, Tensor]) -> "AnnotatedBatch":
        """Return this batch, to which no task adds anything."""
        assert not variant
        assert not extra
        return self

    def of_step(self) -> "AnnotatedBatch":
        """Return this batch, because steps of whole images are never captured."""
        return self

    def first(self, num: int) -> "AnnotatedBatch":
        """Copy the first `num` images (or all, if fewer) and their targets to the host, to be displayed."""
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
class AnnotatedLoader(Uncopyable):
    """A source of one rank's shuffled batches of annotated images, in the order of (seed, epoch).

    The last partial global batch of an epoch is dropped. `read` returns the image and its annotations for
    (index, epoch). It is called in threads and must be a pure function, so that an epoch can start at any
    step. The other arguments are those of `Loader`, and `timeout_s` is the limit for one image.
    """

    decoder_name = "pillow"
    decoder_reason = "whole images"
    views: tuple[ViewSpec, ...] = ()

    def __init__(
        self, read: Callable[[int, int], AnnotatedImage], num_samples: int, *, batch_size_per_rank: int,
        seed: int = 0, rank: int = 0, world: int = 1, num_threads: int | None = None,
        device: torch.device | None = None, prefetch_batches: int = 4, timeout_s: float = 120.0,
    ) -> None:  # fmt: skip
        if num_samples < batch_size_per_rank * world:
            raise ValueError(
                f"{num_samples} samples are fewer than one global batch of {batch_size_per_rank * world}; "
                "lower the batch size or use more data"
            )
        self.read, self.num_samples, self.seed = read, num_samples, seed
        self.batch_size_per_rank = batch_size_per_rank
        self.rank, self.world, self.device = rank, world, device or torch.device("cpu")
        self.prefetch_batches, self.timeout_s = prefetch_batches, timeout_s
        self.num_steps = num_steps(num_samples, batch_size_per_rank * world, train=True)
        self._workers = Workers(num_threads or default_num_threads(), "images")

    def epoch(
        self, epoch: int, first_step: int = 0, order: np.ndarray | None = None
    ) -> Generator[AnnotatedBatch, None, None]:
        """Return an iterator over the batches of an epoch, which may be left early."""
        assert order is None and 0 <= first_step <= self.num_steps, first_step
        if self._workers.closed:
            raise ValueError(
                "the loader is closed, or was made before this process was forked; make a new one"
            )
        return self._batches(epoch, first_step)

    def _batches(self, epoch: int, first_step: int) -> Generator[AnnotatedBatch, None, None]:
        places = training_order(self.seed, epoch, self.num_samples)
        under_way: deque[tuple[int, np.ndarray, list[Future[AnnotatedImage]]]] = deque()
        steps = iter(range(first_step, self.num_steps))

        def start_readings() -> None:
            while len(under_way) < self.prefetch_batches and (step := next(steps, None)) is not None:
                indices = step_indices(places, step, self.batch_size_per_rank, self.rank, self.world)
                readings = [self._workers.call(self.read, index, epoch) for index in indices.tolist()]
                under_way.append((step, indices, readings))

        try:
            start_readings()
            while under_way:
                step, indices, readings = under_way[0]
                batch = self._batch(epoch, step, indices, [self._wait(reading) for reading in readings])
                under_way.popleft()
                start_readings()  # before the yield: the consumer's batch does not count as prefetched
                yield batch
        finally:
            for _, _, readings in under_way:
                for reading in readings:
                    reading.cancel()

    def _wait(self, reading: Future[AnnotatedImage]) -> AnnotatedImage:
        done, _ = wait([reading], self.timeout_s)
        if not done:
            self.close(0.0)
            raise TimeoutError(
                f"no image within {self.timeout_s:g} s: look at the storage, or raise --timeout-s"
            )
        return reading.result()

    def _batch(
        self, epoch: int, step: int, indices: np.ndarray, samples: list[AnnotatedImage]
    ) -> AnnotatedBatch:
        move = partial(to_device, device=self.device)
        return AnnotatedBatch(
            images=[move(image) for image, _ in samples],
            targets=[{name: move(value) for name, value in target.items()} for _, target in samples],
            indices=move(torch.from_numpy(indices)),
            labels=torch.full((len(samples),), -1, device=self.device),
            epoch=epoch,
            step=step,
        )

    def close(self, limit_s: float | None = None) -> None:
        self._workers.close(self.timeout_s if limit_s is None else limit_s)

    def __enter__(self) -> "AnnotatedLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_image(data: Dataset, index: int) -> Tensor:
    """Return a whole sample, upright, uint8 [3, h, w]; raise BadSampleError if it cannot be decoded."""
    indices = np.array([index])
    data.wait(indices)
    rows = data.rows(indices)
    code, image = decode_whole(rows, 0)
    if image is None:
        raise BadSampleError(f"{data.name(index)}: {reason_of(code, rows, 0)}")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
