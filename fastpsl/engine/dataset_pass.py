"""Passes over data outside the steps: labels for the training images, predictions of validation images."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastpsl.console.screen import Progress
from fastpsl.engine.distributed import World
from fastpsl.engine.predictions import Predictions, predict
from fastpsl.engine.run import Run
from fastpsl.engine.seed import torch_seed
from fastpsl.engine.stage_blocks import StageBlocks, run_blocks
from fastpsl.engine.train_step import TrainStep
from fastpsl.models.weights import sha256_of_tensors
from fastpsl.pipelines.augment import choose_augment
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec


class PassStopped(Exception):
    """An interruption of a pass by a signal; the trainer then saves the run as it was before the pass."""


@dataclass(frozen=True)
class EpochContext:
    """The operations that a task may use in `start_epoch` and `end_stage`.

    If a signal stops a pass, `start_epoch` is called again on resume, so it must repeat its changes exactly.

    Attributes:
        run: The run.
        train_step: The stage's training step.
        epoch: The number of the epoch, counted over all stages.
        first: Whether it is the stage's first epoch.
        draws_epoch: The epoch number that seeds the random numbers of passes. No epoch of training has it.
    """

    run: Run
    train_step: TrainStep
    epoch: int
    first: bool
    draws_epoch: int

    @property
    def data(self) -> Dataset:
        """The training data."""
        return self.run.data.train

    @property
    def world(self) -> World:
        """This process's place among the ranks: its device, rank and the number of ranks."""
        return self.run.world

    @property
    def head(self) -> nn.Module:
        """The stage's head."""
        return self.train_step.module.head

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """The stage's optimizer."""
        return self.train_step.optimiser

    def forward_dataset(
        self, view: ViewSpec, function: Callable[[Tensor], Tensor], *, training: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over this rank's share of the training samples, each once and in the data's order.

        Gradients are off. Weights, running statistics and modes are unchanged afterwards.

        Args:
            view: The view of each sample that the network reads.
            function: Maps features of the stage's last block, [B, C, h, w], to [B, ...].
            training: Whether to use the dropout and batch statistics of a training step. Otherwise, the pass
                runs in eval mode with rank 0's running statistics.

        Yields:
            For each batch, the indices, int64 [B], and function(features), [B, ...]. Padding and bad samples
            have index -1.

        Raises:
            PassStopped: A signal arrived.
        """
        run, train_step, blocks = self.run, self.train_step, self.train_step.module.blocks
        augment = choose_augment(run.options.augment_backend, (view,), run.world.device)
        train_step.release()  # the pass has the memory of the captured steps
        with (
            run.reporter.off_the_clock(),
            torch.no_grad(),
            undisturbed(train_step.module, run.world, training),
            run_eagerly(blocks),
            run.data.loader(self.data, [view], train=False) as loader,
            contextlib.closing(loader.epoch(self.draws_epoch)) as batches,
            self._progress("images", self.data.num_samples) as progress,
        ):
            for number, batch in enumerate(run.reporter.watched(batches), start=1):
                (images,) = augment.inputs(batch, [view], train_step.dtype)
                if training and number == loader.num_steps:
                    images = _without_padding(images, batch)
                seed = torch_seed(run.options.seed, self.draws_epoch, number, run.world.rank)
                torch.manual_seed(seed)  # dropout
                with train_step.autocast():
                    outputs = function(blocks(images))
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
        """Write predictions.npz in the run's folder, with the predictions for every validation image.

        fastpsl/engine/predictions.py describes the file. Gradients are off, and modules run in eval mode with
        rank 0's running statistics.

        Args:
            predict_images: Predicts the validation images of a range, this rank's share.
            science: The result of `val_science`. Parts of an interrupted pass are used again if they
                have the same.

        Raises:
            PassStopped: A signal arrived.
        """
        run, train_step = self.run, self.train_step
        assert run.data.val is not None
        num = run.data.val.num_samples
        with (
            run.reporter.off_the_clock(),
            torch.no_grad(),
            undisturbed(train_step.module, run.world),
            run_eagerly(train_step.module.blocks),
            self._progress("validation images", num) as progress,
        ):

            def after_image(done: int) -> bool:
                if progress:
                    progress.update(min(done * run.world.size, num), 0)
                return run.stop_signal.after_step().stop

            path = predict(run.folder, num, predict_images, run.world, science, after_image)
        if path is None:
            raise PassStopped

    def val_science(self, **more: Any) -> dict[str, Any]:
        """Return what predictions depend on: weights, validation data and `more`. Only rank 0's is used.

        Args:
            **more: Further plain values.
        """
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
        with screen.aside(), Progress(what, num, "a pass") as progress:
            yield progress
        seconds = time.perf_counter() - started
        self.run.reporter.log(f"a pass over {num:,} {what} took {seconds:.1f} s")


def _without_padding(images: Tensor, batch: Batch) -> Tensor:
    """Replace padding by copies of the batch's images, so that it does not affect the batch statistics."""
    num_valid = int((batch.indices >= 0).sum())
    if num_valid in (0, len(images)):
        return images
    order = torch.argsort((batch.indices < 0).int(), stable=True)[:num_valid]
    places = torch.arange(len(images), device=images.device)
    chosen = torch.where(batch.indices >= 0, places, order[places % num_valid])
    return images[chosen].contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def undisturbed(module: nn.Module, world: World, training: bool = False) -> Iterator[None]:
    """Set eval mode (or train mode) within the context, and restore modes and buffers at its end.

    Within the context, all ranks have rank 0's running statistics, because each rank's own differ since the
    last step.
    """
    modes = [(part, part.training) for part in module.modules()]
    buffers: Sequence[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train(training)
    try:
        if world.size > 1:
            for buffer, _ in buffers:
                dist.broadcast(buffer, src=0)
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def run_eagerly(blocks: StageBlocks) -> Iterator[None]:
    """Run the blocks eagerly, because a pass without gradients would compile compiled blocks once more."""
    runner, blocks.runner = blocks.runner, run_blocks
    try:
        yield
    finally:
        blocks.runner = runner
