"""A run on one machine: its data, folder, checkpoints and reporting. `Experiment` defines what is learned."""

import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from fastpsl.console.progress import operation
from fastpsl.engine.distributed import StopSignal, World, environment, share
from fastpsl.engine.meter import Meter
from fastpsl.engine.options import (
    INITIAL_WEIGHTS,
    NO_VAL,
    RunOptions,
    TrainingOptions,
    per_stage,
    share_of,
)
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import Reporter, diverged, summary_line
from fastpsl.engine.resume import apply_kept_choices, find_checkpoint, open_folder
from fastpsl.files.atomic import remove_leftovers, write_atomically
from fastpsl.files.json_records import NoRecord
from fastpsl.files.run_folder import CONFIG, ENVIRONMENT, RESULTS, STATUS
from fastpsl.files.system_errors import output_errors
from fastpsl.models.backbone import unusable
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.subset import Subset, split_by_name
from fastpsl.pipelines.decoders.choose import NAMES, choose_decoder, decoders_of, is_kept_on_device
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.dataset import Dataset, spread_indices
from fastpsl.pipelines.interface.reading import Reading
from fastpsl.pipelines.loader.annotated import AnnotatedImage, AnnotatedLoader
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec

OpenData = Callable[[RunOptions], tuple[Dataset, Dataset | None]]
"""A function that opens the training and validation data."""


class BatchSource(AbstractContextManager["BatchSource"], Protocol):
    """A source of training batches: a `Loader`, or a loader of annotated images."""

    decoder_name: str
    decoder_reason: str
    views: tuple[ViewSpec, ...]
    batch_size_per_rank: int
    num_samples: int
    num_steps: int

    def epoch(
        self, epoch: int, first_step: int = 0, order: np.ndarray | None = None
    ) -> Generator[Any, None, None]:
        """Yield the batches of an epoch, starting with `first_step`."""
        ...


