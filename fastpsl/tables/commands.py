"""The commands of what is missing, in the order in which they are to be run."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fastpsl.options import PretrainOptions
from fastpsl.pipelines.input_record import Input
from fastpsl.tables.found import Found, TrainingRun
from fastpsl.tables.matching import Matches, needs_of, runs_for
from fastpsl.tables.needs import CLUSTERS, Evaluation, Weights
from fastpsl.tables.rows import Table
from fastpsl.tables.scales import Scale

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Place:
    """Where commands read and write: the pictures, the folder of runs, and how many processes torchrun starts."""

    runs: Path
    data: str
    val: str
    num_processes: int


@dataclass(frozen=True)
class Missing:
    """What one pre-training lacks: `commands` in order. run: what there is of the pre-training.

    evaluations: empty where the pre-training is asked for by a fine-tuning alone.
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
        base = weights.base
        for one in (weights, base):
            if one is not None:
                runs[one] = runs_for(one, scale, found.runs, matches.data)
        used = matches.used.get((weights, evaluation), {})
        there = sorted(runs[weights], key=lambda seed: not runs[weights][seed].can_be_evaluated)
        there += list(runs[base]) if base else []
        seeds = [seed for seed in dict.fromkeys([*there, *scale.seeds]) if seed not in used]
        for seed in sorted(seeds[: max(0, len(scale.seeds) - len(used))]):
            if base and not (_is_done(runs[weights], seed) or _is_done(runs[base], seed)):
                lacking.setdefault((base, seed), [])
            lacking.setdefault((weights, seed), []).append(evaluation)
    writer = _Writer(table.paper, scale, runs, found, place)
    return [
        Missing(weights, seed, tuple(asked), runs[weights].get(seed), writer.commands(weights, seed, asked))
        for (weights, seed), asked in lacking.items()
    ]


def _is_done(runs: Mapping[int, TrainingRun], seed: int) -> bool:
    return seed in runs and runs[seed].can_be_evaluated


@dataclass(frozen=True)
class _Writer:
    """Of one table's commands. runs: what there is of each training, by seed."""

    paper: str
    scale: Scale
    runs: Mapping[Weights, Mapping[int, TrainingRun]]
    found: Found
    place: Place

    def commands(self, weights: Weights, seed: int, evaluations: Iterable[Evaluation]) -> tuple[str, ...]:
        """The training where it is not there, and the evaluations."""
        folder = self._folder(weights, seed) if weights.recipe else None
        commands = []
        if weights.recipe and folder and not _is_done(self.runs[weights], seed):
            commands.append(self._torchrun(weights.recipe, self._training(weights, seed), folder))
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
        return options | self.scale.training_flags(weights) | _of_begun(self.runs[weights].get(seed))

    def _evaluation(
        self, weights: Weights, seed: int, evaluation: Evaluation, folder: Path | None, out: Path
    ) -> str:
        if evaluation == CLUSTERS:
            return shlex.join(
                ["fastpsl", "clusters", str(folder), "--data", self.place.data, "--out", str(out)]
            )
        source: dict[str, Any] = {"checkpoint": folder} if folder else _random(weights)
        return self._torchrun(
            evaluation.recipe, source | {"seed": seed} | self.scale.spelled(evaluation.name), out
        )

    def _torchrun(self, recipe: str, options: Mapping[str, Any], out: Path) -> str:
        place, script = self.place, recipes_folder() / f"{recipe}.py"
        start = ["torchrun", f"--nproc-per-node={place.num_processes}", str(script)]
        flags = [word for name, value in options.items() for word in _flag(name, value)]
        return shlex.join([*start, "--data", place.data, "--val", place.val, *flags, "--out", str(out)])

    def _free(self, name: str, checkpoint: str | None) -> Path:
        """A folder of this name, or with a number where something else lies there. An evaluation of `checkpoint` that was begun goes on."""
        wanted = self.place.runs / f"{self.paper}-{self.scale.name}" / name
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


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]


def recipes_folder() -> Path:
    """Of the checkout that runs, from the current folder where it is below it; an installed copy has none."""
    folder = _ROOT / "recipes"
    if not folder.is_dir():
        return Path("recipes")
    try:
        return folder.relative_to(Path.cwd().resolve())
    except ValueError:
        return folder
