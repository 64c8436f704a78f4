"""Which results and which training runs a table may use: of its rows, of its scale, whole, and of one data set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastpsl.tables.differences import UNSAID, differences, label_source, training_differences
from fastpsl.tables.found import Found, Result, TrainingRun
from fastpsl.tables.needs import CLUSTERS, SUPERVISED, Evaluation, Weights
from fastpsl.tables.papers import TABLES
from fastpsl.tables.rows import Table
from fastpsl.tables.scales import Scale


@dataclass(frozen=True)
class DataSet:
    """Digests of the pictures that all numbers of a table are of; None where it is not known yet.

    pretrain: what trainings without labels learned from, where the table has other pictures for that.
    """

    train: str | None = None
    val: str | None = None
    pretrain: str | None = None

    def agrees(self, other: "DataSet") -> bool:
        """Whether nothing that both know differs."""
        return all(None in pair or pair[0] == pair[1] for pair in zip(self._parts, other._parts, strict=True))

    @property
    def num_known(self) -> int:
        return sum(part is not None for part in self._parts)

    @property
    def _parts(self) -> tuple[str | None, ...]:
        return self.train, self.val, self.pretrain

    def __str__(self) -> str:
        parts = [self.train, self.val] + [self.pretrain] * (self.pretrain is not None)
        return "/".join((digest or "unknown")[:8] for digest in parts)


Need = tuple[Weights, Evaluation]


@dataclass
class Matches:
    """used: need → seed → result. unused: path → why. num_other: results that are of no row of this table."""

    used: dict[Need, dict[int, Result]] = field(default_factory=dict)
    unused: dict[Path, str] = field(default_factory=dict)
    num_other: int = 0
    data: DataSet = field(default_factory=DataSet)


def needs_of(table: Table) -> list[Need]:
    """What the table's own numbers are measured on, in the order of its rows, each once."""
    measures = (measure for row in table.rows for measure in row.measures)
    return list(dict.fromkeys((measure.weights, measure.evaluation) for measure in measures))


def data_of(result: Result, table: Table) -> DataSet:
    """The pictures of one result, as far as it tells."""
    science = result.science
    elsewhere = table.pretrains_elsewhere and science.get("recipe") not in (None, SUPERVISED)
    return DataSet(*result.data, science.get("data_digest") if elsewhere else None)


def match(table: Table, scale: Scale, found: Found, asked: DataSet) -> Matches:
    """Sort the results. ValueError where the fitting ones are of several data sets and `asked` does not say which."""
    matches = Matches(unused=dict(found.unreadable))
    fitting: list[tuple[Need, Result]] = []
    for result in found.results:
        need, reasons = closest(result, table, scale)
        if need is not None and not reasons:
            if lacking := _lacking(result, need, table):
                matches.unused[result.path] = lacking
            else:
                fitting.append((need, result))
        elif need is None or _of_another_table(result, scale):
            matches.num_other += 1
        else:
            matches.unused[result.path] = "; ".join(reasons)
    weights = {one for need in needs_of(table) for one in (need[0], need[0].before) if one}
    sets = [(data_of(result, table), result.path) for _, result in fitting]
    of_runs = [
        (_learned_from(one, table, str(run.science.get("data_digest"))), run.folder)
        for run in found.runs
        for one in weights
        if trains(run, one, scale)
    ]
    matches.data = _one_data_set(sets, of_runs, asked)
    for need, result in sorted(fitting, key=lambda pair: str(pair[1].record.get("date"))):
        if not (of := data_of(result, table)).agrees(matches.data):
            matches.unused[result.path] = (
                f"of other pictures ({of}, train/val{'/pre-training' * bool(of.pretrain)})"
            )
            continue
        seeds = matches.used.setdefault(need, {})
        if (older := seeds.get(result.seed)) is not None:
            matches.unused[older.path] = f"the same seed again, and {result.path} is newer"
        seeds[result.seed] = result
    return matches


def _lacking(result: Result, need: Need, table: Table) -> str:
    """Which of the table's numbers a result does not hold; "" where it holds all."""
    measures = [one for row in table.rows for one in row.measures if (one.weights, one.evaluation) == need]
    lacking = {n for one in measures for n in one.numbers} - result.record["numbers"].keys()
    why = ": top-5 needs more than five classes" if any(n.startswith("top5") for n in lacking) else ""
    return f"it has no {', '.join(sorted(lacking))}{why}" if lacking else ""


def _of_another_table(result: Result, scale: Scale) -> bool:
    return any(
        need is not None and not reasons
        for need, reasons in (closest(result, other, scale) for other in TABLES.values())
    )