class RunData:
    """The training and validation data of a recipe, and this rank's share of each batch.

    Attributes:
        train: The training data.
        val: The validation data, or None.
        batch_size: The number of images that this rank takes at a time, in the present stage.
        decoder: The decoder of all loaders: that of --decoder, or what `auto` chose for the run.
        decoder_reason: The reason for that choice.
    """

    def __init__(
        self,
        options: TrainingOptions,
        world: World,
        open: OpenData | None = None,
        part: Callable[[Dataset], Dataset] | None = None,
    ):
        """Open the data.

        Args:
            options: The options of the run.
            world: The ranks.
            open: Replaces the opening of --data and --val as images; see `Experiment`.
            part: Selects the part of the training data to train on.

        Raises:
            ValueError: The data cannot be read, or the batch is not divisible by the ranks.
        """
        self.options, self.world = options, world
        self.decoder, self.decoder_reason = options.decoder, ""
        # All sizes are computed, because each must be divisible by the ranks. `begin_stage` sets the present
        # one.
        self.batch_size = max(options.rank_batch(world.size, size) for size in per_stage(options.batch_size))
        with operation("opening the data"):
            self.train, self.val = (open or open_both)(options)
        if part is not None:
            try:
                self.train = part(self.train)
            except BaseException:  # nobody else has the data yet to close them
                self.close()
                raise

    def begin_stage(self, stage: Stage) -> None:
        """Set the batch size to that of a stage."""
        self.batch_size = self.options.rank_batch(self.world.size, self.options.batch_of(stage))

    @property
    def step_size(self) -> int:
        """The images of a step in the present stage, over all ranks and accumulated batches."""
        return self.batch_size * self.world.size * self.options.passes_per_step

    def check_batch(self) -> None:
        """Raise ValueError if there are fewer training images than one batch."""
        if self.train.num_samples < self.options.batch_of():
            without = ", give --val none" if share_of(self.options.val) else ""
            preset = "give --preset small, " if getattr(self.options, "preset", "small") != "small" else ""
            raise ValueError(
                f"{self.train.num_samples} training images are fewer than one batch of "
                f"{self.options.batch_of()}: lower --batch-size{without}, {preset}or give more data"
            )

    def check_views(self, views: Sequence[ViewSpec], val_views: Sequence[ViewSpec]) -> None:
        """Check that --decoder reads the data, and that the smallest images can be cropped.

        Raises:
            ValueError: It cannot, or an image is too small for a crop.
        """
        for data, data_views in ((self.train, views), (self.val, val_views)):
            if data is not None and data_views:
                if self.options.decoder != "auto":  # `auto` never takes one that cannot read the data
                    choose_decoder(self.options.decoder, data, self.world.device)
                min_height, min_width, _, _ = data.image_sizes()
                for view in data_views:
                    view.crop.check(min_height, min_width)

    def loader(
        self, data: Dataset, views: Sequence[ViewSpec], *, train: bool, batch_size: int | None = None
    ) -> Loader:
        """Return a loader of this rank's share, shuffled for training, else in the data's order.

        Args:
            data: Data of the run.
            views: The views of each image.
            train: Whether it is for training.
            batch_size: The images that this rank takes at a time; None for `batch_size` of the stage.
        """
        size = batch_size or self.batch_size
        options = replace(self.options, decoder=self.decoder_of(data))  # type: ignore[arg-type]
        loader = open_loader(data, views, options, self.world, batch_size_per_rank=size, train=train)
        # The loader got the decoder by name, and would say that the user asked for it.
        if loader.decoder_name == self.decoder != self.options.decoder:
            loader.decoder_reason = "; ".join(filter(None, (self.decoder_reason, loader.decoder.remark)))
        return loader

    def decoder_of(self, data: Dataset) -> str:
        """Return the decoder for data of the run; "auto" where the run's choice does not suit these data."""
        if self.options.decoder != "auto" or self.decoder == "auto":
            return self.decoder
        is_other = self.decoder not in decoders_of(data) or is_kept_on_device(data, self.world.device)
        return "auto" if is_other else self.decoder

    def annotated_loader(self, read: Callable[[int, int], AnnotatedImage]) -> AnnotatedLoader:
        """Return a loader of this rank's share of the training data as whole images.

        Args:
            read: Returns an image, given its index and the epoch.
        """
        options, world = self.options, self.world
        return AnnotatedLoader(
            read, self.train.num_samples, batch_size_per_rank=self.batch_size, seed=options.seed,
            rank=world.rank, world=world.size, num_threads=options.workers, device=world.device,
            prefetch_batches=options.prefetch_batches, timeout_s=options.timeout_s,
        )  # fmt: skip

    def numbers(self) -> dict[str, int]:
        """Return the numbers of images to train on and for validation."""
        return {"train": self.train.num_samples, "val": 0 if self.val is None else self.val.num_samples}

    def close(self) -> None:
        """Close both data sets."""
        self.train.close()
        if self.val is not None:
            self.val.close()


def val_part(data: RunData, num_steps: int, num_planned: int) -> Dataset | None:
    """Return the validation images for the end of a stage: all, or as many as a stage that was cut has seen.

    They are spread over the data, and at least a batch.
    """
    num = num_steps * data.step_size
    if data.val is None or num_steps >= num_planned or num >= data.val.num_samples:
        return data.val
    return Subset(data.val, spread_indices(data.val.num_samples, num))


def open_both(options: RunOptions) -> tuple[Dataset, Dataset | None]:
    """Open training and validation data: --data and --val, or the embedded sample."""
    train: str | Path | None = options.data
    val: str | Path | None = options.val
    if train is None:
        with operation("making the embedded sample ready"):
            train, its_val = sample_paths()[:2]
        val = val or its_val
    opened = open_given(options, train)
    as_train = opened.reading, "the training data"
    try:
        if share := share_of(options.val):
            return split_by_name(opened, share)
        return opened, open_given(options, val, as_train) if val and val != NO_VAL else None
    except BaseException:  # the caller gets nothing that it could close
        opened.close()
        raise


def open_given(
    options: RunOptions, source: str | Path, reading: tuple[Reading, str] | None = None
) -> Dataset:
    """Open data as the options have it, with the cache for data that live elsewhere.

    `reading` replaces the options' own, and has who decided it in words.
    """
    return open_data(source, options.cache_dir, options.cache_gb, *(reading or options.reading()))


