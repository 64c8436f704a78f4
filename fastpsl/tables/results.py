"""Find the results of evaluations and the training runs below a folder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastpsl.evaluation.result_file import NAME, read_result
from fastpsl.files.run_folder import CONFIG, STATUS
from fastpsl.tables.rows import FEW_SHOT, TSNE
from fastpsl.tables.runs import Run, walk


@dataclass(frozen=True)
class Result:
    """A result.json: its path and its record."""

    path: Path
    record: dict[str, Any]

    @property
    def science(self) -> dict[str, Any]:
        """The science of the run that trained the weights; empty for random and for others' weights."""
        return self.record["checkpoint"].get("science") or {}

    @property
    def seed(self) -> int:
        """The seed of the pre-training, or of the evaluation if nothing was pre-trained."""
        return self.science.get("seed", self.record["settings"].get("seed")) or 0

    @property
    def of_part(self) -> bool:
        """Whether it learned from a part of the training images, which its record of the data is of."""
        return "percent" in self.record["settings"]

    @property
    def data(self) -> tuple[str | None, str | None]:
        """The digests of all training images and of the validation images; None where the record has none."""
        data = self.record["data"]
        if self.record["protocol"] == TSNE.protocol:  # its data are the images that it shows
            return self.science.get("data_digest"), data["train"]
        if self.record["protocol"] == FEW_SHOT:
            return None, data["train"]
        part = self.science.get("data_digest") if self.of_part else data["train"]
        return data.get("whole_train") or part, data["val"]

    @property
    def counts(self) -> tuple[int | None, int | None]:
        """The numbers of training and of validation images, as far as `data` tells them."""
        data = self.record["data"]
        if self.record["protocol"] in (TSNE.protocol, FEW_SHOT):
            return None, data["num_train"]
        return None if self.of_part else data["num_train"], data["num_val"]


def newest_few_labels(runs: Iterable[Path]) -> list[dict[str, Any] | None]:
    """Return each run's newest result of `fastpsl eval few-labels` on its weights; None without any.

    They are looked for in the folders below that of the run, and in those beside it, two levels deep.
    """
    whole = [run.resolve() for run in runs]
    by_parent = {parent: list(_few_labels_below(parent)) for parent in {run.parent for run in whole}}
    return [
        max(
            (record for weights, record in by_parent[run.parent] if weights.is_relative_to(run)),
            key=lambda record: record.get("date") or "",
            default=None,
        )
        for run in whole
    ]


def _few_labels_below(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the path of the weights and the record of each result of few labels below a folder."""
    for path in (*folder.glob(f"*/{NAME}"), *folder.glob(f"*/*/{NAME}")):
        try:
            record = read_result(path)
        except ValueError:
            continue
        if record["recipe"] == "few_labels" and (weights := record["checkpoint"].get("path")):
            yield Path(weights).resolve(), record


@dataclass
class RunIndex:
    """The results and the runs below a folder, in the order of their paths, and why others cannot be read."""

    results: list[Result] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)


def index_runs(folder: Path) -> RunIndex:
    """Return all results and runs below a folder."""
    if not folder.is_dir():
        raise ValueError(f"--runs {folder}: no such folder; give the one that your runs are written to")
    index = RunIndex()
    for path, files in walk(folder):
        if NAME in files:
            try:
                index.results.append(Result(path / NAME, read_result(path / NAME)))
            except ValueError as error:
                index.unreadable[path / NAME] = str(error)
        if CONFIG.name in files and STATUS.name in files:
            run = Run.of(path)
            if run.damage:
                index.unreadable[path / CONFIG.name] = run.damage
            else:
                index.runs.append(run)
    return index
