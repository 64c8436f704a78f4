"""What lies under a folder of runs: results of evaluations, and folders of training runs."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastpsl.evaluation.result import NAME, read_result
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.tables.evaluations import FEW_SHOT, TSNE

_NOT_ENTERED = {"checkpoints", "tensorboard", "wandb"}


@dataclass(frozen=True)
class Result:
    """A result.json: where it lies, and its record."""

    path: Path
    record: dict[str, Any]

    @property
    def science(self) -> dict[str, Any]:
        """Of the run that trained the weights; empty for random and for others' weights."""
        return self.record["checkpoint"].get("science") or {}

    @property
    def seed(self) -> int:
        """Of the pre-training; of the evaluation, where nothing was pre-trained."""
        return int(self.science.get("seed", self.record["settings"].get("seed", 0)))

    @property
    def of_part(self) -> bool:
        """Whether it learned from a part of the training pictures: then their record is that part's."""
        return "percent" in self.record["settings"]

    @property
    def data(self) -> tuple[str | None, str | None]:
        """Digests of all training pictures and of the held-out ones; None where a result of a part does not tell the whole, and
        where nothing is held out."""
        data = self.record["data"]
        if self.record["protocol"] == TSNE.protocol:  # of the pictures that it shows
            return self.science.get("data_digest"), data["train"]
        if self.record["protocol"] == FEW_SHOT:
            return None, data["train"]
        part = self.science.get("data_digest") if self.of_part else data["train"]
        return data.get("whole_train") or part, data["val"]

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """Numbers of training and of held-out pictures, as far as `data` tells them."""
        data = self.record["data"]
        if self.record["protocol"] in (TSNE.protocol, FEW_SHOT):
            return None, data["num_train"]
        return None if self.of_part else data["num_train"], data["num_val"]

    @property
    def training_folder(self) -> Path | None:
        """Of the run that made the weights, where it is still there."""
        if not self.record["checkpoint"].get("path"):
            return None
        path = Path(self.record["checkpoint"]["path"])
        for folder in (path.parent.parent, path):
            if (folder / "config.json").exists():
                return folder
        return None


@dataclass(frozen=True)
class TrainingRun:
    """A run's folder. state: as in status.json. cut: a stage was cut short by --max-steps-per-stage."""

    folder: Path
    options: dict[str, Any]
    science: dict[str, Any]
    state: str
    cut: bool

    @property
    def seed(self) -> int:
        return int(self.science.get("seed", 0))

    @property
    def can_be_evaluated(self) -> bool:
        """Whether it went to its end and its last checkpoint is still there."""
        return self.state == "finished" and bool(CheckpointManager(self.folder / "checkpoints").paths())


@dataclass
class Found:
    """results and runs in the order of their paths; unreadable: path → why."""

    results: list[Result] = field(default_factory=list)
    runs: list[TrainingRun] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)


def find(folder: Path) -> Found:
    """Everything below `folder`. ValueError where it is no folder."""
    if not folder.is_dir():
        raise ValueError(f"--runs {folder}: no such folder; give the one that your runs are written to")
    found = Found()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_ENTERED)
        if NAME in files:
            _add_result(found, Path(place) / NAME)
        if "config.json" in files and "status.json" in files:
            _add_run(found, Path(place))
    return found


def _add_result(found: Found, path: Path) -> None:
    try:
        record = read_result(path)
        result = Result(path, record)
        _ = (result.seed, result.data, int(record["data"]["num_train"]), int(record["data"]["num_val"] or 0))
        _ = [record[key] for key in ("protocol", "recipe", "numbers", "cut")]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        found.unreadable[path] = missing
        return
    found.results.append(result)


def _add_run(found: Found, folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text())
        state = json.loads((folder / "status.json").read_text())["state"]
        ends = folder / "results.json"
        stages = json.loads(ends.read_text()) if ends.exists() else []
        cut = any(stage["num_steps"] < stage["num_steps_planned"] for stage in stages)
        found.runs.append(
            TrainingRun(folder, dict(config["options"]), dict(config["science"]), str(state), cut)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found.unreadable[folder / "config.json"] = f"it is no run's record ({type(error).__name__}: {error})"
