"""Passes over data outside the steps: labels for the training images, predictions of validation images.

Each image is predicted alone, so that its predictions depend on no other. Images are divided into parts of
`PART`, and a part is one file of one rank. Complete parts are joined to predictions.npz, in the order of the
images. On the CPU, the bytes are equal for equal weights, decoder and threads, for any number of ranks.
"""

import contextlib
import io
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastpsl.console.screen import Progress
from fastpsl.engine.distributed import World, share, take_tensors_of_rank_0, wait_for_all
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import run_blocks
from fastpsl.engine.train_step import TrainStep
from fastpsl.files.atomic import remove_leftovers, write_atomically
from fastpsl.files.json_records import NoRecord, read_bytes
from fastpsl.files.system_errors import input_errors, raise_of_the_system
from fastpsl.files.untrusted import open_npz
from fastpsl.models.weights import sha256_of_tensors
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec

PART = 16  # what an interrupted pass repeats on each rank, at most; larger parts would be fewer files
NAME, RECORD = "predictions.npz", "predictions.json"
Predictions = dict[str, np.ndarray]
"""Name → array [n, ...] of an image, such as n boxes or one row of scores.

Names and trailing shapes are the same for all images.
"""


def predict(
    folder: Path,
    num_images: int,
    predict_images: Callable[[range], Iterator[Predictions]],
    world: World,
    science: Mapping[str, Any],
    after_image: Callable[[int], bool] = lambda done: False,
) -> Path | None:
    """Write folder/predictions.npz with the concatenated arrays of all images, and return its path.

    An array "image", int64 [N], holds the image of each row. Every rank must call it. `science` is what
    predictions depend on, as JSON values. Parts with another science are deleted, and nothing is computed if
    the file has the same (predictions.json). `after_image` is called on every rank equally often, with the
    number of this rank's images so far. If it returns True, complete parts are kept and the result is None.
    """
    assert num_images > 0
    parts, whole = folder / "predictions", folder / NAME
    # The other ranks wait here until rank 0 has made the folder of parts.
    if share(world, _begin(folder, parts, science) if world.rank == 0 else None):
        return whole
    starts = range(0, num_images, PART)
    # All ranks take the same number of parts, because `after_image` may communicate.
    rounds, done = -(-len(starts) // world.size), 0
    for number in range(rounds):
        part = number * world.size + world.rank
        images = range(starts[part], min(starts[part] + PART, num_images)) if part < len(starts) else range(0)
        path = parts / f"{part:06d}.npz"
        rows: list[Predictions] = []
        predicted = iter(()) if path.exists() or not images else predict_images(images)
        for _ in range(PART):  # also for a part that is there, or has fewer images, or none
            rows += itertools.islice(predicted, 1)
            if after_image(done + len(rows)):
                return None
        if rows:
            assert len(rows) == len(images)
            _save(path, _joined(rows, images.start))
        done += len(rows)
    wait_for_all(world)  # rank 0 reads the parts of all
    if world.rank == 0:
        arrays = [read_predictions(parts / f"{number:06d}.npz") for number in range(len(starts))]
        _save(whole, {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]})
        # After the file: a run that is killed in between leaves a file without a record, which is made again.
        write_atomically(folder / RECORD, _science_text(science).encode())
        shutil.rmtree(parts)  # last, because until then they are what a killed run goes on with
    wait_for_all(world)  # the others return a path, and the file is there
    return whole


def read_predictions(path: Path) -> Predictions:
    """Read the arrays of a file that `predict` wrote.

    Raises:
        ValueError: The file does not exist, is damaged, or cannot be read.
    """
    if not path.exists():
        raise ValueError(
            f"{path} is not there: a finished run's predictions stay in its own folder; give that as "
            "--out, or evaluate anew"
        )
    try:
        with open_npz(path, path.stat().st_size) as file:  # `np.savez` compresses nothing
            return dict(file)
    except ValueError as error:
        raise_of_the_system(path, error)
        raise ValueError(
            f"{path} is no sound file of predictions ({error}): give another --out, and evaluate anew"
        ) from None


def _begin(folder: Path, parts: Path, science: Mapping[str, Any]) -> bool:
    """Return whether the predictions of this science exist; otherwise prepare the folder of parts."""
    record = folder / RECORD
    remove_leftovers(folder, NAME, RECORD)
    if _is_of(record, science) and (folder / NAME).exists():
        shutil.rmtree(parts, ignore_errors=True)  # a run may have been killed while it removed them
        return True
    # First: an interrupted pass would leave the old file with its record, as if it was of this science.
    record.unlink(missing_ok=True)
    begin_folder(parts, science)
    return False


def _science_text(science: Mapping[str, Any]) -> str:
    return json.dumps(dict(science), sort_keys=True)


def begin_folder(parts: Path, science: Mapping[str, Any]) -> None:
    """Create an empty folder of parts, or keep one with parts of the same science."""
    record = parts / "science.json"
    if not _is_of(record, science):
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_atomically(record, _science_text(science).encode())


def _is_of(record: Path, science: Mapping[str, Any]) -> bool:
    """Return whether a file is the record of this science."""
    with input_errors(record):
        try:
            return read_bytes(record) == _science_text(science).encode()
        except (FileNotFoundError, NoRecord):  # then the pass is made anew
            return False


