"""Runs beside each other: what they reached and took, and how their options differ.

It reads JSON files alone. This module does not import torch.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fastpsl.console.progress import clock
from fastpsl.console.words import gibibytes
from fastpsl.files.paths import named_files, require_existing
from fastpsl.files.system_errors import UnreadableError
from fastpsl.pipelines.interface.identity import all_same, in_digits, not_compared, parts_of
from fastpsl.tables.results import newest_few_labels
from fastpsl.tables.runs import Look, Run, find_runs, is_run

NOTHING = "–"
# The counts of a `Look` that a chart's horizontal axis may show.
AXES = {"seconds": "wall clock", "images": "images", "joules": "energy"}
# Options that say where a run is written and how it was started.
_OF_THE_START = {"out", "resume", "config", "dry_run", "cache_dir"}
_DIGITS, _LONGEST = 10, 100  # characters of a digest and of any value


class Line(NamedTuple):
    """A line of a table: its title, and a cell for each run."""

    title: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        runs: The runs, in the order that they were named.
        names: Their shortest names that differ.
        notes: What was left out, and which runs have no curve, a line each.
        few_labels: The newest result.json of `fastpsl eval few-labels` of each run, or None.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]
    few_labels: tuple[dict[str, Any] | None, ...] = ()

    @cached_property
    def target(self) -> float | None:
        """The highest kNN accuracy, in [0, 1], that all runs with a monitor have reached."""
        return min((run.best.knn or 0.0 for run in self.runs if run.best), default=None)

    @cached_property
    def figures(self) -> list[Line]:
        """What each run reached and took. Lines of which nothing is known are left out."""
        lines: dict[str, Callable[[Run], str | None]] = {
            "state": lambda run: run.state,
            "steps": _steps,
            "kNN at the end, %": lambda run: accuracy_of(run.looks[-1]) if run.looks else None,
            "best kNN, %": lambda run: accuracy_of(run.best) if run.best else None,
            "of epoch, stage": lambda run: place_of(run.best) if run.best else None,
            "top-1, %": lambda run: None if run.top1 is None else f"{100 * run.top1:.1f}",
            "time": lambda run: time_of(run.seconds),
            "images": lambda run: count(run.images),
            "images/s": lambda run: count(run.images_per_s),
            "energy": lambda run: _joules(run.joules),
            "GPU memory": lambda run: None if run.peak_bytes is None else gibibytes(run.peak_bytes),
        }
        if self.target is not None:
            to = f"to {100 * self.target:.1f} %"
            lines |= {
                f"time {to}": lambda run: time_of(self._to_target(run, "seconds")),
                f"images {to}": lambda run: count(self._to_target(run, "images")),
                f"energy {to}": lambda run: _joules(self._to_target(run, "joules")),
            }
        made = ((title, [words(run) for run in self.runs]) for title, words in lines.items())
        told = [Line(title, tuple(cell or NOTHING for cell in cells)) for title, cells in made if any(cells)]
        return told + self._few_label_lines()

    def _few_label_lines(self) -> list[Line]:
        """Return a line for each number of images of a class that `fastpsl eval few-labels` drew."""
        numbers = [{} if record is None else record["numbers"] for record in self.few_labels]
        found = {name[5:] for each in numbers for name in each if re.fullmatch(r"top1_\d{1,9}", name)}
        return [
            Line(f"few labels, {num} a class, %", tuple(_few_labels(each, num) for each in numbers))
            for num in sorted(found, key=int)
        ]

    def _to_target(self, run: Run, name: str) -> float | None:
        """Return a run's seconds, images or joules at its first look with the accuracy of `target`."""
        reached = (look for look in run.looks if (look.knn or 0.0) >= (self.target or 0.0))
        look = next(reached, None)
        return None if look is None else getattr(look, name)

    @cached_property
    def differences(self) -> dict[str, list[Line]]:
        """The options and the parts of the environment in which the runs differ, by the table's title."""
        first = ("recipe", "data_digest")
        science = [
            _flat({name: run.science[name] for name in (*first, *run.science) if name in run.science})
            for run in self.runs
        ]
        seen = {name for each in science for name in each}
        others = [
            {name: value for name, value in run.options.items() if name not in seen | _OF_THE_START}
            for run in self.runs
        ]
        tables = {
            "What is learned": science,
            "Other options": others,
            "Environment": [_flat(run.environment, "packages") for run in self.runs],
        }
        made = {title: list(_different(records)) for title, records in tables.items()}
        return {title: lines for title, lines in made.items() if lines}

    def curve(self, run: Run, axis: str) -> list[tuple[float, float, str]]:
        """Return a run's monitor over one of `AXES`: at each look the count, the kNN in [0, 1], the stage.

        It begins with the untrained network; it is empty where the count is not known.
        """
        known = [(getattr(look, axis), look) for look in run.looks]
        points = [(float(at), look.knn or 0.0, look.stage) for at, look in known if at is not None]
        if points and (first := run.looks[0]).untrained is not None:
            points.insert(0, (0.0, first.untrained, first.stage))
        return points

    @property
    def panels(self) -> dict[str, dict[str, list[tuple[float, float, str]]]]:
        """The curves of all runs by name, over each of `AXES` over which there is one."""
        pairs = list(zip(self.names, self.runs, strict=True))
        made = {axis: {name: self.curve(run, axis) for name, run in pairs} for axis in AXES}
        return {axis: curves for axis, curves in made.items() if any(curves.values())}