def open_loader(
    data: Dataset,
    views: Sequence[ViewSpec],
    options: TrainingOptions,
    world: World,
    *,
    batch_size_per_rank: int,
    train: bool,
) -> Loader:
    """Build a loader of this rank's batches, as the options define it."""
    return Loader(
        data, views, batch_size_per_rank=batch_size_per_rank, seed=options.seed, rank=world.rank,
        world=world.size, train=train, order=options.order, lanes=options.lanes, decoder=options.decoder,
        hw_decoder_load=options.hw_decoder_load, num_threads=options.workers, device=str(world.device),
        prefetch_batches=options.prefetch_batches, timeout_s=options.timeout_s,
        on_bad_sample=options.on_bad_sample,
    )  # fmt: skip


# The beginnings of the names of files that a run writes besides its checkpoints.
_RECORDS = ("config", "environment", "epochs", "labels", "results", "status", "wandb")


@dataclass
class Position:
    """The position of a training: `step` of stage `stage` comes next. Both count from 0."""

    stage: int = 0
    step: int = 0
    run_step: int = 0  # over all stages
    first_epoch: int = 0  # of the stage, counted over all stages so that draws and orders never repeat
    seconds: float = 0.0  # spent in the stage's steps
    summaries: list[dict[str, Any]] = field(default_factory=list)  # of finished stages

    def next_stage(self, epochs: int) -> None:
        """Move to the start of the next stage, after one that was planned for `epochs` epochs."""
        self.stage, self.step, self.seconds = self.stage + 1, 0, 0.0
        self.first_epoch += epochs


