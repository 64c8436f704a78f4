"""A past step of a run, made again: its images from their keyed draws, its losses by the trainer itself.

Order and draws are functions of seed, epoch and sample, so the images need no weights. The losses need those
before the step: a kept checkpoint of its stage, the end of the stage before, or the seed's first
weights. The trainer goes on from there, in a folder of its own, as it does after an interruption.
"""

import contextlib
import copy
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.engine.dataset_pass import undisturbed
from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.last_step import LastStep, Safepoint
from fastpsl.engine.options import INITIAL_WEIGHTS, TrainingOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run, RunData, open_loader
from fastpsl.engine.trainer import StageTrainer, next_on_all_ranks, pretrain
from fastpsl.files.run_folder import METRICS, read_lines
from fastpsl.kernels.draws import Keys
from fastpsl.models.checkpoint import CheckpointManager, read_checkpoint
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.order import numbered, step_indices
from fastpsl.pipelines.views import drawn_as

_SHOWN = 40  # characters of --step in an error


@dataclass(frozen=True)
class PastStep:
    """A step that a run has made.

    Attributes:
        run_step: Its number over all stages, from 1.
        stage: The number of its stage, from 0.
        step: Its number in the stage, from 1.
        first_epoch: The stage's first epoch, counted over all stages.
        row: Its line of metrics.jsonl.
        around: The lines around it, its own among them.
    """

    run_step: int
    stage: int
    step: int
    first_epoch: int
    row: Mapping[str, Any]
    around: tuple[Mapping[str, Any], ...]

    @property
    def before_stage(self) -> int:
        """The steps of the run before the stage."""
        return self.run_step - self.step

    def place(self, steps_per_epoch: int) -> tuple[int, int]:
        """Return the epoch, counted over all stages, and the step in it, both from 0."""
        epoch, step = divmod(self.step - 1, steps_per_epoch)
        return self.first_epoch + epoch, step


def find_step(folder: Path, text: str, stages: tuple[Stage, ...], num_around: int = 0) -> PastStep:
    """Find a step in metrics.jsonl by its number over all stages, or by stage and step, such as S2:120.

    Raises:
        ValueError: The text is neither, or the run has made no such step.
    """
    match = re.fullmatch(r"(?:(\w+):)?(\d{1,18})", text)
    if match is None:
        raise ValueError(
            f"--step {text[:_SHOWN]}: give a step of the run, such as 120, or of a stage, such as S2:120"
        )
    stage, number, name = match[1], int(match[2]), "run_step" if match[1] is None else "step"
    path, last = folder / METRICS, 0
    before, row, after = deque[dict[str, Any]](maxlen=num_around), dict[str, Any](), list[dict[str, Any]]()
    for line in read_lines(path):
        last = line.row["run_step"]
        if row and len(after) == num_around:
            break
        if row:
            after.append(line.row)
        elif line.row.get(name) == number and stage in (None, line.row["stage"]):
            row = line.row
        else:
            before.append(line.row)
    if not row:
        made = f"holds steps 1 to {last:,} of the run" if last else "holds no step"
        raise ValueError(f"--step {text}: {path} {made}; give one of its steps")
    names = [each.name for each in stages]
    if row["stage"] not in names or not 1 <= row.get("step", 0) <= row["run_step"]:
        raise ValueError(
            f"--step {text}: its line in {path} has stage {row['stage']!a} and step {row.get('step')}, and "
            f"the run has {', '.join(names)}; give another step"
        )
    place = names.index(row["stage"])
    first_epoch = sum(each.max_epochs for each in stages[:place])
    around = (*before, row, *after)
    return PastStep(row["run_step"], place, row["step"], first_epoch, row, around)


@dataclass(frozen=True)
class Start:
    """A state before a step: a checkpoint, or the seed's weights if there is no path.

    `step` is the number of the run's steps before it.
    """

    step: int
    path: Path | None


