"""The training runs below a folder, from their JSON files alone. This module does not import torch.

A run is a folder with a config.json that a training has written. What its files do not tell is None: they may
be of an older version, damaged or not written yet. `Run.damage` names damaged files.
"""

import contextlib
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

from fastpsl.engine.options import NO_VAL, share_of
from fastpsl.files.json_records import Form, NoRecord, open_regular
from fastpsl.files.locks import try_lock
from fastpsl.files.paths import require_existing
from fastpsl.files.run_folder import (
    CONFIG,
    ENVIRONMENT,
    LINES,
    METRICS,
    PROBES,
    RESULTS,
    STATUS,
    last_row,
    read_lines,
)
from fastpsl.files.system_errors import is_of_the_system

NOT_ENTERED = {"checkpoints", "tensorboard", "wandb"}
_NUMBERS = {int, float}
SILENT_S = 1800.0  # a run that writes nothing for longer is told as silent
# Files that grow or are rewritten while a run is at work.
_RECORDS = (*LINES, STATUS.name, CONFIG.name, RESULTS.name)


class Look(NamedTuple):
    """A look of the monitor at the features, a line of probe.jsonl.

    Seconds, images and joules count from the run's start to the look; looks themselves take none of them.
    """

    run_step: int
    stage: str
    epoch: float | None
    block: str
    knn: float | None
    untrained: float | None
    seconds: float | None
    images: float | None
    joules: float | None