def _joined(rows: list[Predictions], first: int) -> Predictions:
    """Concatenate the rows of consecutive images, starting with image `first`, and add "image"."""
    image = np.repeat(np.arange(first, first + len(rows)), [len(next(iter(row.values()))) for row in rows])
    image = image.astype(np.int64)
    return {"image": image} | {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _save(path: Path, arrays: Predictions) -> None:
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    write_atomically(path, data.getbuffer())


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
        in_stage: Returns views of the task as the stage shows them (`Experiment.in_stage`).
    """

    run: Run
    train_step: TrainStep
    epoch: int
    first: bool
    draws_epoch: int
    in_stage: Callable[[Sequence[ViewSpec]], Sequence[ViewSpec]] = lambda views: views

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
            view: The view of each sample that the network reads, at the task's own size.
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
        (view,) = self.in_stage([view])
        augment = choose_augment(run.options.augment_backend, (view,), run.world.device)
        train_step.release()  # the pass has the memory of the captured steps
        with (
            self._pass("images", self.data.num_samples, training) as after,
            run.data.loader(self.data, [view], train=False) as loader,
            contextlib.closing(loader.epoch(self.draws_epoch)) as batches,
        ):
            for number, batch in enumerate(run.reporter.watched(batches), start=1):
                (images,) = augment.inputs(batch, [view], train_step.dtype)
                if training and number == loader.num_steps:  # the last batch alone has padding
                    images = _without_padding(images, batch)
                # Dropout follows from the place in the pass, and not from what was drawn before it.
                seed = torch_seed(run.options.seed, self.draws_epoch, number, run.world.rank)
                torch.manual_seed(seed)
                with train_step.autocast():
                    outputs = function(blocks(images))
                yield batch.indices, outputs
                # On every rank after each batch, because the ranks exchange here whether to stop.
                if after(number * len(batch.indices)):
                    raise PassStopped

    def predict(
        self, predict_images: Callable[[range], Iterator[Predictions]], science: Mapping[str, Any]
    ) -> None:
        """Write predictions.npz in the run's folder, with the predictions for every validation image.

        Gradients are off, and modules run in eval mode with rank 0's running statistics.

        Args:
            predict_images: Predicts the validation images of a range, this rank's share.
            science: The result of `val_science`. Parts of an interrupted pass are used again if they
                have the same.

        Raises:
            PassStopped: A signal arrived.
        """
        run = self.run
        assert run.data.val is not None
        num = run.data.val.num_samples
        with self._pass("validation images", num) as after:
            path = predict(run.folder, num, predict_images, run.world, science, after)
        if path is None:
            raise PassStopped

    def val_science(self, **more: Any) -> dict[str, Any]:
        """Return what predictions depend on: weights, validation data and `more`. Only rank 0's is used.

        Args:
            **more: Further plain values.
        """
        assert self.run.data.val is not None
        weights = sha256_of_tensors(self.train_step.module.state_dict())
        val = self.run.data.val
        return {"weights": weights, "data": val.digest(), "files": val.stamp()} | more

    @contextlib.contextmanager
    def _pass(self, what: str, num: int, training: bool = False) -> Iterator[Callable[[int], bool]]:
        """Yield a function of the number of this rank's samples so far; it returns whether to stop."""
        run, module, started = self.run, self.train_step.module, time.perf_counter()
        with contextlib.ExitStack() as stack:
            stack.enter_context(run.reporter.off_the_clock())
            stack.enter_context(torch.no_grad())
            stack.enter_context(undisturbed(module, run.world, training))
            # A pass without gradients would compile compiled blocks once more.
            stack.callback(setattr, module.blocks, "runner", module.blocks.runner)
            module.blocks.runner = run_blocks
            # After fast steps, ranks would hear a signal only after as many batches of the pass.
            run.stop_signal.other_pace()
            progress = None
            if run.reporter.screen is not None:
                stack.enter_context(run.reporter.screen.aside())
                progress = stack.enter_context(Progress("passing through the network", what, num))

            def after(done: int) -> bool:
                if progress:
                    progress.update(min(done * run.world.size, num), 0)
                return run.stop_signal.after_step().stop

            yield after
        if progress:
            run.reporter.log(f"a pass over {num:,} {what} took {time.perf_counter() - started:.1f} s")


def _without_padding(images: Tensor, batch: Batch) -> Tensor:
    """Replace padding by copies of the batch's images, so that it does not affect the batch statistics."""
    num_valid = int((batch.indices >= 0).sum())  # waits for the device, in one batch of a pass
    if num_valid in (0, len(images)):
        return images
    order = torch.argsort((batch.indices < 0).int(), stable=True)[:num_valid]
    places = torch.arange(len(images), device=images.device)
    chosen = torch.where(batch.indices >= 0, places, order[places % num_valid])
    return images[chosen].contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def undisturbed(module: nn.Module, world: World, training: bool = False) -> Iterator[None]:
    """Set eval mode (or train mode) within the context, and restore modes and buffers at its end.

    Within the context, all ranks have rank 0's running statistics.
    """
    # Of each part, because frozen blocks are in eval mode within a module in train mode.
    modes = [(part, part.training) for part in module.modules()]
    # Copies, because both rank 0's values and a pass in train mode overwrite them.
    buffers: Sequence[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train(training)
    try:
        # Each rank's own have become different in its steps.
        take_tensors_of_rank_0(module.buffers(), world)
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for part, mode in modes:
            part.training = mode
