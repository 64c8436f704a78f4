"""Read an experiment's plan: what is compared, by which commands, and by which numbers it is judged.

A plan is a JSON file that is committed before anything is run. Its commands have places for {data} and {runs}
(folders), {seed}, {rate}, {epochs}, {out} and {weights}.

    title, claim     what is asked, in words
    paper            the paper's table, such as psl/5
    first            by name: commands that run once, such as those that write labels; {out} is RUNS/NAME
    training         the command of every training
    arms             by name: what an arm adds to it, or its whole command if that begins with "recipes/" or
                     "bench/"
    untrained        what the row "no training" adds to it: the same training at a rate that moves no weight,
                     so that BatchNorm's statistics alone change; null for no such row
    epochs           numbers of epochs, from the most to the fewest: the clock chooses the first by which all
                     seeds end in time, before any score, and the curve ends there; none where the commands
                     say them
    search           rates, and the seed, evaluation and numbers by whose mean the rate of an arm is chosen;
                     the seed counts nowhere else. No rates where the commands have theirs. With "arm", that
                     arm alone is searched, and all take its rate. Null where nothing is to be chosen, neither
                     rates nor epochs
    seeds            the seeds that count
    evaluations      by name: commands that score a training's features; those of the search are not counted
    random           what an evaluation gets as {weights} for random weights, "" for no such row; for others
                     it is FOLDER, and --backbone as in the training if that is FILE.py:CLASS
    keep             files of a training's folder that are kept beside results.json, as ARM-sSEED-FILE
    beside           by name: a command whose number is to be compared with, and which of its numbers
    endpoint         the evaluation and the numbers that decide, and the pairs of arms that are compared, of
                     which one may be a name of "beside" with {seed}. The number top1_best is that of the
                     arm's best block, as best_blocks.py chooses it. With "chosen_by", another evaluation, an
                     arm has one of the numbers alone: the one that is best there by the mean over the seeds.
                     With "margin", in points, two trainings are alike if the 90 % interval lies within it
    curve            null, or a figure in [0, 1] of a training's probe.jsonl or epochs.jsonl, and two epochs
                     between which its change is reported
    cost             whether a chart shows each arm's accuracy against the CPU minutes of its training
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

RANDOM, UNTRAINED = "random weights", "no training"
UNTRAINED_RATE = 1e-12  # recipes refuse 0


@dataclass(frozen=True)
class Step:
    """A command of an experiment."""

    name: str  # the name of its folder in the folder of the runs
    template: str  # the command, with places for {data}, {runs}, {out} and its values
    values: Mapping[str, str] = field(default_factory=dict)  # what stands for {seed} and {rate}

    def words(self, data: Path | str, runs: Path | str) -> list[str]:
        """Return the words of the command, with its folders and values in their places."""
        return shlex.split(
            self.template.format(data=data, runs=runs, out=f"{runs}/{self.name}", **self.values)
        )

    @property
    def command(self) -> str:
        """The command as it is recorded, with DATA and RUNS in place of a machine's folders."""
        return shlex.join(self.words("DATA", "RUNS"))


@dataclass(frozen=True)
class Search:
    """A choice of the rate of each arm."""

    rates: Sequence[float]
    seed: int
    evaluation: str
    numbers: Sequence[str]
    arm: str | None = None


@dataclass(frozen=True)
class Endpoint:
    """The numbers that decide, in percent, and the pairs of arms whose paired difference is reported."""

    evaluation: str
    numbers: Sequence[str]
    pairs: Sequence[Sequence[str]]
    chosen_by: str | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Beside:
    """A command, and the number of its result.json that counts."""

    command: str
    number: str


@dataclass(frozen=True)
class Curve:
    """A figure of a file of lines, and the epochs between which it changes."""

    file: str
    name: str
    first_epoch: int
    last_epoch: int