@dataclass(frozen=True, repr=False)
class Run(os.PathLike[str]):
    """A run on the disk, with what its files say. It stands for its folder wherever a path is expected.

    Attributes:
        folder: The run's folder.
        config: config.json.
        status: status.json.
        summaries: results.json, a dict for each finished stage.
        environment: environment.json.
        damage: What cannot be read, for people; empty if all can.
        is_unreadable: Whether the system could not read it, so that it may be sound.
    """

    folder: Path
    config: dict[str, Any]
    status: dict[str, Any]
    summaries: list[dict[str, Any]]
    environment: dict[str, Any]
    damage: str
    is_unreadable: bool

    @classmethod
    def of(cls, folder: Path) -> "Run":
        """Read a folder's files; those that cannot be read count as empty, and as `damage`."""
        forms = (CONFIG, STATUS, RESULTS, ENVIRONMENT)
        parts = [_part(form, folder) for form in forms]
        config, status, summaries, environment = (value for value, _ in parts)
        errors = {form.name: error for form, (_, error) in zip(forms, parts, strict=True) if error}
        try:
            open_regular(folder / PROBES).close()
        except FileNotFoundError:
            pass
        except (OSError, NoRecord) as error:
            errors[PROBES] = error
        damage = [
            f"{name} {error.why if isinstance(error, NoRecord) else f'cannot be read ({error.strerror})'}"
            for name, error in errors.items()
        ]
        if not damage and any(config.get(name) is None for name in ("options", "science")):
            damage.append(f"{CONFIG.name} has no options or no science")
        is_unreadable = any(map(is_of_the_system, errors.values()))
        return cls(folder, config, status, summaries, environment, "; ".join(damage), is_unreadable)

    @override
    def __fspath__(self) -> str:
        """Return the folder."""
        return str(self.folder)

    @override
    def __repr__(self) -> str:
        """Return the folder, the recipe and the state."""
        return f"Run({str(self.folder)!r}: {self.science.get('recipe')}, {self.state})"

    @property
    def options(self) -> dict[str, Any]:
        """All options by name."""
        return self.config.get("options") or {}

    @property
    def science(self) -> dict[str, Any]:
        """The options and digests that must be equal on resume."""
        return self.config.get("science") or {}

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.science.get("seed") or 0

    @property
    def written_state(self) -> str:
        """The state in status.json: "running" also if the process was killed."""
        return self.status.get("state") or ""

    @property
    def is_cut(self) -> bool:
        """Whether --max-steps-per-stage cut a finished stage short."""
        return any(_or_0(s.get("num_steps")) < _or_0(s.get("num_steps_planned")) for s in self.summaries)

    @cached_property
    def changed(self) -> float:
        """The time of the last change of its files, in seconds since 1970."""
        times = []
        for name in _RECORDS:
            with contextlib.suppress(OSError):
                times.append((self.folder / name).stat().st_mtime)
        return max(times, default=0.0)

    @cached_property
    def state(self) -> str:
        """The state now: one of those in status.json, or silent, killed, damaged, unreadable or unknown.

        A silent run has a process, and has written nothing for half an hour.
        """
        if self.damage:
            return "unreadable" if self.is_unreadable else "damaged"
        if self.written_state != "running":
            return self.written_state or "unknown"
        is_late = time.time() - self.changed > SILENT_S
        at_work = _is_at_work(self.folder / ".lock")
        if at_work is None:
            at_work = not is_late
        return ("silent" if is_late else "running") if at_work else "killed"

    @cached_property
    def looks(self) -> list[Look]:
        """The looks of the monitor that have a kNN accuracy, in order, without the untrained network's."""
        return [look for look in self._lines if look.run_step and look.knn is not None]

    @cached_property
    def _lines(self) -> list[Look]:
        lines = list[dict[str, Any]]()
        with warnings.catch_warnings(), contextlib.suppress(ValueError):  # `damage` names the file then
            warnings.simplefilter("ignore")  # what can be read counts; a resume warns and keeps the file
            lines += [line.row for line in read_lines(self.folder / PROBES)]
        first = {str(row.get("block")): row.get("knn_accuracy") for row in lines if not row["run_step"]}
        batch, ends = number(self.options.get("batch_size")), self._seconds_at_ends
        looks = []
        for row in lines:
            step, block = row["run_step"], str(row.get("block", ""))
            before = row.get("knn_untrained", row.get("knn_at_start", first.get(block)))
            if (seconds := number(row.get("seconds"))) is None:
                seconds = ends.get(step)
            if (images := number(row.get("images"))) is None and batch is not None:
                images = step * batch
            looks.append(Look(
                step, row["stage"], number(row.get("epoch")), block, number(row.get("knn_accuracy")),
                number(before), seconds, images, number(row.get("joules")),
            ))  # fmt: skip
        return looks

    @property
    def _seconds_at_ends(self) -> dict[int, float]:
        """Return the run's step at each stage's end → the seconds of all steps to it."""
        ends, step, seconds = dict[int, float](), 0.0, 0.0
        for summary in self.summaries:
            step += _or_0(summary.get("num_steps"))
            seconds += _or_0(summary.get("seconds"))
            ends[int(step)] = seconds
        return ends

    @property
    def best(self) -> Look | None:
        """The look with the highest kNN accuracy, the first of equal ones."""
        return max(self.looks, key=lambda look: look.knn or 0.0, default=None)

    @property
    def top1(self) -> float | None:
        """The top-1 accuracy of the last stage's validation, in [0, 1], of a run that learns the classes."""
        val = self.summaries[-1].get("val") if self.summaries else None
        return number(val.get("top1")) if isinstance(val, dict) else None

    @property
    def steps(self) -> int | None:
        """The steps that were made; of a run at work, those in metrics.jsonl."""
        if self.written_state == "finished" and self.summaries:
            return int(sum(_or_0(summary.get("num_steps")) for summary in self.summaries))
        try:
            row = last_row(self.folder / METRICS)
        except (OSError, ValueError):
            return None
        return 0 if row is None else row["run_step"]

    @property
    def steps_planned(self) -> int | None:
        """The steps of the plan, without the limit of --max-steps-per-stage; None if no file tells."""
        if steps := number(self.config.get("steps")):
            return int(steps)
        if self.written_state == "finished" and self.summaries:
            return int(sum(_or_0(summary.get("num_steps_planned")) for summary in self.summaries))
        return None

    def _sum(self, name: str) -> float | None:
        values = [number(summary.get(name)) for summary in self.summaries]
        return None if not values or None in values else sum(value or 0.0 for value in values)

    def _most(self, name: str) -> float | None:
        """Return seconds, images or joules at the last stage's end or look; None if it is 0 or unknown."""
        ends = [s["so_far"] for s in self.summaries if isinstance(s.get("so_far"), dict)]
        values = [_or_0(end.get(name)) for end in ends]
        values += [getattr(look, name) or 0.0 for look in self._lines]
        return max(values, default=0.0) or None

    @property
    def seconds(self) -> float | None:
        """The seconds of the training, without the monitor's looks; as of the last look or finished stage."""
        return self._most("seconds") or self._sum("seconds")

    @property
    def images(self) -> float | None:
        """The images that were learned from, each epoch anew; as of the last look or finished stage."""
        return max(self._images_in_stages, self._most("images") or 0.0) or None

    @property
    def _images_in_stages(self) -> float:
        """The images of the finished stages' steps; 0 if unknown."""
        last = self.summaries[-1].get("so_far") if self.summaries else None
        by_steps = _or_0(self._sum("num_steps")) * _or_0(self.options.get("batch_size"))
        return (_or_0(last.get("images")) if isinstance(last, dict) else 0.0) or by_steps

    @property
    def joules(self) -> float | None:
        """The energy of the GPUs, as `seconds`; None where it was not measured."""
        return self._most("joules")

    @property
    def images_per_s(self) -> float | None:
        """The images per second of the steps of finished stages, or else of the time to the last look."""
        pairs = [(self._images_in_stages, self._sum("seconds"))]
        pairs += [(look.images or 0.0, look.seconds) for look in reversed(self._lines)]
        return next((images / seconds for images, seconds in pairs if images and seconds), None)

    @property
    def peak_bytes(self) -> float | None:
        """The most that torch's tensors took on the GPU."""
        return max((_or_0(s.get("peak_allocated_bytes")) for s in self.summaries), default=0.0) or None

    @property
    def num_images(self) -> int | None:
        """The number of training images."""
        return (self.config.get("images") or {}).get("train")

    def as_dict(self) -> dict[str, Any]:
        """Return what `fastpsl runs` tells, as plain values; None for what is unknown."""
        best, reason = self.best, self.damage or self.status.get("reason")
        return {
            "folder": str(self.folder), "state": self.state, "reason": reason,
            "cut": self.is_cut, "changed": round(self.changed, 3), "recipe": self.science.get("recipe"),
            "backbone": self.options.get("backbone"), "plan": self.options.get("plan"),
            "data": self.options.get("data"), "images_in_data": self.num_images,
            "best": best and best._asdict(), "last": self.looks[-1]._asdict() if self.looks else None,
            "top1": self.top1, "steps": self.steps, "steps_planned": self.steps_planned,
            "seconds": self.seconds, "images": self.images, "images_per_s": self.images_per_s,
            "joules": self.joules, "peak_bytes": self.peak_bytes,
        }  # fmt: skip

    def data(self, learned: str) -> dict[str, str]:
        """Return its --data as the part `learned`, and --val as "val", where they name data."""
        named = {learned: self.options.get("data"), "val": self.options.get("val")}
        return {
            part: path
            for part, path in named.items()
            if path not in (None, NO_VAL) and share_of(path) is None
        }  # fmt: skip

    @property
    def can_be_evaluated(self) -> bool:
        """Whether it has finished and its last checkpoint is still there."""
        from fastpsl.models.checkpoint import CheckpointManager  # imports torch

        is_finished = self.written_state == "finished"
        return is_finished and bool(CheckpointManager(self.folder / "checkpoints").paths())


