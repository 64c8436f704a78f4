"""EpochContext over the training data that are no steps: what a task labels it by (`Task.start_epoch`)."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastpsl.engine.block_runner import run_blocks
from fastpsl.engine.console import Progress
from fastpsl.engine.distributed import World
from fastpsl.engine.predictions import Predictions, predict
from fastpsl.engine.run import Run
from fastpsl.engine.seed import torch_seed
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trunk import Trunk
from fastpsl.models.weights import sha256_of_tensors
from fastpsl.pipelines.augment import choose_augment
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.views import ViewSpec


class PassStopped(Exception):
    """A signal came in mid-pass. The trainer's to catch: it saves the run as it was before the pass."""


@dataclass(frozen=True)
class EpochContext:
    """What a task may do before an epoch's first step. `start_epoch` is called again where a pass was stopped, so what it changes must
    be the same then.

    epoch: counted over all stages. first: whether it is the stage's first. draws: the number of the epoch whose draws passes
    have, which no epoch of training has.
    """

    run: Run
    train_step: TrainStep
    epoch: int
    first: bool
    draws: int

    @property
    def data(self) -> Dataset:
        return self.run.data.train

    @property
    def world(self) -> World:
        return self.run.world

    @property
    def head(self) -> nn.Module:
        return self.train_step.module.head

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        return self.train_step.optimiser

    def forward_dataset(
        self, view: ViewSpec, function: Callable[[Tensor], Tensor], *, training: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every training sample once, in the data's order, this rank's share: (indices int64 [B], function(features) [B, ...]) a batch.

        features: of the stage's last block, for `view`. Padding and samples that cannot be decoded have index -1. Without
        gradients; weights, running statistics and modes stay as they are. training=False: in eval mode, by rank 0's running
        statistics; True: with the dropout and the batch statistics of a training step.
        """
        run, train_step, trunk = self.run, self.train_step, self.train_step.module.trunk
        augment = choose_augment(run.options.augment, (view,), run.world.device)
        with (
            run.reporter.off_the_clock(),
            torch.no_grad(),
            undisturbed(train_step.module, run.world, training),
            run_plainly(trunk),
            run.data.loader(self.data, [view], train=False) as loader,
            contextlib.closing(loader.epoch(self.draws)) as batches,
            self._progress("images", self.data.num_samples) as progress,
        ):
            for number, batch in enumerate(run.reporter.watched(batches), start=1):
                (images,) = augment.inputs(batch, [view], train_step.dtype)
                if training and number == loader.num_steps:
                    images = _without_padding(images, batch)
                torch.manual_seed(torch_seed(run.options.seed, self.draws, number, run.world.rank))  # dropout
                with train_step.autocast():
                    outputs = function(trunk(images))
                yield batch.indices, outputs
                if progress:
                    progress.update(
                        min(number * len(batch.indices) * run.world.size, self.data.num_samples), 0
                    )
                if run.stop_signal.after_step().stop:
                    raise PassStopped

    def predict(
        self, predict_images: Callable[[range], Iterator[Predictions]], science: Mapping[str, Any]
    ) -> None:
        """predictions.npz in the run's folder: `predict_images` of every held-out image (see `predictions.predict`), this rank's share.

        Without gradients, in eval mode, by rank 0's running statistics. science: `held_out_science`, of which parts of an interrupted pass
        must be. PassStopped where a signal came.
        """
        run, train_step = self.run, self.train_step
        assert run.data.val is not None
        num = run.data.val.num_samples
        with (
            run.reporter.off_the_clock(),
            torch.no_grad(),
            undisturbed(train_step.module, run.world),
            run_plainly(train_step.module.trunk),
            self._progress("held-out images", num) as progress,
        ):

            def after_image(done: int) -> bool:
                if progress:
                    progress.update(min(done * run.world.size, num), 0)
                return run.stop_signal.after_step().stop

            made = predict(run.folder, num, predict_images, run.world, science, after_image)
        if made is None:
            raise PassStopped

    def held_out_science(self, **more: Any) -> dict[str, Any]:
        """What predictions depend on: the learned weights, the held-out data, and `more`. Rank 0's is the true one."""
        assert self.run.data.val is not None
        weights = sha256_of_tensors(self.train_step.module.state_dict())
        return {"weights": weights, "data": self.run.data.val.digest()} | more

    @contextlib.contextmanager
    def _progress(self, what: str, num: int) -> Iterator[Progress | None]:
        self.run.stop_signal.other_pace()
        screen, started = self.run.reporter.screen, time.perf_counter()
        if screen is None:
            yield None
            return
        screen.close()
        with Progress(what, num, "a pass") as progress:
            yield progress
        seconds = time.perf_counter() - started
        self.run.reporter.say(f"a pass over {num:,} {what} took {seconds:.1f} s")


def _without_padding(images: Tensor, batch: Batch) -> Tensor:
    """The batch's own images again in the place of its padding, which must not count in its statistics."""
    num_valid = int((batch.indices >= 0).sum())
    if num_valid in (0, len(images)):
        return images
    order = torch.argsort((batch.indices < 0).int(), stable=True)[:num_valid]
    places = torch.arange(len(images), device=images.device)
    chosen = torch.where(batch.indices >= 0, places, order[places % num_valid])
    return images[chosen].contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def undisturbed(module: nn.Module, world: World, training: bool = False) -> Iterator[None]:
    """In train mode, or in eval mode with rank 0's running statistics (each rank has its own since the last step); then all as it was."""
    modes = [(part, part.training) for part in module.modules()]
    own: Sequence[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train(training)
    try:
        if world.size > 1:
            for buffer, _ in own:
                dist.broadcast(buffer, src=0)
        yield
    finally:
        for buffer, value in own:
            buffer.copy_(value)
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def run_plainly(trunk: Trunk) -> Iterator[None]:
    """Not by what was compiled for steps, which would be compiled once more for a pass without gradients."""
    runner, trunk.runner = trunk.runner, run_blocks
    try:
        yield
    finally:
        trunk.runner = runner
