"""A run on one machine: its folder, checkpoints and reporting. `Experiment` defines what is learned."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from fastpsl.engine.distributed import share
from fastpsl.engine.environment import environment
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.reporter import Reporter, summary_line
from fastpsl.engine.resume import apply_kept_choices, choose_folder, find_checkpoint, lock_folder
from fastpsl.engine.run_data import RunData
from fastpsl.engine.signals import StopSignal
from fastpsl.files.atomic import output_errors, remove_leftovers, write_atomically
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.decoders.choose import NAMES, choose_decoder, is_kept_on_device

# The beginnings of the names of files that a run writes besides its checkpoints.
_RECORDS = ("config", "environment", "epochs", "labels", "results", "status", "wandb")


@dataclass
class Position:
    """The position of a training: `step` of stage `stage` comes next.

    Attributes:
        stage: The stage's index, from 0.
        step: The number of steps made in the stage.
        run_step: The number of steps made in all stages.
        first_epoch: The stage's first epoch, counted over all stages so that draws and orders never repeat.
        seconds: The time spent in the stage's steps.
        summaries: The summaries of finished stages.
    """

    stage: int = 0
    step: int = 0
    run_step: int = 0
    first_epoch: int = 0
    seconds: float = 0.0
    summaries: list[dict[str, Any]] = field(default_factory=list)

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
    ):
        """Open the run. It owns `data` from here on.

        Args:
            recipe: The recipe's name.
            data: The data, which `close` closes.
            science: What else must not change on resume, besides the options' science and the data.
            owns_process: Whether the process is the run's own, which may end it (`LastStep`).

        Raises:
            ValueError: The options are invalid. The data is closed then.
        """
        self.data, self.options, self.world = data, data.options, data.world
        self.owns_process = owns_process
        self.precision = self.options.resolved_precision(self.world.device)
        self._lock: IO[str] | None = None
        self._never_finite = set[str]()
        try:
            if self.options.sync_batchnorm and self.world.device.type != "cuda":
                raise ValueError(
                    "--sync-batchnorm needs CUDA: torch's SyncBatchNorm does not run on the CPU; leave it out"
                )
            self._begin(recipe, science)
        except BaseException:
            self._close_files()
            raise

    def _begin(self, recipe: str, science: Mapping[str, Any] | None) -> None:
        options, world = self.options, self.world
        self.science = (
            dict(science or {})
            | options.science()
            | {
                "recipe": recipe,
                "precision": self.precision,
                "data_digest": self.data.train.digest(),
            }
        )
        self.folder = Path(share(world, str(choose_folder(recipe, options)) if world.rank == 0 else None))
        if world.rank == 0:
            self._lock = lock_folder(self.folder)
        self.checkpoints = CheckpointManager(self.folder / "checkpoints", options.keep_checkpoints)
        self.resumed_from, self.resume_state, notes = find_checkpoint(
            options, world, self.folder, self.science, self._machine()
        )
        self.position = Position(**self.resume_state["position"]) if self.resume_state else Position()
        self.resumed = self.resume_state is not None
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
        self.stop_signal = StopSignal(world, options.checkpoint_minutes)
        for line in (*notes, *map(summary_line, self.position.summaries)):
            self.reporter.log(line)

    def _machine(self) -> dict[str, Any]:
        names = set(self.options.as_dict()) - set(self.options.science()) - {"data", "val", "out", "resume"}
        values = {name: self.options.as_dict()[name] for name in sorted(names)}
        return values | {"world_size": self.world.size, "device": self.world.device.type}

    def _write_records(self) -> None:
        (self.folder / "error.txt").unlink(missing_ok=True)  # an earlier attempt may have written it
        remove_leftovers(self.folder, beginning=_RECORDS)
        self.write_status("running", "")
        config = {"options": self.options.as_dict(), "science": self.science, "command": sys.argv}
        write_atomically(self.folder / "config.json", json.dumps(config, indent=1).encode())
        write_atomically(
            self.folder / "environment.json", json.dumps(environment(self.world), indent=1).encode()
        )

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the training's state as the checkpoint of `step`, after the metrics up to it.

        A resume cuts off lines after the checkpoint but cannot restore missing ones.

        Raises:
            ValueError: A weight or a buffer is not finite, so nothing is written.
        """
        self._require_finite(step, state)
        assert self.reporter.file is not None
        self.reporter.file.sync()
        self.checkpoints.save(step, {"science": self.science, "machine": self._machine(), **state})

    def begin_stage(self, backbone: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        """Note which weights and buffers are not finite from the start, such as a mask of -inf."""
        self._never_finite = set(_not_finite(backbone, head))

    def _require_finite(self, step: int, state: Mapping[str, Any]) -> None:
        names = _not_finite(state["backbone"], state["train_step"]["head"])
        names = [name for name in names if name not in self._never_finite]
        if not names:
            return
        paths = self.checkpoints.paths()
        good = f"the last good checkpoint is {paths[-1]}" if paths else "there is no good checkpoint"
        raise ValueError(
            f"the training has diverged: after step {step} of the run, {len(names)} of its weights and "
            f"buffers are not finite, such as {names[0]}; {good}; start anew with a lower --lr, or with "
            "--precision bf16, and with another --out"
        )

    def last_checkpoint(self) -> Path:
        """Return a finished run's newest checkpoint, or that of --resume if nothing was left to train."""
        paths = self.checkpoints.paths()
        return paths[-1] if paths else Path(self.options.resume)

    def write_status(self, state: str, reason: str) -> None:
        """Write status.json.

        Under torchrun, which has exit codes of its own, this file shows how the run ended.

        Args:
            state: "running", "finished", "preempted" or "failed".
            reason: The reason, for people.
        """
        where = {"stage": self.position.stage + 1, "step": self.position.step}
        text = json.dumps({"state": state, **where, "reason": reason}) + "\n"
        write_atomically(self.folder / "status.json", text.encode())

    def status(self) -> str | None:
        """Return the state in status.json, written by any rank; None if this start has not written it yet."""
        path = self.folder / "status.json"
        return str(json.loads(path.read_text())["state"]) if path.exists() else None

    def close(self) -> None:
        self.reporter.close()
        self.stop_signal.close()
        self._close_files()

    def _close_files(self) -> None:
        self.data.close()
        if self._lock is not None:
            self._lock.close()


def _not_finite(backbone: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    """Return the names of a backbone's and a head's tensors that are not finite."""
    values = {**backbone, **{f"head.{name}": value for name, value in head.items()}}
    return [n for n, value in values.items() if isinstance(value, Tensor) and not value.isfinite().all()]


_KEPT = tuple(name for name in NAMES if name not in ("resident", "synthetic"))  # these are for a data set


def choose_run_decoder(run: Run, num_views: int, kept: str | None) -> None:
    """Choose the decoder of a run's data for `auto`. Every rank calls this.

    Rank 0 chooses for all, by its own cores and GPU. A run that goes on keeps the decoder of its start, where
    it works. Nothing is chosen for small raw images, which loaders keep on the GPU, nor for synthetic data.

    Args:
        run: The run.
        num_views: The views of each training image.
        kept: The decoder in the run's checkpoint; None if there is none.
    """
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
        if options.decoder == "dali":
            from fastpsl.pipelines.decoders import dali

            if why := "dali is for GPUs" if device.type == "cpu" else dali.why_missing(device):
                raise ValueError(why)

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