def closest(result: Result, table: Table, scale: Scale) -> tuple[Need | None, list[str]]:
    """The table's need that a result comes nearest to, and why it does not fit; no need where it is of another table."""
    nearest: tuple[Need | None, list[str]] = (None, [])
    for need in needs_of(table):
        weights, evaluation = need
        asked = (evaluation.recipe, evaluation.protocol, weights.recipe)
        if asked != (result.record["recipe"], result.record["protocol"], result.science.get("recipe")):
            continue
        if weights.recipe is None and result.record["checkpoint"].get("kind") != "random":
            continue  # others' weights
        if label_source(result.science) != weights.label_source:
            continue
        reasons = mismatches(result, need, table, scale)
        if nearest[0] is None or len(reasons) < len(nearest[1]):
            nearest = need, reasons
    return nearest


def mismatches(result: Result, need: Need, table: Table, scale: Scale) -> list[str]:
    """Why a result is not this need's; nothing where it is."""
    weights, evaluation = need
    reasons = ["cut short by --max-steps-per-stage"] if result.record["cut"] else []
    checkpoint = result.record["checkpoint"]
    backbone = checkpoint.get("backbone")
    if backbone != weights.backbone:
        reasons.append(f"backbone {backbone}, here {weights.backbone}")
    if weights.recipe is not None:
        reasons += training_differences(result.science, weights, scale)
        of = DataSet(result.data[0], result.data[1], result.science.get("data_digest"))
        if table.pretrains_elsewhere and not weights.with_labels:
            if of.pretrain in (of.train, of.val):
                reasons.append(
                    "pre-trained on the pictures that it was evaluated on: here, on more than those to train with"
                )
        elif of.pretrain != of.train:
            reasons.append("pre-trained on other pictures than it was evaluated on")
    if result.data[0] == result.data[1]:
        reasons.append("scored on the pictures that it learned from")
    channels = (checkpoint.get("input") or {}).get("channels", "RGB")
    if channels != scale.channels(weights):
        reasons.append(f"its network sees {channels}, here {scale.channels(weights)}")
    settings = result.record["settings"]
    if evaluation == CLUSTERS and Path(settings["labels"]).parent != Path(checkpoint["path"]).parent.parent:
        reasons.append("of other labels than its run left")
    said = UNSAID["evaluation"] | settings
    return reasons + differences("evaluated", said, scale.evaluation_settings(evaluation))


def trains(run: TrainingRun, weights: Weights, scale: Scale) -> bool:
    """Whether a run makes `weights`: it has, or will when it goes on."""
    if weights.recipe is None or run.cut or (run.state == "finished" and not run.can_be_evaluated):
        return False
    return run.science.get("backbone") == weights.backbone and not training_differences(
        run.science, weights, scale
    )


def _learned_from(weights: Weights, table: Table, digest: str) -> DataSet:
    """What is known of the data where these weights learned from pictures of this digest."""
    elsewhere = table.pretrains_elsewhere and not weights.with_labels
    return DataSet(pretrain=digest) if elsewhere else DataSet(digest)


def runs_for(
    weights: Weights, scale: Scale, runs: Iterable[TrainingRun], data: DataSet, table: Table
) -> dict[int, TrainingRun]:
    """Seed → the run whose checkpoint serves, or else one that was begun; the last by path where there are several."""
    fitting = [
        run
        for run in runs
        if trains(run, weights, scale)
        and _learned_from(weights, table, str(run.science.get("data_digest"))).agrees(data)
    ]
    fitting.sort(key=lambda run: (run.state == "finished", str(run.folder)), reverse=True)
    return dict(sorted({run.seed: run for run in fitting}.items()))


def _one_data_set(
    results: Iterable[tuple[DataSet, Path]], runs: Iterable[tuple[DataSet, Path]], asked: DataSet
) -> DataSet:
    """The data set of all of them. ValueError where there are several: their numbers must not stand in one table."""
    where: dict[DataSet, Path] = {}
    for one, path in results:
        where.setdefault(one, path)
    sets = [one for one in where if one.agrees(asked)]
    # A result that knows its held-out pictures alone, or those that it learned from, is of any set that has them.
    sets = [
        one
        for one in sets
        if not any(other.agrees(one) and other.num_known > one.num_known for other in sets)
    ]
    if len(sets) > 1:
        told = ", ".join(f"{one} (such as {where[one]})" for one in sets)
        raise ValueError(
            f"results of {len(sets)} data sets must not be mixed (digests of train/val: {told}): give --data and --val of one "
            f"of them, or --runs with one alone"
        )
    if sets:
        (one,) = sets
        return DataSet(one.train or asked.train, one.val or asked.val, one.pretrain or asked.pretrain)
    runs = list(runs)
    return DataSet(
        asked.train or _one_digest({str(one.train): path for one, path in runs if one.train}),
        asked.val,
        asked.pretrain or _one_digest({str(one.pretrain): path for one, path in runs if one.pretrain}),
    )


def _one_digest(digests: Mapping[str, Path]) -> str | None:
    """Of training runs. ValueError where there are several."""
    if len(digests) > 1:
        told = ", ".join(f"{digest[:8]} (such as {folder})" for digest, folder in digests.items())
        raise ValueError(
            f"training runs on {len(digests)} data sets must not be mixed (digests: {told}): give --data and --val of one of "
            f"them, or --runs with one alone"
        )
    return next(iter(digests), None)
