"""Logging of a run: metrics.jsonl, TensorBoard and W&B, the progress screen and a summary per stage."""

import contextlib
import csv
import io
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastpsl.console.installed import install
from fastpsl.console.progress import clock
from fastpsl.console.screen import Numbers, Screen, make_console
from fastpsl.console.terminal import escaped
from fastpsl.console.words import gibibytes, metric_words, number_of, percent, val_words
from fastpsl.engine.distributed import World, share, sum_over_ranks
from fastpsl.engine.gpu import AsyncCopy, memory_held
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StepMetrics
from fastpsl.engine.time_left import ONLY_STAGE, Pace, WorkAhead
from fastpsl.files.atomic import write_atomically
from fastpsl.files.run_folder import EPOCHS, METRICS, count_lines, read_lines
from fastpsl.pipelines.loader.batch import BadSample, Batch


class MetricsFile:
    """A file with a line per step. Opening it cuts off damaged lines and those after a resumed checkpoint."""

    def __init__(self, path: Path, resumed_run_step: int):
        self.path = path
        path.touch()
        kept_bytes = 0
        for line in read_lines(path):
            if line.row["run_step"] > resumed_run_step:
                break
            kept_bytes = line.end
        else:
            if count_lines(path, kept_bytes):  # `read_lines` has warned
                # Cutting would destroy lines that a person may still want to read.
                shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
        os.truncate(path, kept_bytes)  # a resumed run makes the steps after its checkpoint again

    def append(self, lines: list[dict[str, Any]]) -> None:
        with open(self.path, "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        with open(self.path, "a") as file:
            os.fsync(file.fileno())  # of the file's lines, whichever descriptor wrote them

    def losses(self, stage: str) -> list[float]:
        """Return the losses of a stage's steps that had valid samples."""
        return [row["loss"] for row in self._rows(stage) if row.get("loss") is not None]

    def not_finite(self, stage: str) -> tuple[int | None, bool]:
        """Return the first step of a stage with a loss that is not finite, and whether a last loss is none.

        Blockwise training has a loss for each part.
        """
        first, last = None, dict[str, bool]()
        for row in self._rows(stage):
            for name, value in row.items():
                if (name == "loss" or name.endswith("_loss")) and value is not None:
                    last[name] = math.isfinite(value)
                    first = row["step"] if first is None and not last[name] else first
        return first, not all(last.values())

    def _rows(self, stage: str) -> Iterator[dict[str, Any]]:
        return (line.row for line in read_lines(self.path) if line.row["stage"] == stage)


class EpochLog:
    """A log of epochs. Opening it removes the lines after the step from which a run resumes."""

    def __init__(self, path: Path, resumed_run_step: int):
        self.path = path
        if path.exists():  # it comes into being with its first line
            MetricsFile(path, resumed_run_step)  # for its cut alone

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line. It replaces lines of the same or a later "run_step" and "epoch"."""
        place = (line["run_step"], line["epoch"])
        lines = [each.row for each in read_lines(self.path) if each.row.get("epoch") is not None]
        # A killed run may have logged epochs after its last checkpoint, which the resumed run logs again.
        lines = [each for each in lines if (each["run_step"], each["epoch"]) < place]
        text = "".join(json.dumps(each) + "\n" for each in (*lines, line))
        write_atomically(self.path, text.encode())


def start_wandb(folder: Path, config: dict[str, Any]) -> Any:
    """Start a W&B run, or resume the one with the id stored in the folder."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError(f"--wandb needs wandb: {install('wandb')}") from error
    id_file = folder / "wandb-id.txt"
    if not id_file.exists():
        # Our own id and not W&B's, so that a resume goes on with the same curves.
        write_atomically(id_file, secrets.token_hex(8).encode())
    try:
        return wandb.init(dir=folder, id=id_file.read_text(), name=folder.name, resume="allow", config=config)
    except wandb.Error as error:
        raise ValueError(f"--wandb: {error}; log in (wandb login), or set WANDB_MODE=offline") from error


class DivergedError(ValueError):
    """An error of a training that has diverged."""


def diverged(what: str) -> DivergedError:
    """Return the error that ends a training, and tells what is not finite."""
    return DivergedError(
        f"the training has diverged: {what}; start anew with a lower --lr, or with --precision bf16, and "
        "with another --out"
    )


# In fp16, the first steps of a stage search for the scale, which takes about twenty.
FIRST_STEPS = 100
# The run ends if more than half of so many later steps are skipped, or half as many in a row.
WINDOW = 200


class SkippedSteps:
    """The skipped steps of a stage, from the counts that are fetched now and then; the same on every rank."""

    def __init__(self) -> None:
        self._num = 0
        self._num_in_a_row = 0
        self._latest: deque[bool] = deque(maxlen=WINDOW)  # of the steps after the first ones
        self._diverged = ""

    def line(self, nums: list[int], first: int) -> str:
        """Return a line about skipped steps since the last call, or nothing."""
        before = self._num
        for step, num in enumerate(nums, start=first):
            self._see(step, num > self._num)
            self._num = num
        if self._num == before:
            return ""
        return (
            f"{self._num - before} of steps {first} to {first + len(nums) - 1} had gradients that are not "
            "finite and changed nothing (usual in the first steps of a stage in fp16; if it goes on, start "
            "anew with a lower --lr, or with --precision bf16)"
        )

    def _see(self, step: int, is_skipped: bool) -> None:
        self._num_in_a_row = self._num_in_a_row + 1 if is_skipped else 0
        if step > FIRST_STEPS:
            self._latest.append(is_skipped)
        if self._num_in_a_row >= WINDOW // 2:
            self._diverged = f"the last {self._num_in_a_row} steps"
        elif sum(self._latest) > WINDOW // 2:
            self._diverged = f"{sum(self._latest)} of the last {len(self._latest)} steps"

    def require_effect(self, first: Callable[[], str] = str) -> None:
        """Raise DivergedError if the steps have little effect any more. `first` is of `Reporter`."""
        if self._diverged:
            raise diverged(f"{self._diverged} had gradients that are not finite and changed nothing{first()}")


def summary_line(summary: dict[str, Any]) -> str:
    """Return a stage's summary as one line for people."""
    num, planned = summary["num_steps"], summary["num_steps_planned"]
    steps = number_of(num, "step") if num == planned else f"{num:,} of {number_of(planned, 'step')}"
    steps += f" in {clock(summary['seconds'])}"
    text = f"{summary['stage']} (level G{summary['level']}): {steps}"
    if summary.get("loss_start") is not None:
        text += f", {_loss_words(summary)}"
    chance = "" if summary.get("chance") is None else f" (chance {percent(summary['chance'])})"
    if val := val_words(summary["val"], chance, summary.get("accuracy_name", "accuracy")):
        text += f", validation {val}"
    if knn := knn_words(summary):
        text += f", {knn}"
    if "peak_allocated_bytes" in summary:
        peak, used = gibibytes(summary["peak_allocated_bytes"]), gibibytes(summary["device_used_bytes"])
        text += f", GPU memory {peak} at most ({used} with all else)"
    return text


def result_words(summary: Mapping[str, Any]) -> str:
    """Return what the last stage of a run has come to: its accuracy for the images' classes, or its loss."""
    accuracy = val_words(summary["val"], "") if "top1" in summary["val"] else ""
    return knn_words(summary) or accuracy or _loss_words(summary)


def _loss_words(summary: Mapping[str, Any]) -> str:
    if None in (summary.get("loss_start"), summary.get("loss_end")):
        return "no loss"
    return f"loss {summary['loss_start']:.3f} → {summary['loss_end']:.3f}"


# What the network before the first step is called, by the name of its kNN accuracy in probe.jsonl.
BEFORE = {"knn_untrained": "untrained", "knn_at_start": "at the start"}


def knn_words(figures: Mapping[str, Any]) -> str:
    """Return the monitor's accuracy beside that before the first step, if they are known."""
    if figures.get("knn_accuracy") is None:
        return ""
    before = (f" ({BEFORE[n]} {percent(figures[n])})" for n in BEFORE if figures.get(n) is not None)
    return f"kNN {percent(figures['knn_accuracy'])}" + "".join(before)


# A stage's loss "at its start" and "at its end" is a mean over this many steps, or over half of a shorter
# stage.
SUMMARY_STEPS = 10

EpochMetrics = Mapping[str, float | None]
"""A task's figures of an epoch; None for an unknown value."""


class Reporter:
    """A reporter that collects each step's metrics on the device and fetches them every `log_steps` steps."""

    def __init__(
        self, folder: Path, world: World, *, batch_size: int, log_steps: int, resumed_run_step: int,
        tensorboard: bool, wandb: bool, config: dict[str, Any], quiet: bool = False,
    ):  # fmt: skip
        self.folder, self.world, self.batch_size, self.log_steps = folder, world, batch_size, log_steps
        self._bad_names, self._bad_read = set[str](), 0
        self.screen = Screen(make_console(quiet=quiet)) if world.rank == 0 else None
        self.file = MetricsFile(folder / METRICS, resumed_run_step) if world.rank == 0 else None
        self.epochs = EpochLog(folder / EPOCHS, resumed_run_step) if world.rank == 0 else None
        self.board = self.wandb = None
        if world.rank == 0 and wandb:
            self.wandb = start_wandb(folder, config)  # may be refused, before the board has a thread
        if world.rank == 0 and tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes half a second

            # It drops what an earlier start logged at the purged step and later, which comes again.
            self.board = SummaryWriter(folder / "tensorboard", purge_step=resumed_run_step + 1)
        self._pending: list[tuple[dict[str, Any], Tensor]] = []
        self._names: list[str] = []
        self._wait_s = 0.0
        self._window_started = time.perf_counter()
        self._pending_copy: tuple[list[dict[str, Any]], list[str], AsyncCopy] | None = None
        self._is_timed = False  # a stage's first step builds what others only use, and is no measure of them
        self._began = time.perf_counter()  # of the stage
        self._pace = Pace()
        self.accuracy_name = "accuracy"  # for people; in files, the metric is "accuracy"
        self._last_logged: dict[str, str] = {}
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
        if self._last_logged.get(name) != text:
            self._last_logged[name] = text
            self.log(f"{name} {text}")

    def stage_begins(
        self, stage: Stage, step: int, num_steps: int, steps_per_epoch: int, ahead: WorkAhead = ONLY_STAGE
    ) -> None:
        """Begin a stage of `num_steps` steps after `step` of them."""
        self.batch_size = stage.batch_size or self.batch_size
        self._stage, self._num_steps, self._skipped_steps = stage, num_steps, SkippedSteps()
        self._steps_per_epoch, self._ahead = steps_per_epoch, ahead
        self._wait_s, self._is_timed, self._pace = 0.0, False, Pace(self._pace)
        self._began = time.perf_counter()
        per_epoch = number_of(steps_per_epoch, "step")
        length = " of" if stage.num_steps is None else ", epochs of"
        self.log(f"{stage}{length} {per_epoch}; steps {step} to {num_steps}")
        if self.screen:
            self.screen.begin(self._numbers(step))

    def epoch(self, figures: EpochMetrics | None, epochs: float, run_step: int) -> None:
        """Log rank 0's figures of the epoch that ended at `epochs`, counted over all stages."""
        if not figures or self.epochs is None:
            return
        line = {"run_step": run_step, "epoch": round(epochs, 3), "stage": self._stage.name}
        self.epochs.add(line | dict(figures))
        values = {name: value for name, value in figures.items() if value is not None}
        numbers = ", ".join(f"{name} {metric_words(name, value)}" for name, value in values.items())
        self.log(f"after epoch {round(epochs, 2):g}: {numbers}")
        self.scalars({f"epoch/{name}": value for name, value in values.items()}, run_step)

    def scalars(self, values: Mapping[str, float], run_step: int) -> None:
        """Send values to TensorBoard and W&B, whichever are used."""
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, run_step)
        if self.wandb:
            self.wandb.log(dict(values), step=run_step)

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Exclude work between two steps from the logged speed. All ranks call it at the same step."""
        self.flush()  # the pending steps' time ends here
        started = time.perf_counter()
        yield
        self._window_started, self._wait_s = time.perf_counter(), 0.0
        if self._is_timed:
            self._pace.add_between(self._window_started - started)
        else:
            self._began += self._window_started - started  # it is no part of the stage's start

    def at_the_end(self, batches: Iterator[Batch], batch_size: int, num_images: int) -> Iterator[Batch]:
        """Yield the `batches` of `num_images` images that pass forward after a stage's steps, and time them.

        The time left is that of the images from here on. `batch_size` is that of all ranks.
        """
        first, started = 0, 0.0
        for number, batch in enumerate(self.watched(batches), start=1):
            yield batch
            done, now = min(number * batch_size, num_images), time.perf_counter()
            if number == 1:  # it has taken the loader's start, too
                first, started = done, now
            self._pace.add_images(done - first, now - started, num_images - done, self._ahead.image_steps)
            if self.screen:
                eta_s, run_eta_s = self._pace.time_left(0, self._ahead)
                self.screen.expect(eta_s, run_eta_s)

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
        """Report each skipped sample once, on this rank's terminal and in bad-samples.csv.

        The ranks share the file, and a resumed run goes on with it. What it lists has been reported.
        """
        if not any(sample.name not in self._bad_names for sample in bad):
            return
        path = self.folder / "bad-samples.csv"
        # Names may hold any bytes.
        # To append, because other ranks write to the same end.
        with open(path, "a+", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.seek(self._bad_read)  # from there on are lines of other ranks, or of an earlier start
            for row in csv.reader(io.StringIO(file.read(), newline="")):
                self._bad_names.update(row[1:2])
            for sample in bad:
                if sample.name not in self._bad_names:
                    self._bad_names.add(sample.name)
                    print(escaped(f"skipped {' '.join(str(sample).split())}"), file=sys.stderr, flush=True)
                    csv.writer(file).writerow([sample.index, sample.name, sample.reason])
                    file.flush()  # a line is one write
            self._bad_read = file.tell()

    def step(self, step: int, run_step: int, lr: float, metrics: StepMetrics) -> None:
        """Note one step."""
        # Now, because this step has been launched: the host waits only for the one before, which is over or
        # nearly so, and writes its numbers while the device computes.
        self._finish_copy()
        self._names = list(metrics.names)
        stage = {"stage": self._stage.name, "level": self._stage.level}
        self._pending.append(({"run_step": run_step, **stage, "step": step, "lr": lr}, metrics.values))
        if self._is_timed and (step - 1) % self._steps_per_epoch == 0:
            self._pace.add_epoch()
        if self.screen:
            self.screen.reach(step)
        if step == self._num_steps:  # no step follows in which the copy could be finished
            self.flush()
        elif step % self.log_steps == 0 or not self._is_timed:
            self._begin_copy()
            if self.world.device.type == "cpu":  # its step is over, and the numbers are there
                self._finish_copy()

    def flush(self) -> None:
        """Fetch and write the pending metrics, summed over ranks. Every rank calls it at the same step."""
        self._finish_copy()
        if self._pending:
            self._begin_copy()
            self._finish_copy()

    def _begin_copy(self) -> None:
        """Sum the pending metrics over the ranks, and start their transfer to the host."""
        # In float64: how a sum over ranks is rounded depends on how many steps are summed at once, and so on
        # the clock.
        values = torch.stack([values for _, values in self._pending])
        sums = sum_over_ranks(self.world, values.double()).float()
        self._pending_copy = [row for row, _ in self._pending], self._names, AsyncCopy(sums)
        self._pending = []

    def _finish_copy(self) -> None:
        """Wait for the transfer in progress, if there is one, and write the numbers."""
        if self._pending_copy is None:
            return
        (steps, names, numbers), self._pending_copy = self._pending_copy, None
        rows = numbers.values().tolist()
        now = time.perf_counter()
        elapsed = max(now - self._window_started, 1e-9)  # it divides, and a clock may stand still
        mean = lambda total, count: total / count if count else None
        lines = [
            row | {name: mean(*pair) for name, pair in zip(names, pairs, strict=True)}
            for row, (*pairs, _) in zip(steps, rows, strict=True)
        ]
        if self.file and self.screen:
            self.file.append(lines)
            self._show(lines, names, elapsed if self._is_timed else None)
        # Every rank has the same number.
        skipped = [round(total / count) for *_, (total, count) in rows]
        if text := self._skipped_steps.line(skipped, lines[0]["step"]):
            self.log(text)
        if not self._is_timed:
            self._pace.add_start(now - self._began)
        self._is_timed = True
        self._window_started, self._wait_s = time.perf_counter(), 0.0
        # Last, so that the losses of a training that has diverged are on record.
        self._skipped_steps.require_effect(self.first_not_finite)

    def require_finite_loss(self) -> None:
        """Raise DivergedError if the loss of the stage's last step is not finite. Every rank calls it.

        All metrics have been flushed.
        """
        name = self._stage.name
        # Rank 0 alone has the file, and all ranks must end.
        if share(self.world, self.file is not None and self.file.not_finite(name)[1]):
            raise diverged(f"the loss of {name}'s last step is not finite{self.first_not_finite()}")

    def first_not_finite(self) -> str:
        """Return what rank 0 says of the stage's first loss that is not finite, for an error message."""
        name = self._stage.name
        first = self.file.not_finite(name)[0] if self.file else None
        return "" if first is None else f"; the first such loss of {name} is that of step {first:,}"

    def _show(self, lines: list[dict[str, Any]], names: list[str], elapsed: float | None) -> None:
        """Show the mean metrics of some steps, and the pace if their time is known."""
        assert self.screen
        last, means = lines[-1], dict[str, float]()
        for name in names:
            values = [line[name] for line in lines if line[name] is not None]
            means[name] = sum(values) / max(len(values), 1)
        pace: dict[str, Any] = {}
        if elapsed is not None:
            pace["images_per_s"] = self.batch_size * len(lines) / elapsed
            pace["data_wait_percent"] = 100 * self._wait_s / elapsed
            self._pace.add(len(lines), elapsed)
        numbers = self._numbers(last["step"], means, last["lr"])
        left_s = numbers.eta_s if numbers.run_eta_s is None else numbers.run_eta_s
        if left_s and not self._has_told_length and self._pace.is_known:
            self._has_told_length = True
            self.log(f"the run takes {clock(left_s)} from here, at the pace of its first steps")
        self.screen.show(replace(numbers, gpu_bytes=memory_held(self.world.device), **pace))
        self.scalars(means | {"lr": last["lr"]} | pace, last["run_step"])

    def _numbers(
        self, step: int, metrics: Mapping[str, float] | None = None, lr: float | None = None
    ) -> Numbers:
        """Return where the stage is after `step`, and the time left once its pace is known."""
        num_steps = max(self._num_steps, step)  # a resumed stage may have passed a lower limit
        num_epochs = (num_steps - 1) // self._steps_per_epoch - max(step - 1, 0) // self._steps_per_epoch
        eta_s, run_eta_s = self._pace.time_left(num_steps - step, self._ahead, num_epochs)
        return Numbers(
            self._stage.name, self._stage.level, self._ahead.number, self._ahead.num_stages,
            self._steps_per_epoch, step, num_steps, self._named(metrics or {}), lr,
            eta_s=eta_s, run_eta_s=run_eta_s,
        )  # fmt: skip

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics by the names that people see."""
        return {self.accuracy_name if name == "accuracy" else name: value for name, value in metrics.items()}

    def stage_summary(
        self,
        stage: Stage,
        num_steps: tuple[int, int],
        seconds: float,
        val: dict[str, float],
        chance: float | None,
        figures: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return and print a stage's summary, which is complete on rank 0 only.

        `num_steps` are the numbers of steps made and planned. `figures` are the results of `OnlineProbe`,
        of `gpu.peak_memory` and of `Run.so_far`.
        """
        losses = self.file.losses(stage.name) if self.file else []
        num = min(SUMMARY_STEPS, max(1, len(losses) // 2))
        head, tail = losses[:num], losses[-num:]
        summary: dict[str, Any] = {
            "stage": stage.name, "level": stage.level, "num_steps": num_steps[0],
            "num_steps_planned": num_steps[1], "seconds": round(seconds, 1),
            "loss_start": sum(head) / len(head) if head else None,
            "loss_end": sum(tail) / len(tail) if tail else None, "val": val, "chance": chance,
        } | dict(figures or {})  # fmt: skip
        if self.accuracy_name != "accuracy":
            summary["accuracy_name"] = self.accuracy_name
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
