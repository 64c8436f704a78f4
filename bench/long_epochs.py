"""Epochs of a small set that are long enough to be timed.

A loader starts anew at each epoch, and the step waits for its first batch. ImageNet's epochs have 5,000
batches of 256, those of 3,000 photos have 11, so that this start would weigh 450 times as much. The images of
such a set are drawn again, in another order and with other augmentations, until an epoch has MIN_STEPS
batches.
"""

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import numpy as np
from typing_extensions import override

from fastpsl.engine.stage_bench import StageBench, endless
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import epoch_order, numbered

MIN_STEPS = 60


class LongEpochs(StageBench):
    """A StageBench whose epochs have at least MIN_STEPS steps."""

    @override
    def batches(self, loader: Loader) -> Generator[Batch, None, None]:
        if loader.num_steps >= MIN_STEPS:
            return super().batches(loader)
        loader.num_steps = MIN_STEPS

        def epoch(number: int) -> Generator[Batch, None, None]:
            # Loader.epoch takes orders of the set's own length only.
            return loader._batches(number, 0, long_order(loader, number))

        long: Any = SimpleNamespace(prefetch_batches=loader.prefetch_batches, epoch=epoch)
        return endless(long, self._epochs)


def long_order(loader: Loader, epoch: int) -> np.ndarray:
    """Return the images of an epoch's MIN_STEPS steps: whole random orders of the set, one after the other.

    Args:
        loader: The loader of a small set.
        epoch: The epoch, from 0.

    Returns:
        int64 [MIN_STEPS * global batch], repeats distinguished (`numbered`), so that each has its own draws.
    """
    num = MIN_STEPS * loader.batch_size_per_rank * loader.world
    passes = -(-num // loader.num_samples)
    orders = [
        epoch_order(loader.seed, epoch * passes + number, loader.num_samples) for number in range(passes)
    ]
    return numbered(np.concatenate(orders)[:num])
