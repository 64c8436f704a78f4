"""One run on one machine: its folder, checkpoints and reporting. What is learned is the job's, not this file's."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastpsl.engine.distributed import share
from fastpsl.engine.environment import environment
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.resume import choose_folder, find_checkpoint, lock_folder
from fastpsl.engine.run_data import RunData
from fastpsl.engine.signals import StopSignal
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.files.atomic import output_errors, write_atomically


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
    """A run's folder, checkpoints and reporting; nothing is written where the request cannot be served."""

    def __init__(self, recipe: str, data: RunData, science: Mapping[str, Any] | None = None):
        """Take the data, which `close` closes.

        Args:
            science: What else must not change on resume, besides the options' science and the data.

        Raises:
            ValueError: The request cannot be served. The data is closed then.
        """
        self.data, self.options, self.world = data, data.options, data.world
        self.precision = self.options.resolved_precision(self.world.device)
        self._lock: IO[str] | None = None
        try:
            if self.options.sync_batchnorm and self.world.device.type != "cuda":
                raise ValueError("--sync-batchnorm needs CUDA: torch's SyncBatchNorm does not run on the CPU")
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
        self.stop_signal = StopSignal(world, options.checkpoint_minutes)
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

    def close(self) -> None:
        self.reporter.close()
        self.stop_signal.close()
        self._close_files()

    def _close_files(self) -> None:
        self.data.close()
        if self._lock is not None:
            self._lock.close()