def number(value: Any) -> float | None:
    """Return a finite number of a record; None for anything else."""
    return float(value) if type(value) in _NUMBERS and math.isfinite(value) else None


def _or_0(value: Any) -> float:
    return number(value) or 0.0


def _part(form: Form, folder: Path) -> tuple[Any, NoRecord | OSError | None]:
    """Return a record of a run's folder, empty if there is none, and why it cannot be read."""
    try:
        return form.of(folder), None
    except (OSError, NoRecord) as error:
        return [] if form.is_list else {}, None if isinstance(error, FileNotFoundError) else error


def _is_at_work(lock: Path) -> bool | None:
    """Return whether a process holds a run's lock; None if that cannot be told from here.

    Some file systems have no locks, or none between machines. So a free lock tells the end of the run alone
    where the run's machine is this one.
    """
    try:
        with open_regular(lock) as file:
            host = file.read(256).decode().strip()
            is_free = try_lock(file, shared=True)
    except (OSError, ValueError):
        return None
    if is_free is False:
        return True
    return False if is_free and host in ("", socket.gethostname()) else None


def is_run(folder: str | Path, files: Sequence[str]) -> bool:
    """Return whether a folder with these files is a run's: other programs have a config.json, too."""
    if CONFIG.name not in files:
        return False
    if STATUS.name in files:
        return True
    config, error = _part(CONFIG, Path(folder))
    return {"options", "science"} <= config.keys() or (error is not None and is_of_the_system(error))


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below one, in the order of their paths, with the names of their files."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in NOT_ENTERED)
        yield Path(path), files


def find_runs(folder: Path) -> list[Run]:
    """Return the runs below a folder, the one that changed last first.

    Raises:
        ValueError: There is no such folder, or no run in it.
    """
    require_existing(folder, "the folder that your runs are written to, such as runs")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the folder that your runs are written to")
    runs = [Run.of(path) for path, files in walk(folder) if is_run(path, files)]
    if not runs:
        raise ValueError(
            f"{folder}: no run in it, a folder with the config.json of `fastpsl train NAME`; give the folder "
            "that your runs are written to"
        )
    return sorted(runs, key=lambda run: (-run.changed, str(run.folder)))
