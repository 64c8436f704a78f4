"""One stage of a recipe, measured: its loader alone, its step on synthetic data, both together. The learner is the trainer's."""

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import torch

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.options import RunOptions
from fastpsl.engine.run_data import open_loader
from fastpsl.engine.timing import milliseconds, samples_per_s
from fastpsl.pipelines.augment import Augment
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.decoders.synthetic import Synthetic
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec


def endless(loader: Loader, epochs: Iterator[int]) -> Generator[Batch, None, None]:
    """Batches of these epochs, without as many of the first as the loader may hold ready.

    The loader starts when the first is asked for: ask for one before a timed region.
    """
    to_skip = loader.prefetch_batches + 1
    for epoch in epochs:
        for batch in loader.epoch(epoch):
            if to_skip:
                to_skip -= 1
            else:
                yield batch


class StageBench:
    """Stage `number` (from 0) of `experiment`, after `trainer.place_backbone`, on this rank's share of the batch.

    Rates are samples of the data set a second, of all of a timed region of `seconds` and of `min_steps` (with several ranks give
    seconds=0: all must make as many). views: what the loader makes, where it is not the task's own (as many, of the same sizes).
    """

    def __init__(
        self,
        experiment: Experiment,
        number: int,
        options: RunOptions,
        data: Dataset,
        world: World,
        *,
        seconds: float = 3.0,
        min_steps: int = 1,
        views: Sequence[ViewSpec] | None = None,
    ):
        self.experiment, self.options, self.data, self.world = experiment, options, data, world
        self.seconds, self.min_steps = seconds, min_steps
        self.cores_used = 0.0
        """Seconds of CPU time a second in the last timed region, of all threads of this process."""
        self.stage = experiment.stages[number]
        experiment.task.check_data(data, options.batch_size)
        self.train_step = make_train_step(experiment, number, options, world)
        self.views = tuple(self.train_step.views if views is None else views)
        self.train_step.views = self.views
        each = experiment.task.images_per_sample(self.stage.level)
        self.batch_size = options.rank_batch(world.size) // each
        self.lr = experiment.schedule(Moment(0, 1, 0, self.stage.epochs, self.stage.epochs))
        # More than the loader holds ready.
        self.ahead = options.prefetch_batches + 1
        self._epochs = itertools.count()
        self._synthetic: Batch | None = None
        self._warmed_up = False

    def loader(self, decoder: str | None = None, data: Dataset | None = None) -> Loader:
        """As training has it; `decoder` in place of the options' one."""
        options = replace(self.options, decoder=decoder or self.options.decoder)
        if data is not None:  # it has no pages
            options = replace(options, order="random")
        return open_loader(
            data or self.data, self.views, options, self.world, batch_size=self.batch_size, train=True
        )

    def loader_alone(self, decoder: str | None = None) -> float:
        """Samples/s of batches on the device, ready to be augmented."""
        with self.loader(decoder) as loader:
            batches = self.batches(loader)
            next(batches)
            rate = self._rate(lambda: len(next(batches).indices), self.ahead)
            batches.close()
        return rate

    def step_alone(self) -> float:
        """Samples/s of the step, augmentation included, on one batch of noise that lies on the device."""
        batches = itertools.repeat(self.synthetic_batch())
        return self._rate(lambda: self._step(batches))

    def both(self, decoder: str | None = None) -> float:
        """Samples/s of the step on what the loader makes meanwhile."""
        with self.loader(decoder) as loader:
            batches = self.batches(loader)
            self._step(batches)
            rate = self._rate(lambda: self._step(batches))
            batches.close()
        return rate

    def augment_ms(self, repeats: int = 10, augment: Augment | None = None) -> list[float]:
        """Milliseconds of a batch's augmentation alone; `augment` in place of the stage's one."""
        batch, dtype = self.synthetic_batch(), self.train_step.dtype
        augment = augment or self.train_step.augment
        with torch.no_grad():
            return milliseconds(lambda: augment.inputs(batch, self.views, dtype), self.world.device, repeats)

    def step_ms(self, repeats: int = 10) -> list[float]:
        """Milliseconds of a step on noise, augmentation included."""
        batches = itertools.repeat(self.synthetic_batch())
        return milliseconds(lambda: self._step(batches), self.world.device, repeats)

    def synthetic_batch(self) -> Batch:
        """The same batch of noise each time, on the device."""
        if self._synthetic is None:
            data = Synthetic(self.data.num_samples, max(1, self.data.num_classes))
            with self.loader("synthetic", data) as loader:
                batches = loader.epoch(0)
                self._synthetic = next(batches)
                batches.close()
        return self._synthetic

    def batches(self, loader: Loader) -> Generator[Batch, None, None]:
        """`endless`, in other epochs for every loader: what an earlier one has read is no help."""
        return endless(loader, self._epochs)

    def _step(self, batches: Iterator[Batch]) -> int:
        self.warm_up()
        accumulate = self.options.accumulate
        for number in range(1, accumulate + 1):
            self.train_step.backward(next(batches), accumulate, is_last=number == accumulate)
        self.train_step.update(self.lr)
        self.experiment.task.after_step()
        return self.batch_size * accumulate

    def warm_up(self) -> None:
        """Once, the passes that a task asks for before a stage's first step, such as those that fill MoCo's queue."""
        if self._warmed_up:
            return
        self._warmed_up = True
        for _ in range(self.experiment.task.num_warm_up_batches(self.stage) or 0):
            self.train_step.warm_up(self.experiment.task.warm_up, self.synthetic_batch())

    def _rate(self, work: Callable[[], int], min_calls: int = 1) -> float:
        cpu_s, started = time.process_time(), time.perf_counter()
        rate = samples_per_s(work, self.seconds, self.world.device, max(min_calls, self.min_steps))
        self.cores_used = (time.process_time() - cpu_s) / (time.perf_counter() - started)
        return rate
