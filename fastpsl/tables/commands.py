"""Write the commands of what is missing, in the order to run them."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from fastpsl.engine.options import PretrainOptions
from fastpsl.pipelines.views import Input
from fastpsl.scripts.recipe_files import recipe_path
from fastpsl.tables.data_sets import flag_of, inputs
from fastpsl.tables.matching import Matches, needs_of, runs_for
from fastpsl.tables.results import RunIndex, TrainingRun
from fastpsl.tables.rows import CLUSTERS, COUPLED, RETRIEVAL, Evaluation, Table, Weights
from fastpsl.tables.scales import Scale, Values
from fastpsl.tasks.pseudo_labels.file import NAME as LABELS_NAME


@dataclass(frozen=True)
class Place:
    """The folder of runs, the data that commands name, and the number of processes that torchrun starts.

    Trainings without labels learn from `pretrain` in tables that have a set for that. `others` has the paths
    of the data that evaluations read instead of these, by the name in OTHER_DATA.
    """

    runs: Path
    data: str
    val: str
    pretrain: str
    num_processes: int
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """A pre-training with the evaluations that are missing, and the commands in order.

    Without evaluations only another training needs it, to fine-tune it or to learn its pseudo-labels. `run`
    is None if it has not begun.
    """

    weights: Weights
    seed: int
    evaluations: tuple[Evaluation, ...]
    run: TrainingRun | None
    commands: tuple[str, ...]


def missing_runs(
    table: Table, scale: Scale, matches: Matches, index: RunIndex, place: Place
) -> list[Missing]:
    """Return what is missing, by weights and seed, in the order to run it.

    Each number needs as many seeds as the scale has. Seeds of runs that exist come first.
    """
    evaluations_of: dict[tuple[Weights, int], list[Evaluation]] = {}
    runs: dict[Weights, dict[int, TrainingRun]] = defaultdict(dict)
    for weights, evaluation in needs_of(table):
        before = weights.before
        for training in (weights, before):
            if training is not None:
                runs[training] = runs_for(training, scale, index.runs, matches.data, table)
        used = matches.used.get((weights, evaluation), {})
        seeds_of_runs = sorted(runs[weights], key=lambda seed: not runs[weights][seed].can_be_evaluated)
        seeds_of_runs += list(runs[before]) if before else []
        seeds = [seed for seed in dict.fromkeys([*seeds_of_runs, *scale.seeds]) if seed not in used]
        for seed in sorted(seeds[: max(0, len(scale.seeds) - len(used))]):
            if before and not (_is_done(runs[weights], seed) or _is_done(runs[before], seed)):
                evaluations_of.setdefault((before, seed), [])
            evaluations_of.setdefault((weights, seed), []).append(evaluation)
    writer = _Writer(table, scale, runs, index, place)
    return [
        Missing(weights, seed, tuple(some), runs[weights].get(seed), writer.commands(weights, seed, some))
        for (weights, seed), some in evaluations_of.items()
    ]


def _is_done(runs: Mapping[int, TrainingRun], seed: int) -> bool:
    return seed in runs and runs[seed].can_be_evaluated


@dataclass(frozen=True)
class _Writer:
    """A writer of one table's commands, which knows the runs of each training by seed."""

    table: Table
    scale: Scale
    runs: Mapping[Weights, Mapping[int, TrainingRun]]
    index: RunIndex
    place: Place
    label_files: set[Path] = field(default_factory=set)  # that earlier commands write

    def commands(self, weights: Weights, seed: int, evaluations: Iterable[Evaluation]) -> tuple[str, ...]:
        """Return the commands of the labels, the training and the evaluations that are missing."""
        folder = self._folder(weights, seed) if weights.recipe else None
        commands = []
        if weights.recipe and folder and not _is_done(self.runs[weights], seed):
            commands += self._labels(weights, seed)
            data_flags: dict[str, Any] = {"data": self._learns_from(weights), "val": self.place.val}
            commands.append(self._torchrun(weights.recipe, self._training(weights, seed), folder, data_flags))
        for evaluation in evaluations:
            name = f"{weights.name}-s{seed}-{evaluation.name.replace('/', '-')}"
            out = self._free(name, str(folder) if folder else None)
            commands.append(self._evaluation(weights, seed, evaluation, folder, out))
        return tuple(commands)

    def _folder(self, weights: Weights, seed: int) -> Path:
        """Return the folder of the training's run, which may not exist yet."""
        run = self.runs[weights].get(seed)
        return run.folder if run else self._free(f"{weights.name}-s{seed}", None)

    def _training(self, weights: Weights, seed: int) -> dict[str, Any]:
        options: dict[str, Any] = {"backbone": weights.backbone, "plan": weights.plan, "seed": seed}
        if weights.base:
            options["fine_tune"] = self._folder(weights.base, seed)
        if isinstance(weights.labels, Weights):
            options["pseudo_labels"] = self._folder(weights.labels, seed) / LABELS_NAME
        elif source := weights.label_file:
            options["pseudo_labels"] = self._label_file(source, seed)
        elif weights.labels:
            options["pseudo_labels"] = COUPLED
        return options | self.scale.training_flags(weights) | _of_begun(self.runs[weights].get(seed))

    def _evaluation(
        self, weights: Weights, seed: int, evaluation: Evaluation, folder: Path | None, out: Path
    ) -> str:
        if evaluation == CLUSTERS:
            return _command("clusters", [folder], {"data": self._learns_from(weights), "out": out})
        spelled = {"seed": seed} | self.scale.evaluation_flags(evaluation)
        data, val = self.place.data, self.place.val
        source = {} if folder else _random(weights)
        if evaluation.command:
            data_flags = {"gallery": data, "queries": val} if evaluation == RETRIEVAL else {"data": val}
            options = data_flags | source | spelled | {"out": out}
            return _command(evaluation.recipe, [folder] if folder else [], options)
        source = source or {"checkpoint": folder}
        data_flags = {"data": data, "val": val}
        if evaluation.reads:
            data_flags = inputs(evaluation, self.place.others)
        values = self.scale.evaluation_values(evaluation)
        batch_size = values["batch_size"] // values.get("accumulate", 1)
        return self._torchrun(evaluation.recipe, source | spelled, out, data_flags, batch_size)

    def _labels(self, weights: Weights, seed: int) -> list[str]:
        """Return the command that writes the pseudo-labels, if one is needed."""
        if not (source := weights.label_file):
            return []
        path = self._label_file(source, seed)
        if path in self.label_files or path.exists():
            return []
        self.label_files.add(path)
        options = {"data": self._learns_from(weights), "out": path, "seed": seed}
        return [_command("labels", [source], {**options, **self.scale.label_flags(source)})]

    def _label_file(self, source: str, seed: int) -> Path:
        return self.place.runs / f"{self._folder_name}-labels-{source}-s{seed}.npz"

    def _learns_from(self, weights: Weights) -> str:
        elsewhere = self.table.pretrains_elsewhere and not weights.with_labels
        return self.place.pretrain if elsewhere else self.place.data

    def _torchrun(
        self, recipe: str, options: Values, out: Path, data: Values, max_processes: int | None = None
    ) -> str:
        """Return the command of a recipe, with at most so many processes."""
        num = min(self.place.num_processes, max_processes or self.place.num_processes)
        start = ["torchrun", f"--nproc-per-node={num}", str(recipe_path(recipe))]
        return shlex.join([*start, *_flags({**data, **options, "out": out})])

    @property
    def _folder_name(self) -> str:
        return f"{self.table.folder}-{self.scale.name}"

    def _free(self, name: str, checkpoint: str | None) -> Path:
        """Return a folder with this name, and with a number if something else is there.

        The folder of an evaluation of `checkpoint` that was begun is free for this evaluation.
        """
        preferred = self.place.runs / self._folder_name / name
        numbered = (preferred.with_name(f"{preferred.name}-{number}") for number in count(2))
        return next(folder for folder in chain([preferred], numbered) if self._is_free(folder, checkpoint))

    def _is_free(self, folder: Path, checkpoint: str | None) -> bool:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return True
        unfinished = [
            run for run in self.index.runs if run.folder == folder and run.state != "finished" and not run.cut
        ]
        return bool(checkpoint) and any(run.options.get("checkpoint") == checkpoint for run in unfinished)


def _random(weights: Weights) -> dict[str, Any]:
    """Return the options of an evaluation of random weights."""
    options: dict[str, Any] = {"random_weights": True, "backbone": weights.backbone}
    if weights.channels != "RGB":
        record = Input.usual(weights.channels, size_px=224)
        options |= {"input_channels": record.channels, "input_mean": record.mean, "input_std": record.std}
    return options


def _of_begun(run: TrainingRun | None) -> dict[str, Any]:
    """Return the options of a begun run that a table leaves open; it resumes with no others."""
    if run is None:
        return {}
    usual = PretrainOptions().science()
    names = ("precision", "order", "lanes", "apex")
    return {n: run.science[n] for n in names if n in run.science and run.science[n] != usual[n]}


def _command(name: str, arguments: Iterable[Any], options: Mapping[str, Any]) -> str:
    """Return a command of `fastpsl`."""
    return shlex.join(["fastpsl", name, *map(str, arguments), *_flags(options)])


def _flags(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag_of(name if value else f"no_{name}"))
        elif value is not None:
            words += [flag_of(name), *map(str, value if isinstance(value, tuple) else [value])]
    return words