@dataclass(frozen=True)
class Plan:
    """An experiment; the module describes its fields."""

    title: str
    claim: str
    paper: str
    first: Mapping[str, str]
    training: str
    arms: Mapping[str, str]
    untrained: str | None
    search: Search | None
    seeds: Sequence[int]
    evaluations: Mapping[str, str]
    random: str
    beside: Mapping[str, Beside]
    endpoint: Endpoint
    curve: Curve | None
    epochs: Sequence[int] = ()
    keep: Sequence[str] = ()
    cost: bool = False

    @property
    def rows(self) -> list[str]:
        """The names of all that is scored: the arms, and the rows without training."""
        untrained = [] if self.untrained is None else [UNTRAINED]
        return [*self.arms, *untrained, *([RANDOM] if self.random else [])]

    def with_epochs(self, num: int) -> "Plan":
        """Return the plan with a number of epochs in its commands."""

        def put(command: str) -> str:
            return command.replace("{epochs}", str(num))

        arms = {arm: put(flags) for arm, flags in self.arms.items()}
        curve = self.curve and replace(self.curve, last_epoch=num)
        return replace(self, training=put(self.training), arms=arms, epochs=(num,), curve=curve)

    def first_of(self, seed: int) -> Iterator[Step]:
        """Yield what runs before a training of this seed; the name has the seed if it is used."""
        for name, command in self.first.items():
            yield _of_seed(name, command, seed)

    def first_for(self, run: "Run") -> Iterator[Step]:
        """Yield those of them whose files a training reads."""
        command = "" if run.arm == RANDOM else self.training_of(run).template
        for name, first in self.first.items():
            if f"{{runs}}/{name}" in command:
                yield _of_seed(name, first, run.seed)

    def compared(self) -> Iterator[tuple[str, int | None, Step]]:
        """Yield name, seed and command of each number to compare with; None for those of no seed."""
        for name, one in self.beside.items():
            for seed in self.seeds if "{seed}" in one.command else (None,):
                yield name, seed, _of_seed(name.replace(" ", "_"), one.command, seed)

    def training_of(self, run: "Run") -> Step:
        """Return the training of a run."""
        flags = (self.untrained or "") if run.arm == UNTRAINED else self.arms[run.arm]
        command = flags if flags.startswith(("recipes/", "bench/")) else f"{self.training} {flags}"
        return Step(run.name, command, run.values)

    def evaluation_of(self, run: "Run", name: str) -> Step:
        """Return an evaluation of a run."""
        weights = self.random if run.arm == RANDOM else f"{{runs}}/{run.name}{self.own_backbone}"
        return Step(f"{run.name}-{name}", self.evaluations[name].replace("{weights}", weights), run.values)

    def steps_of(self, run: "Run") -> Iterator[Step]:
        """Yield the commands of a run that leave records: its training if it counts, its evaluations."""
        if run.counts and run.arm != RANDOM:
            yield self.training_of(run)
        for name in self.evaluations_of(run):
            yield self.evaluation_of(run, name)

    @property
    def own_backbone(self) -> str:
        """The training's --backbone FILE.py:CLASS, which evaluations need as well; else nothing."""
        found = re.search(r" --backbone \S+\.py:\S+", self.training)
        return found[0] if found else ""

    def searched(self) -> Iterator["Run"]:
        """Yield the trainings by which rates are chosen; none where there is one rate."""
        if self.search and len(self.search.rates) > 1:
            for arm in [self.search.arm] if self.search.arm else self.arms:
                for rate in self.search.rates:
                    yield Run(arm, rate, self.search.seed, counts=False)

    def counted(self, rates: Mapping[str, float | None]) -> Iterator["Run"]:
        """Yield what counts, seed by seed: the arms that are searched, and the rows without training."""
        for seed in self.seeds:
            for arm in self.arms:
                if arm in rates:
                    yield Run(arm, rates[arm], seed, counts=True)
            if self.untrained is not None:
                yield Run(UNTRAINED, UNTRAINED_RATE, seed, counts=True)
            if self.random:
                yield Run(RANDOM, None, seed, counts=True)

    def evaluations_of(self, run: "Run") -> list[str]:
        """Return the names of the evaluations of a training: the search's, or all others if it counts."""
        searched = [self.search.evaluation] if self.search else []
        return [name for name in self.evaluations if name not in searched] if run.counts else searched


@dataclass(frozen=True)
class Run:
    """A training of one arm, the row without one, or random weights."""

    arm: str  # the arm's name, UNTRAINED or RANDOM
    rate: float | None  # the rate; None for random weights, and where commands have their rates
    seed: int  # the seed
    counts: bool  # whether it counts; otherwise it serves the search for the rate

    @property
    def values(self) -> dict[str, str]:
        """What stands for {seed} and {rate} in its commands."""
        return {"seed": str(self.seed), "rate": f"{self.rate or 0:g}"}

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self._named("" if self.rate is None else f"-lr{self.rate:g}")

    @property
    def short_name(self) -> str:
        """The name of what is published of it, without the rate."""
        return self._named("")

    def _named(self, rate: str) -> str:
        return f"{self.arm.replace(' ', '_')}{rate}-s{self.seed}"


def of_cpu(words: Sequence[str]) -> list[str]:
    """Return the words of a command as it runs without a GPU: in fp32 if it names no precision.

    A CPU's default has become another since most plans were committed and run.
    """
    is_plain = words[0].startswith(("recipes/", "bench/")) and "--precision" not in words
    return [*words, "--precision", "fp32"] if is_plain else [*words]


def commands_of(record: Mapping[str, Any]) -> set[str]:
    """Return the commands of all entries of a results.json, by which they are known."""
    return {one["command"] for kind in ("search", "training", "scores", "beside") for one in record[kind]}


def read_plan(path: Path) -> Plan:
    """Return the plan in a JSON file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["search"] = record["search"] and _made(Search, record["search"])
        record["endpoint"] = _made(Endpoint, record["endpoint"])
        record |= {"beside": {name: _made(Beside, one) for name, one in record["beside"].items()}}
        plan = _made(Plan, record | {"curve": record["curve"] and _made(Curve, record["curve"])})
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give a plan, such as those in bench/evidence") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    search, end = plan.search, plan.endpoint
    compared = {*plan.rows, *(name for name, one in plan.beside.items() if "{seed}" in one.command)}
    unknown = {arm for pair in end.pairs for arm in pair} - compared
    unknown |= {end.evaluation, end.chosen_by} - {None} - plan.evaluations.keys()
    if search:
        unknown |= {search.arm or plan.rows[0]} - {*plan.arms}
        unknown |= {search.evaluation} - plan.evaluations.keys()
    if unknown:
        raise ValueError(f"{path}: {', '.join(sorted(map(str, unknown)))}: no such arm or evaluation")
    if plan.epochs and not search:
        raise ValueError(f"{path}: the clock times runs of the search's seed: give search, or no epochs")
    if search and search.seed in plan.seeds:
        raise ValueError(f"{path}: seed {search.seed} chooses rates, so it cannot count: give another")
    if search and search.evaluation == end.evaluation:
        raise ValueError(f"{path}: {search.evaluation} chooses rates, so it cannot decide: give another")
    return plan


def _of_seed(name: str, command: str, seed: int | None) -> Step:
    """Return a command that may be of a seed."""
    return Step(f"{name}-s{seed}" if "{seed}" in command else name, command, {"seed": str(seed)})


def _made(kind: type[Any], record: Mapping[str, Any]) -> Any:
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if different := (record.keys() - names) | (needed - record.keys()):
        raise ValueError(f"keys that are unknown or missing: {', '.join(sorted(different))}")
    return kind(**record)