class Run:
    """A run's folder, checkpoints and reporting. Nothing is written if the options turn out to be invalid."""

    def __init__(
        self,
        recipe: str,
        data: RunData,
        science: Mapping[str, Any] | None = None,
        *,
        owns_process: bool = True,
        differences: Mapping[str, Any] | None = None,
        steps: int | None = None,
        is_replay: bool = False,
        called: str = "",
    ):
        """Open the run. It owns `data` from here on.

        Args:
            recipe: The recipe's name.
            data: The data, which `close` closes.
            science: What else must not change on resume, besides the options' science and the data.
            owns_process: Whether the process is the run's own, which may end it (`LastStep`).
            differences: What differs from the usual values, for the record.
            steps: The plan's number of steps, for the record.
            is_replay: Whether it makes a past step again: nothing is printed but warnings, and nothing is
                written but in its folder.
            called: The beginning of the folder's name, if --out does not give it; by default the recipe's.

        Raises:
            ValueError: The options are invalid. The data is closed then.
        """
        self.data, self.options, self.world = data, data.options, data.world
        self.owns_process, self.differences = owns_process, dict(differences or {})
        self.steps = steps
        self.num_shared: int | None = None  # validation images that are training images, on rank 0
        self.precision = self.options.resolved_precision(self.world.device)
        self.is_replay, self._folder = is_replay, ExitStack()
        self._never_finite = set[str]()
        try:
            if self.options.sync_batchnorm and self.world.device.type != "cuda":
                raise ValueError(
                    "--sync-batchnorm needs CUDA: torch's SyncBatchNorm does not run on the CPU; leave it out"
                )
            # Each rank has chosen by its own CPU, and they must compute alike.
            if share(self.world, self.precision) != self.precision:
                raise ValueError(
                    f"this rank's CPU would compute in {self.precision}, and rank 0's in another precision: "
                    "give all the same --precision, such as fp32"
                )
            self._begin(recipe, science, called or recipe)
        except BaseException:  # a run that is refused gives its data and its folder's lock back
            self._close_files()
            raise

    def _begin(self, recipe: str, science: Mapping[str, Any] | None, called: str) -> None:
        options, world = self.options, self.world
        self.science = dict(science or {}) | options.science()
        self.science |= {"recipe": recipe, "precision": self.precision}
        self.science["data_digest"] = self.data.train.digest()
        self.science |= self.data.train.reading.as_dict()
        # Locked before anything in it is read, because another process may be at work there.
        self.folder = self._folder.enter_context(open_folder(called, options, world))
        self.checkpoints = CheckpointManager(self.folder / "checkpoints", options.keep_checkpoints)
        self.resumed_from, self.resume_state, notes = find_checkpoint(
            options, world, self.folder, self.science, self._machine()
        )
        self.position = Position(**self.resume_state["position"]) if self.resume_state else Position()
        if self.resume_state:
            # The record keeps which weights the run began with, whatever a resume is given.
            begun = self.resume_state["science"]
            self.science.pop(INITIAL_WEIGHTS, None)
            self.science |= {name: begun[name] for name in (INITIAL_WEIGHTS,) if name in begun}
        self.resumed = self.resume_state is not None
        self.meter = Meter(world, self.resume_state.get("so_far", {}) if self.resume_state else None)
        self._folder.callback(self.meter.close)
        with output_errors(self.folder):
            self.reporter = Reporter(
                self.folder, world, batch_size=options.batch_of(), log_steps=options.log_steps,
                resumed_run_step=self.position.run_step, tensorboard=options.tensorboard,
                wandb=options.wandb, config=options.as_dict(), quiet=self.is_replay,
            )  # fmt: skip
            if world.rank == 0:
                self._write_records()
        self.stop_signal = StopSignal(world, options.checkpoint_minutes)
        usual = replace(options, precision="auto").resolved_precision(world.device)
        if self.resumed and self.precision != usual:
            notes.append(f"computes in {self.precision}, as the run began; a new run here would take {usual}")
        for line in (*notes, *map(summary_line, self.position.summaries)):
            self.reporter.log(line)

    def _machine(self) -> dict[str, Any]:
        names = set(self.options.as_dict()) - set(self.options.science())
        # Files may have moved; the science has the range and the bands; --init has a line of its own.
        names -= {"data", "val", "out", "resume", "init", "range", "bands"}
        values = {name: self.options.as_dict()[name] for name in sorted(names)}
        return values | {"world_size": self.world.size, "device": self.world.device.type}

    def _write_records(self) -> None:
        (self.folder / "error.txt").unlink(missing_ok=True)  # an earlier attempt may have written it
        remove_leftovers(self.folder, beginning=_RECORDS)
        self.write_status("running", "")
        config: dict[str, Any] = {"options": self.options.as_dict(), "science": self.science}
        config |= {"command": sys.argv, "differences": self.differences, "images": self.data.numbers()}
        if self.steps is not None:
            config["steps"] = self.steps
        write_atomically(self.folder / CONFIG.name, json.dumps(config, indent=1).encode())
        self._environment = environment(self.world)
        self._write_environment()
        if (self.folder / RESULTS.name).exists():  # it may have stages of after the checkpoint
            self.write_results()

    def _write_environment(self) -> None:
        write_atomically(self.folder / ENVIRONMENT.name, json.dumps(self._environment, indent=1).encode())

    def note_choices(self, stage: Stage, choices: Mapping[str, str]) -> None:
        """Record how a stage is computed on this machine, and why."""
        if self.world.rank == 0:
            record = {"stage": stage.name, **{name.replace(" ", "_"): why for name, why in choices.items()}}
            self._environment.setdefault("choices", []).append(record)
            self._write_environment()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the training's state as the checkpoint of `step`, after the metrics up to it.

        Raises:
            DivergedError: A weight or a buffer is not finite, so nothing is written.
        """
        self._require_finite(step, state)  # first, so that the last good checkpoint stays the newest
        assert self.reporter.file is not None
        # A resume cuts off lines after the checkpoint but cannot restore missing ones.
        self.reporter.file.sync()
        self.checkpoints.save(step, {"science": self.science, "machine": self._machine(), **state})

    def begin_stage(self, backbone: nn.Module, head: nn.Module) -> None:
        """Note which buffers are not finite from the start, such as a mask of -inf.

        Raises:
            ValueError: A weight is not finite, or a running statistic is none.
        """
        if bad := unusable(backbone) or unusable(head):
            raise ValueError(
                f"{self.resumed_from or 'the network'} begins the stage with {bad}: give other weights, or "
                "resume from an older checkpoint"
            )
        self._never_finite = set(_not_finite(backbone.state_dict(), head.state_dict()))

    def _require_finite(self, step: int, state: Mapping[str, Any]) -> None:
        names = _not_finite(state["backbone"], state["train_step"]["head"])
        names = [name for name in names if name not in self._never_finite]  # a mask of -inf is no fault
        if not names:
            return
        paths = self.checkpoints.paths()
        good = f"the last good checkpoint is {paths[-1]}" if paths else "there is no good checkpoint"
        raise diverged(
            f"after step {step} of the run, {len(names)} of its weights and buffers are not finite, such as "
            f"{names[0]}; {good}{self.reporter.first_not_finite()}"
        )

    def last_checkpoint(self) -> Path:
        """Return a finished run's newest checkpoint, or that of --resume if nothing was left to train."""
        paths = self.checkpoints.paths()
        return paths[-1] if paths else Path(self.options.resume)

    def write_status(self, state: str, reason: str) -> None:
        """Write status.json, which tells how the run ended even under torchrun with its own exit codes.

        Args:
            state: "running", "finished", "preempted" or "failed".
            reason: The reason, for people.
        """
        where = {"stage": self.position.stage + 1, "step": self.position.step}
        text = json.dumps({"state": state, **where, "reason": reason}) + "\n"
        write_atomically(self.folder / STATUS.name, text.encode())

    def write_results(self) -> None:
        """Write results.json, the summaries of the finished stages."""
        text = json.dumps(self.position.summaries, indent=1)
        write_atomically(self.folder / RESULTS.name, text.encode())

    def so_far(self) -> dict[str, float | None]:
        """Return the seconds, images and joules of the training up to now. Every rank calls it."""
        position = self.position
        before = position.summaries[position.stage - 1] if position.stage else {}
        others = (position.run_step - position.step) * self.options.batch_of()
        # By the summaries, because stages may have batches of other sizes; those of older versions have none.
        images = before.get("so_far", {}).get("images", others)
        return self.meter.so_far() | {"images": images + position.step * self.data.step_size}

    def status(self) -> str | None:
        """Return the state in status.json, written by any rank; None if this start has not written it yet."""
        try:
            return str(STATUS.of(self.folder, "state")["state"])
        except (FileNotFoundError, NoRecord):
            return None

    def close(self) -> None:
        self.reporter.close()
        self.stop_signal.close()
        self._close_files()

    def _close_files(self) -> None:
        self.data.close()
        self._folder.close()