def find_start(folder: Path, past: PastStep, science: Mapping[str, Any], most_steps: int) -> Start:
    """Find the nearest state before a step in its stage.

    Raises:
        ValueError: There is none, or it is more than `most_steps` steps before. The message says which steps
            have their losses.
    """
    paths = {int(path.stem[5:]): path for path in CheckpointManager(folder / "checkpoints").paths()}
    starts = [Start(step, path) for step, path in paths.items()]
    if INITIAL_WEIGHTS not in science:
        starts.append(Start(0, None))
    usable = [each for each in starts if past.before_stage <= each.step < past.run_step]
    if not usable:
        kept = ", ".join(f"{step:,}" for step in sorted(paths)) or "none"
        raise ValueError(
            f"no kept checkpoint lies before step {past.run_step:,} in its stage (kept: {kept}); the steps "
            "after one, up to the end of its stage, have losses; --keep-checkpoints and --checkpoint-steps "
            "of the training keep more"
        )
    nearest = max(usable, key=lambda each: (each.step, each.path is not None))
    num = past.run_step - nearest.step
    if num > most_steps:
        where = "the run's beginning" if nearest.path is None else nearest.path.name
        raise ValueError(
            f"{where} lies {num:,} steps before it: give --most-steps {num} to repeat them for the losses"
        )
    return nearest


@dataclass(frozen=True)
class Made:
    """A step that the trainer has made again.

    Attributes:
        losses: For each rank and each of its batches the losses of the images, float32 [B] on the CPU. None
            stands for a task whose loss is no mean over images.
        row: The step's line of metrics.jsonl, on rank 0.
    """

    losses: list[list[Tensor | None]]
    row: Mapping[str, Any]


class _Reached(Exception):
    """The end of a replay, with what was made."""

    def __init__(self, made: Made):
        self.made = made


class _Unsaved(Safepoint):
    """The points between a replay's steps, of which nothing is saved."""

    @override
    def save(self) -> None:
        pass

    @override
    def keep(self) -> None:
        pass

    @override
    def write(self) -> bool:
        return False


