"""One run on one machine: its folder, data, checkpoints and reporting. What is learned is the job's, not this file's."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from fastpsl.engine.distributed import Agreement, World, share, wait_for_all
from fastpsl.engine.environment import environment
from fastpsl.engine.options import RunOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.resume import choose_folder, find_checkpoint, lock_folder
from fastpsl.engine.trunk import Task, call_if_there
from fastpsl.models.checkpoint import Checkpoints
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.data.open import open_data
from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.files.atomic import output_errors, write_atomically
from fastpsl.pipelines.loader.annotated import AnnotatedImage, AnnotatedLoader
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import ViewSpec
from fastpsl.plots.contact_sheet import NUM_PICTURES, captions, save_contact_sheet


@dataclass
class Position:
    """Where training stands: step `step` of stage `stage` comes next, `run_step` steps were made in all stages.

    `first_epoch` is the stage's first epoch counted over all stages: draws and orders never repeat between stages.
    """

    stage: int = 0
    step: int = 0
    run_step: int = 0
    first_epoch: int = 0
    seconds: float = 0.0  # spent in the steps of this stage
    summaries: list[dict[str, Any]] = field(default_factory=list)  # of the stages that ended

    def next_stage(self, epochs: int) -> None:
        """Go to the start of the next stage; the one that ended was planned for `epochs`."""
        self.stage, self.step, self.seconds = self.stage + 1, 0, 0.0
        self.first_epoch += epochs


class Run:
    """Opens everything that a run needs; ValueError before anything is written where the request cannot be served."""

    def __init__(
        self,
        recipe: str,
        options: RunOptions,
        world: World,
        science: Mapping[str, Any] | None = None,
        part: Callable[[Dataset], Dataset] | None = None,
        check: Callable[["Run"], None] | None = None,
        open: Callable[[RunOptions], tuple[Dataset, Dataset | None]] | None = None,
    ):
        """science: what else must not change on resume, besides the options' science and the data. part, open: see `Job`. check: called
        when the data is open and nothing is written yet.
        """
        self.options, self.world = options, world
        self.precision = options.resolved_precision(world.device)
        self.batch_size = options.rank_batch(world.size)
        if options.sync_batchnorm and world.device.type != "cuda":
            raise ValueError("--sync-batchnorm needs CUDA: torch's SyncBatchNorm does not run on the CPU")
        self.train_data, self.val_data = (open or open_both)(options)
        self._lock: IO[str] | None = None
        try:
            self._begin(recipe, science, part, check)
        except BaseException:
            self._close_files()
            raise

    def _begin(
        self,
        recipe: str,
        science: Mapping[str, Any] | None,
        part: Callable[[Dataset], Dataset] | None,
        check: Callable[["Run"], None] | None,
    ) -> None:
        options, world = self.options, self.world
        if part is not None:
            self.train_data = part(self.train_data)
        if check is not None:
            check(self)
        self.science = (
            dict(science or {})
            | options.science()
            | {
                "recipe": recipe,
                "precision": self.precision,
                "data_digest": self.train_data.digest(),
            }
        )
        self.folder = Path(share(world, str(choose_folder(recipe, options)) if world.rank == 0 else None))
        if world.rank == 0:
            self._lock = lock_folder(self.folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", options.keep_checkpoints)
        self.resumed_from, self.resume_state, notes = find_checkpoint(
            options, world, self.folder, self.science, self._machine()
        )
        self.position = Position(**self.resume_state["position"]) if self.resume_state else Position()
        self.resumed = self.resume_state is not None
        self.num_stages_before = len(self.position.summaries)
        with output_errors(self.folder):
            self.reporter = Reporter(
                self.folder,
                world,
                batch_size=options.batch_size,
                log_steps=options.log_steps,
                resumed_run_step=self.position.run_step,
                tensorboard=options.tensorboard,
                wandb=options.wandb,
                config=options.as_dict(),
            )
            if world.rank == 0:
                self._write_records()
        self.agreement = Agreement(world, options.checkpoint_minutes)
        for note in notes:
            self.reporter.say(note)

    def _machine(self) -> dict[str, Any]:
        names = set(self.options.as_dict()) - set(self.options.science()) - {"data", "val", "out", "resume"}
        values = {name: self.options.as_dict()[name] for name in sorted(names)}
        return values | {"world_size": self.world.size, "device": self.world.device.type}

    def _write_records(self) -> None:
        (self.folder / "error.txt").unlink(missing_ok=True)  # of an attempt before
        self.write_status("running", "")
        config = {"options": self.options.as_dict(), "science": self.science, "command": sys.argv}
        write_atomically(self.folder / "config.json", json.dumps(config, indent=1).encode())
        write_atomically(
            self.folder / "environment.json", json.dumps(environment(self.world), indent=1).encode()
        )

    def loader_batch(self, images_per_sample: int) -> int:
        """Samples of a rank's batch, each of which makes so many images. ValueError where they do not divide it, or are too few."""
        samples, rest = divmod(self.batch_size, images_per_sample)
        if rest or not samples:
            raise ValueError(
                f"--batch-size {self.options.batch_size} gives each rank {self.batch_size} images a pass, and each sample makes "
                f"{images_per_sample}: choose a batch that is a multiple of "
                f"{images_per_sample * self.world.size * self.options.accumulate}"
            )
        needed = samples * self.world.size * self.options.accumulate
        if self.train_data.num_samples < needed:
            each = "" if images_per_sample == 1 else f", {images_per_sample} of each of {needed} samples"
            raise ValueError(
                f"{self.train_data.num_samples} training images are fewer than one batch of {self.options.batch_size}{each}: "
                f"lower --batch-size, or give more data"
            )
        return samples

    def check_views(self, views: Sequence[ViewSpec], held_out_views: Sequence[ViewSpec]) -> None:
        """ValueError where the smallest picture of the training or the held-out data cannot be cropped so."""
        for data, these in ((self.train_data, views), (self.val_data, held_out_views)):
            if data is not None:
                min_height, min_width, _, _ = data.image_sizes()
                for view in these:
                    view.crop.check(min_height, min_width)

    def loader(
        self, data: Dataset, views: Sequence[ViewSpec], *, train: bool, images_per_sample: int = 1
    ) -> Loader:
        """A loader of this rank's share of `data`: shuffled for training, in the data's order for evaluation."""
        return open_loader(
            data,
            views,
            self.options,
            self.world,
            batch_size=self.loader_batch(images_per_sample),
            train=train,
        )

    def picture_loader(self, read: Callable[[int, int], AnnotatedImage]) -> AnnotatedLoader:
        """A loader of this rank's share of the training data as whole pictures; read: (index, epoch) → one of them."""
        options, world = self.options, self.world
        return AnnotatedLoader(
            read,
            self.train_data.num_samples,
            batch_size=self.loader_batch(1),
            seed=options.seed,
            rank=world.rank,
            world=world.size,
            num_threads=options.num_threads,
            device=world.device,
            prefetch_batches=options.prefetch_batches,
            timeout_s=options.timeout_s,
        )

    def packed(self, state: dict[str, Any]) -> memoryview:
        """A checkpoint's file, of a job's state."""
        return self.checkpoints.packed({"science": self.science, "machine": self._machine(), **state})

    def last_checkpoint(self) -> Path:
        """Of a run that came to its end: its newest, or that of --resume, which left nothing to do."""
        paths = self.checkpoints.paths()
        return paths[-1] if paths else Path(self.options.resume)

    def write_status(self, state: str, reason: str) -> None:
        """status.json: running, finished, preempted or failed; under torchrun, whose exit codes differ, it is the truth."""
        where = {"stage": self.position.stage + 1, "step": self.position.step}
        text = json.dumps({"state": state, **where, "reason": reason}) + "\n"
        write_atomically(self.folder / "status.json", text.encode())

    def status(self) -> str | None:
        """The state in status.json, of whichever rank; None where this start has not come to it yet."""
        path = self.folder / "status.json"
        return str(json.loads(path.read_text())["state"]) if path.exists() else None

    def look_at_first_batch(self, task: Task, stage: Stage, loader: Loader) -> None:
        """One rank a machine loads a batch before the others start, so that numba compiles the loader once, not N times.

        Rank 0 draws it, contact-sheet-G<level>.png: what the network sees at this level. Nothing where the task draws none.
        """
        self.reporter.say(f"decoder {loader.decoder_name}: {loader.decoder_reason}")
        batch = None
        with doing(f"{stage.name}: the first batch, whose decoder may have to be compiled"):
            if self.world.local_rank == 0:
                batches = loader.epoch(self.position.first_epoch)
                batch = next(batches)
                batches.close()
            wait_for_all(self.world)
        if batch is None or self.world.rank != 0 or self.position.step > 0:
            return
        batch = batch.first(NUM_PICTURES)
        pictures = call_if_there(task, "contact_sheet", batch.inputs(loader.views, torch.float32), batch)
        if pictures is not None:
            told = call_if_there(task, "captions", batch) or ()
            texts = captions(batch, self.train_data.class_names, told)
            save_contact_sheet(pictures, self.folder / f"contact-sheet-G{stage.level}.png", texts)

    def close(self) -> None:
        self.reporter.close()
        self.agreement.close()
        self._close_files()

    def _close_files(self) -> None:
        self.train_data.close()
        if self._lock is not None:
            self._lock.close()
        if self.val_data is not None:
            self.val_data.close()


def open_both(options: RunOptions) -> tuple[Dataset, Dataset | None]:
    """Training and held-out data: --data and --val, or the embedded sample's."""
    train: str | Path | None = options.data
    val: str | Path | None = options.val
    if train is None:
        train, val = sample_paths()[:2]
    opened = open_data(train)
    try:
        return opened, open_data(val) if val else None
    except BaseException:
        opened.close()
        raise


def open_loader(
    data: Dataset,
    views: Sequence[ViewSpec],
    options: RunOptions,
    world: World,
    *,
    batch_size: int,
    train: bool,
) -> Loader:
    """A loader as the options ask for it; batch_size: of a rank."""
    return Loader(
        data,
        views,
        batch_size=batch_size,
        seed=options.seed,
        rank=world.rank,
        world=world.size,
        train=train,
        order=options.order,
        lanes=options.lanes,
        decoder=options.decoder,
        num_threads=options.num_threads,
        device=str(world.device),
        prefetch_batches=options.prefetch_batches,
        timeout_s=options.timeout_s,
        on_bad_sample=options.on_bad_sample,
    )