def _not_finite(backbone: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    """Return the names of a backbone's and a head's tensors that are not finite."""
    values = {**backbone, **{f"head.{name}": value for name, value in head.items()}}
    return [n for n, value in values.items() if isinstance(value, Tensor) and not value.isfinite().all()]


_KEPT = tuple(name for name in NAMES if name not in ("resident", "synthetic"))  # these are for a data set


def choose_run_decoder(run: Run, num_views: int, kept: str | None) -> None:
    """Choose the decoder of a run's data for `auto`. Every rank calls this.

    A run that goes on keeps the decoder of its start, where it works. Nothing is chosen for small raw images,
    which loaders keep on the GPU, nor for synthetic data.
    """
    # By rank 0's cores and GPU for all ranks, because decoders differ in their pixels.
    choice = share(run.world, _choice(run, num_views, kept) if run.world.rank == 0 else None)
    if choice is not None:
        run.data.decoder, run.data.decoder_reason = choice


def decoder_choice(run: Run) -> dict[str, str]:
    """Return the run's decoder under its option's name, for checkpoints; empty if each loader chooses."""
    return {"decoder": run.data.decoder} if run.data.decoder in _KEPT else {}


def _choice(run: Run, num_views: int, kept: str | None) -> tuple[str, str] | None:
    """Return the decoder and the reason for it, or None if nothing is chosen."""
    data, device = run.data.train, run.world.device

    def check(options: TrainingOptions) -> None:
        choose_decoder(options.decoder, data, device)
        if options.decoder == "dali" and device.type == "cpu":
            raise ValueError("decoder 'dali': it is for GPUs; or use auto")

    if is_kept_on_device(data, device):
        return None
    choices = {} if kept is None else {"decoder": kept}
    options = apply_kept_choices(run.options, choices, check, run.reporter.log)
    if run.options.decoder != "auto":
        return None
    if options.decoder != "auto":
        return options.decoder, "as the run began"
    name, reason = choose_decoder("auto", data, device, num_threads=options.workers, num_views=num_views)
    return (name, reason) if name in _KEPT else None
