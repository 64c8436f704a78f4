"""Logging of a run: metrics.jsonl, TensorBoard and W&B, the progress screen and a summary per stage."""

import contextlib
import csv
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fastpsl.console.progress import clock
from fastpsl.console.screen import Numbers, Screen
from fastpsl.console.terminal import escaped
from fastpsl.console.words import metric_words, number_of
from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.engine.epoch_log import EpochLog
from fastpsl.engine.fetch import Fetch
from fastpsl.engine.gpu_memory import memory_held
from fastpsl.engine.metrics_file import MetricsFile
from fastpsl.engine.plan import Stage
from fastpsl.engine.skipped_steps import SkippedSteps
from fastpsl.engine.stage_blocks import StepMetrics
from fastpsl.engine.stage_summary import summary_line
from fastpsl.engine.time_left import ONLY_STAGE, Pace, WorkAhead
from fastpsl.engine.wandb_run import start_wandb
from fastpsl.pipelines.loader.batch import BadSample, Batch

# A stage's loss "at its start" and "at its end" is a mean over this many steps, or over half of a shorter
# stage.
SUMMARY_STEPS = 10

Figures = Mapping[str, float | None]
"""A task's figures of an epoch; None for an unknown value."""


class Reporter:
    """A reporter that collects each step's metrics on the device and fetches them every `log_steps` steps.

    A stage's first step is fetched, too, and shown without a speed, because it builds what others only use.
    On a GPU, a fetch is finished after the next step was launched. The host then waits only for a step that
    is over or nearly so, and writes the numbers while the device computes the next one.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        batch_size: int,
        log_steps: int,
        resumed_run_step: int,
        tensorboard: bool,
        wandb: bool,
        config: dict[str, Any],
    ):
        self.folder, self.world, self.batch_size, self.log_steps = folder, world, batch_size, log_steps
        self._bad_names: set[str] = set()
        self.screen = Screen() if world.rank == 0 else None
        self.file = MetricsFile(folder / "metrics.jsonl", resumed_run_step) if world.rank == 0 else None
        self.epochs = EpochLog(folder / "epochs.jsonl", resumed_run_step) if world.rank == 0 else None
        self.board = self.wandb = None
        if world.rank == 0 and tensorboard:
            self.board = SummaryWriter(folder / "tensorboard", purge_step=resumed_run_step + 1)
        if world.rank == 0 and wandb:
            self.wandb = start_wandb(folder, config)
        self._pending: list[tuple[dict[str, Any], Tensor]] = []
        self._names: list[str] = []
        self._wait_s = 0.0
        self._window_started = time.perf_counter()
        self._look: tuple[list[dict[str, Any]], list[str], Fetch] | None = None
        self._is_timed = False
        self._told: dict[str, str] = {}
        self._causes = set[str]()
        self._has_told_length = False

    def log(self, text: str) -> None:
        """Print a line for people, on rank 0."""
        if self.screen:
            self.screen.log(text)

    def log_once(self, cause: str, text: str) -> None:
        """Print a line on each machine's first rank, unless that rank had one with the same cause."""
        if cause in self._causes:
            return
        self._causes.add(cause)
        self.log(text)
        if self.world.rank and not self.world.local_rank:
            print(f"rank {self.world.rank}: {escaped(text)}", file=sys.stderr, flush=True)

    def log_choice(self, name: str, text: str) -> None:
        """Print how something is computed, unless the stage before had the same choice."""
        if self._told.get(name) != text:
            self._told[name] = text
            self.log(f"{name} {text}")

    def stage_begins(
        self, stage: Stage, step: int, num_steps: int, steps_per_epoch: int, ahead: WorkAhead = ONLY_STAGE
    ) -> None:
        """Begin a stage of `num_steps` steps after `step` of them."""
        self._stage, self._num_steps, self._skipped_steps = stage, num_steps, SkippedSteps()
        self._steps_per_epoch, self._ahead = steps_per_epoch, ahead
        self._wait_s, self._is_timed, self._pace = 0.0, False, Pace()
        per_epoch = number_of(steps_per_epoch, "step")
        length = " of" if stage.num_steps is None else ", epochs of"
        self.log(f"{stage}{length} {per_epoch}; steps {step} to {num_steps}")
        if self.screen:
            self.screen.begin(self._numbers(step))

    def epoch(self, figures: Figures | None, epochs: float, run_step: int) -> None:
        """Log rank 0's figures of the epoch that ended at `epochs`, counted over all stages."""
        if not figures or self.epochs is None:
            return
        line = {"run_step": run_step, "epoch": round(epochs, 3), "stage": self._stage.name}
        self.epochs.add(line | dict(figures))
        values = {name: value for name, value in figures.items() if value is not None}
        numbers = ", ".join(f"{name} {metric_words(name, value)}" for name, value in values.items())
        self.log(f"after epoch {round(epochs, 2):g}: {numbers}")
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"epoch/{name}", value, run_step)
        if self.wandb:
            self.wandb.log({f"epoch/{name}": value for name, value in values.items()}, step=run_step)

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Exclude work between two steps from the logged speed. All ranks call it at the same step."""
        self.flush()
        yield
        self._window_started, self._wait_s = time.perf_counter(), 0.0

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield `batches`, add the time of waiting for them to "data wait", and note skipped samples."""
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._wait_s += time.perf_counter() - started
            self._note_bad(batch.bad)
            yield batch

    def _note_bad(self, bad: list[BadSample]) -> None:
        """Report each skipped sample once, on this rank's terminal and in bad-samples.csv."""
        new = [sample for sample in bad if sample.name not in self._bad_names]
        for sample in new:
            self._bad_names.add(sample.name)
            print(escaped(f"skipped {' '.join(str(sample).split())}"), file=sys.stderr, flush=True)
            # Names may hold any bytes. Ranks may share the file, so each line is one write.
            path = self.folder / "bad-samples.csv"
            with open(path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerow([sample.index, sample.name, sample.reason])

    def step(self, step: int, run_step: int, lr: float, metrics: StepMetrics) -> None:
        """Note one step.

        Raises:
            ValueError: So many steps had non-finite gradients that the training has diverged.
        """
        self._finish_look()
        self._names = list(metrics.names)
        row = {
            "run_step": run_step,
            "stage": self._stage.name,
            "level": self._stage.level,
            "step": step,
            "lr": lr,
        }
        self._pending.append((row, metrics.values))
        if self.screen:
            self.screen.reach(step)
        if step == self._num_steps:
            self.flush()
        elif step % self.log_steps == 0 or not self._is_timed:
            self._begin_look()
            if self.world.device.type == "cpu":
                self._finish_look()

    def flush(self) -> None:
        """Fetch and write the pending metrics, summed over ranks. Every rank calls it at the same step."""
        self._finish_look()
        if self._pending:
            self._begin_look()
            self._finish_look()

    def _begin_look(self) -> None:
        """Sum the pending metrics over the ranks, and start their transfer to the host."""
        sums = sum_over_ranks(self.world, torch.stack([values for _, values in self._pending]))
        self._look = [row for row, _ in self._pending], self._names, Fetch(sums)
        self._pending = []

    def _finish_look(self) -> None:
        """Wait for the transfer in progress, if there is one, and write the numbers."""
        if self._look is None:
            return
        (steps, names, numbers), self._look = self._look, None
        rows = numbers.values().tolist()
        now = time.perf_counter()
        elapsed = max(now - self._window_started, 1e-9)
        lines = [
            row
            | {
                name: total / count if count else None
                for name, (total, count) in zip(names, pairs, strict=True)
            }
            for row, (*pairs, _) in zip(steps, rows, strict=True)
        ]
        if self.file and self.screen:
            self.file.append(lines)
            self._show(lines, names, elapsed if self._is_timed else None)
        # Every rank has the same number.
        skipped = [round(total / count) for *_, (total, count) in rows]
        if text := self._skipped_steps.line(skipped, lines[0]["step"]):
            self.log(text)
        self._is_timed = True
        self._window_started, self._wait_s = time.perf_counter(), 0.0
        self._skipped_steps.require_effect()

    def _show(self, lines: list[dict[str, Any]], names: list[str], elapsed: float | None) -> None:
        """Show the mean metrics of some steps, and the pace if their time is known."""
        assert self.screen
        last = lines[-1]
        means = {}
        for name in names:
            values = [line[name] for line in lines if line[name] is not None]
            means[name] = sum(values) / max(len(values), 1)
        scalars = means | {"lr": last["lr"]}
        pace: dict[str, Any] = {}
        if elapsed is not None:
            pace["images_per_s"] = self.batch_size * len(lines) / elapsed
            pace["data_wait_percent"] = 100 * self._wait_s / elapsed
            self._pace.add(len(lines), elapsed)
        numbers = self._numbers(last["step"], means, last["lr"])
        left_s = numbers.eta_s if numbers.run_eta_s is None else numbers.run_eta_s
        if left_s and not self._has_told_length:
            self._has_told_length = True
            self.log(f"the run takes {clock(left_s)} from here, at the pace of its first steps")
        self.screen.show(replace(numbers, gpu_bytes=memory_held(self.world.device), **pace))
        scalars |= pace
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, last["run_step"])
        if self.wandb:
            self.wandb.log(scalars, step=last["run_step"])

    def _numbers(
        self, step: int, metrics: Mapping[str, float] | None = None, lr: float | None = None
    ) -> Numbers:
        """Return where the stage is after `step`, and the time left once its pace is known."""
        eta_s, run_eta_s = self._pace.time_left(self._num_steps - step, self._ahead)
        return Numbers(
            self._stage.name,
            self._stage.level,
            self._ahead.number,
            self._ahead.num_stages,
            self._steps_per_epoch,
            step,
            max(self._num_steps, step),  # a resumed stage may have passed a lower limit
            metrics or {},
            lr,
            eta_s=eta_s,
            run_eta_s=run_eta_s,
        )

    def stage_summary(
        self,
        stage: Stage,
        num_steps: tuple[int, int],
        seconds: float,
        val: dict[str, float],
        chance: float | None,
        memory: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Return and print a stage's summary, which is complete on rank 0 only.

        `num_steps` are the numbers of steps made and planned, and `memory` is the result of
        `gpu_memory.peak_memory`.
        """
        losses = self.file.losses(stage.name) if self.file else []
        num = min(SUMMARY_STEPS, max(1, len(losses) // 2))
        head, tail = losses[:num], losses[-num:]
        summary: dict[str, Any] = {
            "stage": stage.name,
            "level": stage.level,
            "num_steps": num_steps[0],
            "num_steps_planned": num_steps[1],
            "seconds": round(seconds, 1),
            "loss_start": sum(head) / len(head) if head else None,
            "loss_end": sum(tail) / len(tail) if tail else None,
            "val": val,
            "chance": chance,
        } | dict(memory or {})
        if self.screen:
            self.screen.end_stage()
        self.log(summary_line(summary))
        return summary

    def close(self) -> None:
        if self.screen:
            self.screen.close()
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()