class _Replay(StageTrainer):
    """The training of a stage up to a step, whose losses it computes before the step is made."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        state: dict[str, Any] | None,
        last_step: LastStep,
        *,
        past: PastStep,
        on_step: Callable[[int], object],
    ):
        super().__init__(experiment, run, state, last_step)
        self.past, self.on_step = past, on_step
        self.safepoint = _Unsaved(run, last_step, self._state)

    @override
    def _step(self, batches: Iterator[Batch], progress: operation, is_first: bool) -> None:
        run = self.run
        self.on_step(run.position.run_step)
        if run.position.run_step + 1 < self.past.run_step:
            return super()._step(batches, progress, is_first)
        first = next_on_all_ranks(batches, run.world, self._save_last_step)
        taken = [first, *islice(batches, run.options.accumulate - 1)]
        losses = list(self._losses(taken))
        task = self.experiment.task
        labels = copy.deepcopy(dict(task.state_dict()))
        super()._step(iter(taken), progress, is_first)
        task.load_state_dict(labels)  # an epoch's end has made others
        run.reporter.flush()
        rows = [line.row for line in read_lines(run.folder / METRICS)] if run.world.rank == 0 else [{}]
        raise _Reached(Made([losses], rows[-1]))

    def _losses(self, batches: list[Batch]) -> Iterator[Tensor | None]:
        """Yield the losses of each batch's images, with the step's dropout and batch statistics.

        Gradients are on, because a compiled block would otherwise be compiled once more, and round otherwise.
        """
        run, step, module = self.run, self.train_step, self.train_step.module
        position, task = self.position, self.experiment.task
        torch.manual_seed(torch_seed(run.options.seed, position.stage, position.step, run.world.rank))
        with undisturbed(module, run.world, training=True):
            for batch in map(step.prepared, batches):
                inputs = step.augment.inputs(batch, step.views, step.dtype)
                with step.autocast():
                    losses = task.losses(module.blocks, module.head, inputs, batch.of_step())
                yield None if losses is None else losses.detach().float().cpu()


def make_again(
    experiment: Experiment,
    recipe: str,
    options: TrainingOptions,
    world: World,
    science: Mapping[str, Any],
    past: PastStep,
    start: Start,
    folder: Path,
    on_step: Callable[[int], object] = lambda run_step: None,
) -> Made:
    """Make a past step again, from `start`, and return this rank's losses. Every rank calls it.

    The task has the labels of the step's epoch afterwards.

    Args:
        experiment: The run's, with the seed's first weights.
        recipe: The recipe's name.
        options: The run's options.
        world: The ranks, as many as the run had.
        science: What the run's record says must not differ.
        past: The step.
        start: Where to begin.
        folder: An empty folder for the trainer's files. Nothing else is written.
        on_step: Called with the number of the run's steps before each step.

    Raises:
        ValueError: The checkpoint or the data belong to another experiment, or never come to the step.
        KeyboardInterrupt: A signal stopped it.
    """
    options = replace(
        options, out=folder, resume="never" if start.path is None else str(start.path), tensorboard=False,
        wandb=False, checkpoint_minutes=0.0, checkpoint_steps=0, max_steps_per_stage=None,
    )  # fmt: skip
    if world.rank == 0:
        (folder / METRICS).touch()  # else those of the run would be copied
    data, science = experiment.open_data(options, world), {**science, **experiment.science}
    run = Run(recipe, data, science, owns_process=False, is_replay=True)
    try:
        finished = pretrain(experiment, run, partial(_Replay, past=past, on_step=on_step))
    except _Reached as reached:
        return reached.made
    finally:
        run.close()
    if finished:
        where = "the run's beginning" if start.path is None else start.path.name
        raise ValueError(
            f"training from {where} never comes to step {past.run_step:,}: the run's records do not belong "
            "together"
        )
    raise KeyboardInterrupt


def prepare_stage(
    folder: Path, experiment: Experiment, past: PastStep, data: RunData, options: TrainingOptions
) -> None:
    """Begin the step's stage without the weights of the run, so that the task can show its images.

    Labels of the step's epoch are those of a checkpoint in this epoch.

    Raises:
        ValueError: The task orders images by labels, which no kept checkpoint holds.
    """
    task = experiment.task
    plain = replace(
        options, compile="off", graph="off", augment_backend="torch", sync_batchnorm=False, fold_frozen="off"
    )
    stage = experiment.stages[past.stage]
    make_train_step(experiment, past.stage, plain, World(0, 1, 0, 1, data.world.device))
    if not task.pass_views(stage.level):
        return
    steps_per_epoch = data.train.num_samples // options.batch_of(stage)
    begin = past.run_step - 1 - past.place(steps_per_epoch)[1]  # the run's steps before the epoch
    for path in CheckpointManager(folder / "checkpoints").paths():
        if begin < int(path.stem[5:]) < begin + steps_per_epoch:
            return task.load_state_dict(read_checkpoint(path)["task"])
    if task.has_own_order:
        raise ValueError(
            f"the images of step {past.run_step:,} are known from its epoch's labels alone, and no "
            f"checkpoint is kept of steps {begin + 1:,} to {begin + steps_per_epoch - 1:,}: give a step "
            "after a kept one, in its stage"
        )


@dataclass(frozen=True)
class PastBatch:
    """A batch of a rank in a past step.

    Attributes:
        batch: The batch, on the CPU.
        boxes: For each view the crops' boxes, int32 [B, 4], as top, left, height and width. That of a sample
            that cannot be decoded was not used.
    """

    batch: Batch
    boxes: list[np.ndarray]


def batches_of(
    experiment: Experiment, data: RunData, past: PastStep, rank: int, num_ranks: int
) -> tuple[list[PastBatch], int]:
    """Return the batches that a rank of `num_ranks` had in a past step, and the number of an epoch's steps.

    The stage has begun, and the task has the labels of the epoch if it orders images by them.
    """
    options = replace(data.options, decoder=data.decoder, prefetch_batches=1)  # type: ignore[arg-type]
    world = World(rank, num_ranks, 0, 1, data.world.device)
    stage = experiment.stages[past.stage]
    views, size = experiment.views(stage), options.rank_batch(num_ranks, options.batch_of(stage))
    parts, found = options.accumulate, list[PastBatch]()
    with open_loader(data.train, views, options, world, batch_size_per_rank=size, train=True) as loader:
        steps_per_epoch = loader.num_steps // parts
        epoch, step = past.place(steps_per_epoch)
        order = experiment.task.epoch_order(epoch)
        numbers = None if order is None else numbered(order)
        with contextlib.closing(loader.epoch(epoch, step * parts, order)) as batches:
            for batch in islice(batches, parts):
                batch = batch.first(size)
                indices = batch.indices.numpy()
                drawn = indices
                if numbers is not None:
                    drawn = step_indices(numbers, batch.step, size, rank, num_ranks)
                rows = data.train.rows(np.maximum(indices, 0))
                keys = [Keys(options.seed, epoch, drawn, number) for number in drawn_as(views)]
                pairs = zip(views, keys, strict=True)
                boxes = [view.crop.boxes(key, rows.height, rows.width) for view, key in pairs]
                found.append(PastBatch(batch, boxes))
    return found, steps_per_epoch