def compare(places: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Read the runs at some places: their folders, globs of them, or folders of several runs.

    Raises:
        ValueError: A place does not exist, or no place holds a run.
    """
    found, notes = dict[Path, Run](), list[str]()
    for place in places:
        require_existing(os.fspath(place), "the folder of a run, or a quoted glob of such folders")
        for path in named_files(os.fspath(place)):
            if not path.is_dir():
                notes.append(f"{path}: left out, a file")
                continue
            try:
                is_one = is_run(path, os.listdir(path))
                runs = [Run.of(path)] if is_one else sorted(find_runs(path), key=lambda run: run.folder)
            except UnreadableError:
                raise
            except ValueError:
                notes.append(f"{path}: left out, no run: it has no config.json of a training")
                continue
            found |= {run.folder.resolve(): run for run in runs}
    if not found:
        given = " ".join(os.fspath(place) for place in places)
        raise ValueError(
            f"{given}: no run, a folder with the config.json of `fastpsl train NAME`; give one or more"
        )
    runs = list(found.values())
    for run in runs:
        if run.damage:
            notes.append(f"{run.folder}: {run.damage}")
        elif not run.looks:
            notes.append(f"{run.folder}: no curve: {_why_no_curve(run)}")
    few_labels = newest_few_labels(run.folder for run in runs)
    drawn = [_drawn(record) for record in few_labels if record]
    if any(each != drawn[0] for each in drawn):
        notes.append("few labels: the results are of other images, draws or classifiers: not to be compared")
    whole = [Path(os.path.abspath(run.folder)) for run in runs]
    common = Path(os.path.commonpath([path.parent for path in whole]))
    names = tuple(str(path.relative_to(common)) for path in whole)
    return Comparison(tuple(runs), names, tuple(notes), tuple(few_labels))


def _drawn(record: Mapping[str, Any]) -> list[Any]:
    """Return the values that must be equal for results of few labels to be compared."""
    names = ("seed", "draws", "classifier", "whole")
    return [record["data"].get("train"), record["data"].get("val"), *map(record["settings"].get, names)]


def _few_labels(numbers: Mapping[str, float], num: str) -> str:
    """Return a score with its deviation over draws, and in brackets that of an untrained network."""
    score, deviation = (numbers.get(f"{name}_{num}") for name in ("top1", "sd"))
    untrained = numbers.get(f"untrained_top1_{num}")
    if score is None or deviation is None:
        return NOTHING
    return f"{score:.1f} ± {deviation:.1f}" + ("" if untrained is None else f" ({untrained:.1f})")


def _why_no_curve(run: Run) -> str:
    if run.science.get("weights"):
        return "it evaluates weights"
    if run.options.get("val") == "none":
        return "it has no validation images"
    if run.state in ("running", "silent"):
        return "it has not been looked at yet"
    return "it has no kNN accuracy"


def _different(records: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yield a line for each name whose values differ, and then for those that only some records have."""
    missing, names = object(), list(dict.fromkeys(name for record in records for name in record))
    for name in sorted(names, key=lambda name: sum(name not in record for record in records) > 0):
        values = [record.get(name, missing) for record in records]
        if _differ(name, values):
            yield Line(name, tuple(NOTHING if value is missing else _words(value) for value in values))


def _differ(name: str, values: Sequence[Any]) -> bool:
    if name.split(".")[-1] != "data_digest" or not all(isinstance(value, str) for value in values):
        return any(value != values[0] for value in values)
    if not all_same(values):
        return True
    for line in not_compared("the record of some runs", min(values, key=len), max(values, key=len)):
        warnings.warn(line, stacklevel=2)
    return False


def _words(value: Any) -> str:
    """Return an option's value as a command has it."""
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "yes", False: "no"}[value]
    if isinstance(value, list) and not any(isinstance(each, (list, dict)) for each in value):
        return " ".join(map(str, value)) or "not given"
    text = value if isinstance(value, str) else json.dumps(value)
    if all(re.fullmatch("[0-9a-f]{32,}", part) for part in parts_of(text) if part):  # a digest or a commit
        return in_digits(text, _DIGITS)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _flat(record: Mapping[str, Any], without_name: str = "") -> dict[str, Any]:
    """Return a record with the values of its dicts, as "initial_weights.path", beside the others."""
    flat = dict[str, Any]()
    for name, value in record.items():
        beginning = "" if name == without_name else f"{name}."
        if isinstance(value, dict):
            flat |= {f"{beginning}{key}": each for key, each in value.items()}
        else:
            flat[name] = value
    return flat


def accuracy_of(look: Look) -> str:
    """Return a look's accuracy in percent, and in brackets that of the block before the training."""
    before = "" if look.untrained is None else f" ({100 * look.untrained:.1f})"
    return f"{100 * (look.knn or 0.0):.1f}{before}"


def place_of(look: Look) -> str:
    """Return the epoch and the stage of a look."""
    return look.stage if look.epoch is None else f"{look.epoch:.3g}, {look.stage}"


def _steps(run: Run) -> str | None:
    if run.steps is None:
        return None
    planned = "" if run.steps_planned in (None, run.steps) else f" of {run.steps_planned:,}"
    return f"{run.steps:,}{planned}"


def time_of(seconds: float | None) -> str | None:
    """Return seconds as a clock shows them."""
    return None if seconds is None else clock(seconds)


def count(number: float | None) -> str | None:
    """Return a whole number with its thousands apart."""
    return None if number is None else f"{number:,.0f}"


def _joules(joules: float | None) -> str | None:
    """Return an energy as people pay for it: Wh, or kWh from 1000 of them on."""
    if joules is None:
        return None
    number, unit = (joules / 3600, "Wh") if joules < 3.6e6 else (joules / 3.6e6, "kWh")
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
