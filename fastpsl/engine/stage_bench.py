"""Speed of a recipe's stage: of its loader alone, of its step on synthetic data, and of both together."""

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import torch

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.gpu import milliseconds, samples_per_s
from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.run import open_loader
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.augment import Augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec


def endless(loader: Loader, epochs: Iterator[int]) -> Generator[Batch, None, None]:
    """Yield the batches of these epochs, without the first ones that the loader may have prefetched.

    The loader starts at the first request, so request a batch before a timed region.
    """
    to_skip = loader.prefetch_batches + 1
    for epoch in epochs:
        for batch in loader.epoch(epoch):
            if to_skip:
                to_skip -= 1
            else:
                yield batch


def loader_rate(
    loader: Loader, epochs: Iterator[int], seconds: float, min_calls: int = 1
) -> tuple[float, float]:
    """Return the images/s that arrive on the device, before augmentation, and the cores that are busy."""
    batches = endless(loader, epochs)
    next(batches)
    min_calls = max(min_calls, loader.prefetch_batches + 1)
    rate = rate_and_cores(lambda: len(next(batches).indices), seconds, loader.device, min_calls)
    batches.close()
    return rate


def rate_and_cores(
    work: Callable[[], int], seconds: float, device: torch.device, min_calls: int
) -> tuple[float, float]:
    """Return `samples_per_s`, and CPU seconds per second meanwhile, over all threads of this process."""
    cpu_s, started = time.process_time(), time.perf_counter()
    rate = samples_per_s(work, seconds, device, min_calls)
    return rate, (time.process_time() - cpu_s) / (time.perf_counter() - started)


class StageBench:
    """A benchmark of stage `number` (from 0) on this rank's share of the batch, after `place_backbone`.

    Rates are images of the data set per second. A timed region lasts at least `seconds` and `min_steps`.
    With several ranks, use seconds=0, because all ranks must make the same number of steps.
    """

    def __init__(
        self, experiment: Experiment, number: int, options: TrainingOptions, data: Dataset, world: World, *,
        seconds: float = 3.0, min_steps: int = 1, views: Sequence[ViewSpec] | None = None,
    ):  # fmt: skip
        self.experiment, self.options, self.data, self.world = experiment, options, data, world
        self.seconds, self.min_steps = seconds, min_steps
        self.cores_used = 0.0
        """CPU seconds per second in the last timed region, over all threads of this process."""
        self.stage = experiment.stages[number]
        experiment.task.check_data(data, options.batch_of(self.stage))
        self.train_step = make_train_step(experiment, number, options, world)
        self.views = tuple(self.train_step.views if views is None else views)
        self.train_step.views = self.views
        self.batch_size = options.rank_batch(world.size, options.batch_of(self.stage))
        self.lr = experiment.schedule(Moment(0, 1, 0, self.stage.epochs, self.stage.epochs, number))
        self._epochs = itertools.count()
        self._synthetic: Batch | None = None
        self._warmed_up = False

    @property
    def is_captured(self) -> bool:
        """Whether steps have been captured."""
        graphs = self.train_step._graphs
        return graphs is not None and bool(graphs._replays)

    def loader(self, decoder: str | None = None, data: Dataset | None = None) -> Loader:
        """Return the training's loader, with another `decoder` or other `data` if given."""
        options = replace(self.options, decoder=decoder or self.options.decoder)  # type: ignore[arg-type]
        if data is not None:  # synthetic data has no pages, which the quasi-random order needs
            options = replace(options, order="random")
        size = self.batch_size
        return open_loader(
            data or self.data, self.views, options, self.world, batch_size_per_rank=size, train=True
        )

    def loader_alone(self, decoder: str | None = None) -> float:
        """Return the samples per second that arrive on the device, before augmentation."""
        with self.loader(decoder) as loader:
            rate, self.cores_used = loader_rate(loader, self._epochs, self.seconds, self.min_steps)
        return rate

    def step_alone(self) -> float:
        """Return the samples per second of the step with its augmentation, on one batch of noise."""
        batches = itertools.repeat(self.synthetic_batch())
        return self._rate(lambda: self._step(batches))

    def both(self, decoder: str | None = None) -> float:
        """Return the samples per second of the step on batches that the loader prepares meanwhile."""
        with self.loader(decoder) as loader:
            batches = self.batches(loader)
            self._step(batches)
            rate = self._rate(lambda: self._step(batches))
            batches.close()
        return rate

    def augment_ms(self, repeats: int = 10, augment: Augment | None = None) -> list[float]:
        """Return the milliseconds of augmenting a batch, by `augment` if given or else by the stage's one."""
        batch, dtype = self.synthetic_batch(), self.train_step.dtype
        augment = augment or self.train_step.augment
        with torch.no_grad():
            return milliseconds(lambda: augment.inputs(batch, self.views, dtype), self.world.device, repeats)

    def step_ms(self, repeats: int = 10) -> list[float]:
        """Return the milliseconds of a step on noise, including its augmentation."""
        batches = itertools.repeat(self.synthetic_batch())
        return milliseconds(lambda: self._step(batches), self.world.device, repeats)

    def synthetic_batch(self) -> Batch:
        """Return a batch of noise on the device, the same at each call."""
        if self._synthetic is None:
            data = Synthetic(self.data.num_samples, max(1, self.data.num_classes))
            with self.loader("synthetic", data) as loader:
                batches = loader.epoch(0)
                self._synthetic = next(batches)
                batches.close()
        return self._synthetic

    def batches(self, loader: Loader) -> Generator[Batch, None, None]:
        """Return `endless` batches of other epochs for every loader, so none profits from earlier reads."""
        return endless(loader, self._epochs)

    def _step(self, batches: Iterator[Batch]) -> int:
        self.warm_up()
        accumulate = self.options.accumulate
        self.train_step.step(itertools.islice(batches, accumulate), self.lr, accumulate)
        return self.batch_size * accumulate

    def warm_up(self) -> None:
        """Run, once, what precedes a stage's usual steps: passes that fill MoCo's queue, and a capture."""
        if self._warmed_up:
            return
        self._warmed_up = True
        for _ in range(self.experiment.task.num_warm_up_batches(self.stage) or 0):
            self.train_step.warm_up(self.experiment.task.warm_up, self.synthetic_batch())
        for _ in range(self.train_step.num_first_steps):
            self._step(itertools.repeat(self.synthetic_batch()))

    def _rate(self, work: Callable[[], int]) -> float:
        rate, self.cores_used = rate_and_cores(work, self.seconds, self.world.device, self.min_steps)
        return rate
