"""The commands of what is missing, in the order in which they are to be run."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.recipe_files import recipe_path
from fastpsl.pipelines.input_record import Input
from fastpsl.tables.evaluations import CLUSTERS, RETRIEVAL
from fastpsl.tables.found import Found, TrainingRun
from fastpsl.tables.matching import Matches, needs_of, runs_for
from fastpsl.tables.needs import COUPLED, Evaluation, Weights
from fastpsl.tables.other_data import inputs
from fastpsl.tables.rows import Table
from fastpsl.tables.scales import Scale
from fastpsl.tasks.pseudo_labels.file import NAME as LABELS_NAME


@dataclass(frozen=True)
class Place:
    """Where commands read and write: the pictures, the folder of runs, and how many processes torchrun starts.

    pretrain: what trainings without labels learn from, in tables that have other pictures for that. others: name → paths of the data that
    evaluations read in the place of these.
    """

    runs: Path
    data: str
    val: str
    pretrain: str
    num_processes: int
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """What one pre-training lacks: `commands` in order. run: what there is of the pre-training.

    evaluations: empty where another training alone asks for this one, which it fine-tunes or whose pseudo-labels it learns.
    """

    weights: Weights
    seed: int
    evaluations: tuple[Evaluation, ...]
    run: TrainingRun | None
    commands: tuple[str, ...]


def missing_runs(table: Table, scale: Scale, matches: Matches, found: Found, place: Place) -> list[Missing]:
    """By weights and seed. As many seeds as the scale wants; those of runs that are there come first."""
    lacking: dict[tuple[Weights, int], list[Evaluation]] = {}
    runs: dict[Weights, dict[int, TrainingRun]] = defaultdict(dict)
    for weights, evaluation in needs_of(table):
        before = weights.before
        for one in (weights, before):
            if one is not None:
                runs[one] = runs_for(one, scale, found.runs, matches.data, table)
        used = matches.used.get((weights, evaluation), {})
        there = sorted(runs[weights], key=lambda seed: not runs[weights][seed].can_be_evaluated)
        there += list(runs[before]) if before else []
        seeds = [seed for seed in dict.fromkeys([*there, *scale.seeds]) if seed not in used]
        for seed in sorted(seeds[: max(0, len(scale.seeds) - len(used))]):
            if before and not (_is_done(runs[weights], seed) or _is_done(runs[before], seed)):
                lacking.setdefault((before, seed), [])
            lacking.setdefault((weights, seed), []).append(evaluation)
    writer = _Writer(table, scale, runs, found, place)
    return [
        Missing(weights, seed, tuple(asked), runs[weights].get(seed), writer.commands(weights, seed, asked))
        for (weights, seed), asked in lacking.items()
    ]


def _is_done(runs: Mapping[int, TrainingRun], seed: int) -> bool:
    return seed in runs and runs[seed].can_be_evaluated


@dataclass(frozen=True)
class _Writer:
    """Of one table's commands. runs: what there is of each training, by seed. written: files of labels that an earlier command makes."""

    table: Table
    scale: Scale
    runs: Mapping[Weights, Mapping[int, TrainingRun]]
    found: Found
    place: Place
    written: set[Path] = field(default_factory=set)

    def commands(self, weights: Weights, seed: int, evaluations: Iterable[Evaluation]) -> tuple[str, ...]:
        """The training where it is not there, behind the labels that nothing has written yet, and the evaluations."""
        folder = self._folder(weights, seed) if weights.recipe else None
        commands = []
        if weights.recipe and folder and not _is_done(self.runs[weights], seed):
            commands += self._labels(weights, seed)
            pictures: dict[str, Any] = {"data": self._learns_from(weights), "val": self.place.val}
            commands.append(self._torchrun(weights.recipe, self._training(weights, seed), folder, pictures))
        for evaluation in evaluations:
            name = f"{_name(weights, seed)}-{evaluation.folder_name}"
            out = self._free(name, str(folder) if folder else None)
            commands.append(self._evaluation(weights, seed, evaluation, folder, out))
        return tuple(commands)

    def _folder(self, weights: Weights, seed: int) -> Path:
        """Of the training: where it lies or is to be written to."""
        run = self.runs[weights].get(seed)
        return run.folder if run else self._free(_name(weights, seed), None)

    def _training(self, weights: Weights, seed: int) -> dict[str, Any]:
        options: dict[str, Any] = {"backbone": weights.backbone, "plan": weights.plan, "seed": seed}
        if weights.base:
            options["fine_tune"] = self._folder(weights.base, seed)
        if isinstance(weights.labels, Weights):
            options["pseudo_labels"] = self._folder(weights.labels, seed) / LABELS_NAME
        elif weights.labels is not None:
            options["pseudo_labels"] = (
                COUPLED if weights.labels == COUPLED else self._label_file(weights.labels, seed)
            )
        return options | self.scale.training_flags(weights) | _of_begun(self.runs[weights].get(seed))

    def _evaluation(
        self, weights: Weights, seed: int, evaluation: Evaluation, folder: Path | None, out: Path
    ) -> str:
        if evaluation == CLUSTERS:
            return _command("clusters", [folder], {"data": self._learns_from(weights), "out": out})
        spelled = {"seed": seed} | self.scale.evaluation_flags(evaluation)
        if evaluation.command:
            data, held_out = self.place.data, self.place.val
            pictures = (
                {"gallery": data, "queries": held_out} if evaluation == RETRIEVAL else {"data": held_out}
            )
            source = {} if folder else _random(weights)
            return _command(
                evaluation.recipe, [folder] if folder else [], pictures | source | spelled | {"out": out}
            )
        source = {"checkpoint": folder} if folder else _random(weights)
        own = {"data": self.place.data, "val": self.place.val}
        pictures = inputs(evaluation, self.place.others) if evaluation.reads else own
        values = self.scale.evaluation_values(evaluation)
        batch_size = values["batch_size"] // values.get("accumulate", 1)
        return self._torchrun(evaluation.recipe, source | spelled, out, pictures, batch_size)

    def _labels(self, weights: Weights, seed: int) -> list[str]:
        """The command that writes the pseudo-labels, where one must."""
        source = weights.label_file
        path = self._label_file(source, seed) if source else None
        if not source or not path or path in self.written or path.exists():
            return []
        self.written.add(path)
        options = {"data": self._learns_from(weights), "out": path, "seed": seed}
        return [_command("labels", [source], {**options, **self.scale.label_flags(source)})]

    def _label_file(self, source: str, seed: int) -> Path:
        return self.place.runs / f"{self._folder_name}-labels-{source}-s{seed}.npz"

    def _learns_from(self, weights: Weights) -> str:
        elsewhere = self.table.pretrains_elsewhere and not weights.with_labels
        return self.place.pretrain if elsewhere else self.place.data

    def _torchrun(
        self,
        recipe: str,
        options: Mapping[str, Any],
        out: Path,
        pictures: Mapping[str, Any],
        most: int | None = None,
    ) -> str:
        """most: processes, as each has a part of every batch."""
        script = recipe_path(recipe)
        num = min(self.place.num_processes, most or self.place.num_processes)
        start = ["torchrun", f"--nproc-per-node={num}", str(script)]
        return shlex.join([*start, *_flags({**pictures, **options, "out": out})])

    @property
    def _folder_name(self) -> str:
        return f"{self.table.folder}-{self.scale.name}"

    def _free(self, name: str, checkpoint: str | None) -> Path:
        """A folder of this name, or with a number where something else lies there. An evaluation of `checkpoint` that was begun goes on."""
        wanted = self.place.runs / self._folder_name / name
        for number in count(1):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
                return folder
            begun = [
                run
                for run in self.found.runs
                if run.folder == folder and run.state != "finished" and not run.cut
            ]
            if checkpoint and any(run.options.get("checkpoint") == checkpoint for run in begun):
                return folder
        raise AssertionError("numbers do not end")


def _name(weights: Weights, seed: int) -> str:
    return f"{weights.name}-s{seed}"


def _random(weights: Weights) -> dict[str, Any]:
    """The options that ask an evaluation for random weights."""
    options: dict[str, Any] = {"random_weights": True, "backbone": weights.backbone}
    if weights.channels != "RGB":
        seen = Input.usual(weights.channels, size_px=224)
        options |= {"input_channels": seen.channels, "input_mean": seen.mean, "input_std": seen.std}
    return options


def _of_begun(run: TrainingRun | None) -> dict[str, Any]:
    """What a table leaves open and a begun run has chosen: it goes on with the same values only."""
    if run is None:
        return {}
    usual = PretrainOptions().science()
    names = ("precision", "order", "lanes", "apex")
    return {n: run.science[n] for n in names if n in run.science and run.science[n] != usual[n]}


def _command(name: str, arguments: Iterable[Any], options: Mapping[str, Any]) -> str:
    """One of `fastpsl`."""
    return shlex.join(["fastpsl", name, *map(str, arguments), *_flags(options)])


def _flags(options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in _flag(name, value)]


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]
