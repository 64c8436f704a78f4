"""The commands of what is missing, in the order in which they are to be run."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fastpsl.options import PretrainOptions
from fastpsl.tables.found import Found, TrainingRun
from fastpsl.tables.matching import Matches, Need, runs_for
from fastpsl.tables.needs import Evaluation, Weights
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
    """What one pre-training lacks: `commands` in order. run: what there is of the pre-training."""

    weights: Weights
    seed: int
    evaluations: tuple[Evaluation, ...]
    run: TrainingRun | None
    commands: tuple[str, ...]


def missing_runs(
    needs: Iterable[Need], scale: Scale, matches: Matches, found: Found, place: Place
) -> list[Missing]:
    """By weights and seed. As many seeds as the scale wants; those of runs that are there come first."""
    lacking: dict[tuple[Weights, int], list[Evaluation]] = {}
    runs: dict[Weights, dict[int, TrainingRun]] = {}
    for weights, evaluation in needs:
        runs[weights] = runs_for(weights, scale, found.runs, matches.data)
        used = matches.used.get((weights, evaluation), {})
        there = sorted(runs[weights], key=lambda seed: not runs[weights][seed].can_be_evaluated)
        seeds = [seed for seed in dict.fromkeys([*there, *scale.seeds]) if seed not in used]
        for seed in sorted(seeds[: max(0, len(scale.seeds) - len(used))]):
            lacking.setdefault((weights, seed), []).append(evaluation)
    return [
        _missing(weights, seed, tuple(evaluations), runs[weights].get(seed), scale, found, place)
        for (weights, seed), evaluations in lacking.items()
    ]


def _missing(
    weights: Weights,
    seed: int,
    evaluations: tuple[Evaluation, ...],
    run: TrainingRun | None,
    scale: Scale,
    found: Found,
    place: Place,
) -> Missing:
    commands = []
    source: dict[str, Any] = {"random_weights": True, "backbone": weights.backbone}
    name = f"psl-{scale.name}/{weights.name}-s{seed}"
    if weights.recipe:
        folder = run.folder if run else _free(place.runs / name, found, None)
        if run is None or not run.can_be_evaluated:
            given = {"backbone": weights.backbone, "plan": weights.plan, "seed": seed}
            given |= scale.training_flags(weights) | _of_begun(run)
            commands.append(_command(place, weights.recipe, given, folder))
        source = {"checkpoint": folder}
    for evaluation in evaluations:
        chosen = {"seed": seed} | scale.spelled(evaluation.name)
        checkpoint = str(source["checkpoint"]) if weights.recipe else None
        folder = _free(place.runs / f"{name}-{evaluation.folder_name}", found, checkpoint)
        commands.append(_command(place, evaluation.recipe, source | chosen, folder))
    return Missing(weights, seed, evaluations, run, tuple(commands))


def _of_begun(run: TrainingRun | None) -> dict[str, Any]:
    """What a table leaves open and a begun run has chosen: it goes on with the same values only."""
    if run is None:
        return {}
    usual = PretrainOptions().science()
    names = ("precision", "order", "lanes", "apex")
    return {n: run.science[n] for n in names if n in run.science and run.science[n] != usual[n]}


def _free(wanted: Path, found: Found, checkpoint: str | None) -> Path:
    """`wanted`, or with a number where something else lies there. An evaluation of `checkpoint` that was begun goes on."""
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return folder
        begun = [
            run for run in found.runs if run.folder == folder and run.state != "finished" and not run.cut
        ]
        if checkpoint and any(run.options.get("checkpoint") == checkpoint for run in begun):
            return folder
    raise AssertionError("numbers do not end")


def _command(place: Place, recipe: str, options: Mapping[str, Any], out: Path) -> str:
    start = ["torchrun", f"--nproc-per-node={place.num_processes}", str(recipes_folder() / f"{recipe}.py")]
    flags = [word for name, value in options.items() for word in _flag(name, value)]
    return shlex.join([*start, "--data", place.data, "--val", place.val, *flags, "--out", str(out)])


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
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
