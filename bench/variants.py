"""What bench/throughput.py measures: the recipe's own loader, step, and both, by decoder, number of views and stage."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import peers
from fastpsl.timing import samples_per_s
from fastpsl.backbones.choose import make_backbone
from fastpsl.distributed import World, choose_device
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.learner import Learner
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.beton import Beton
from fastpsl.pipelines.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from fastpsl.pipelines.workers import default_num_threads
from fastpsl.plan import Stage, make_plan
from fastpsl.sample import sample_paths
from fastpsl.schedules import Moment
from fastpsl.stage import Metrics, StageModule, Task, Trunk
from recipes import jigsaw_r50


class PuzzlePerView:
    """The jigsaw of each view, averaged, so that a step uses every view that the loader makes."""

    def __init__(self, task: Task):
        self.task, self.num_levels, self.views, self.head = task, task.num_levels, task.views, task.head

    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        losses = []
        for view, images in enumerate(inputs):
            one = replace(batch, images=[batch.images[view]], draws=[batch.draws[view]])
            loss, metrics = self.task.loss(trunk, head, [images], one)
            losses.append(loss)
        return sum(losses[1:], losses[0]) / len(losses), metrics


class Bench:
    """Data, loaders and learners at one setting; `loader_alone`, `step_alone` and `both` give samples/s of a timed region."""

    def __init__(
        self, data: str | None, stages: Sequence[str], backbone: str, device: str, precision: str, *,
        batch_size: int | None, num_threads: int | None, repeats: int | None, seconds: float | None,
    ):  # fmt: skip
        is_sample = data is None
        self.device = choose_device(device, 0)
        self.is_cuda = self.device.type == "cuda"
        values: dict[str, Any] = jigsaw_r50.PAPER | (jigsaw_r50.SAMPLE if is_sample else {})
        self.recipe = jigsaw_r50.Options(**(values | {"precision": precision}))
        self.precision = self.recipe.resolved_precision(self.device)
        self.path = data or str(sample_paths().train)
        self.data = Beton(self.path)
        self.batch_size = batch_size or (8 if is_sample else 256 if self.is_cuda else 32)
        self.num_threads = num_threads or default_num_threads()
        self.repeats = repeats or (3 if is_sample else 5)
        self.seconds = seconds or (0.2 if is_sample else 3.0)
        self.learners: dict[str, Learner] = {}
        self.level_views: dict[str, ViewSpec] = {}
        for name in stages:
            self._add_stage(name, backbone)
        self.epochs = itertools.count()

    def _add_stage(self, name: str, backbone_name: str) -> None:
        """As the trainer does: a stage's trunk, head and optimiser, in the recipe's precision."""
        torch.manual_seed(0)
        job = jigsaw_r50.build(self.recipe)
        stages = (*job.stages, *make_plan("end_to_end", self.recipe.stage_epochs))
        stage: Stage = next(stage for stage in stages if stage.name == name)
        backbone = make_backbone(backbone_name).to(self.device).to(memory_format=torch.channels_last)
        task = PuzzlePerView(job.task)
        channels: Sequence[int] = backbone.channels  # type: ignore[assignment]  # a module of no type of ours
        head = task.head(stage.level, channels[stage.last_block - 1]).to(self.device)
        module = StageModule(Trunk(backbone, stage), head, task)
        (view,) = task.views(stage.level)
        # The crop that every peer has too; what the step gets is of the recipe's size either way.
        view = replace(view, crop=RandomResizedCrop(view.crop.size_px))
        world = World(0, 1, 0, 1, self.device)
        optimiser = job.optimiser(module.learning_parameters())
        self.learners[name] = Learner(module, optimiser, [view], self.precision, world)
        self.level_views[name] = view
        self.lr = job.schedule(Moment(0, 1, 0, 1, 1))

    def work(self, kind: str, files: str) -> peers.Work:
        size_px = self.level_views[next(iter(self.level_views))].crop.size_px
        return peers.Work(
            kind, self.path, files, self.batch_size, self.num_threads, size_px, str(self.device)
        )  # fmt: skip

    def loader(self, decoder: str, num_views: int, stage: str) -> Loader:
        return Loader(
            self.data, [self.level_views[stage]] * num_views, batch_size=self.batch_size, decoder=decoder,
            num_threads=self.num_threads, device=self.device,
        )  # fmt: skip

    def loader_alone(self, decoder: str, num_views: int) -> float:
        with self.loader(decoder, num_views, next(iter(self.learners))) as loader:
            batches = self._batches(loader)
            rate = self._timed(lambda: len(next(batches).indices), min_calls=peers.AHEAD)
            batches.close()
        return rate

    def step_alone(self, num_views: int, stage: str) -> float:
        """The step on one batch of noise that lies on the device."""
        with self.loader("synthetic", num_views, stage) as loader:
            batch = next(self._batches(loader))
        return self._timed(lambda: self._step(stage, num_views, itertools.repeat(batch)))

    def both(self, decoder: str, num_views: int, stage: str) -> float:
        with self.loader(decoder, num_views, stage) as loader:
            batches = self._batches(loader)
            rate = self._timed(lambda: self._step(stage, num_views, batches))
            batches.close()
        return rate

    def _batches(self, loader: Loader) -> Generator[Batch, None, None]:
        """Batches without end, epoch after epoch, after as many as the loader may hold ready have been thrown away."""
        to_skip = peers.AHEAD
        for epoch in self.epochs:
            for batch in loader.epoch(epoch):
                if to_skip:
                    to_skip -= 1
                else:
                    yield batch

    def _step(self, stage: str, num_views: int, batches: Iterator[Batch]) -> int:
        learner = self.learners[stage]
        learner.views = [self.level_views[stage]] * num_views
        learner.step(batches, 1, self.lr)
        return self.batch_size

    def _timed(self, work: Callable[[], int], min_calls: int = 1) -> float:
        return samples_per_s(work, self.seconds, self.device, min_calls)
