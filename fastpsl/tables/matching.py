"""Which results and which training runs a table may use: of its rows, of its scale, whole, and of one data set."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fastpsl.tables.data_sets import DataSet, data_of, learned_from, one_data_set
from fastpsl.tables.differences import UNSAID, differences, label_source, training_differences
from fastpsl.tables.evaluations import CLUSTERS
from fastpsl.tables.found import Found, Result, TrainingRun
from fastpsl.tables.needs import Evaluation, Weights
from fastpsl.tables.papers import TABLES
from fastpsl.tables.rows import Table
from fastpsl.tables.scales import Scale

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
    sets = [(data_of(result, table, need[1]), result.path) for need, result in fitting]
    of_runs = [
        (learned_from(one, table, str(run.science.get("data_digest"))), run.folder)
        for run in found.runs
        for one in weights
        if trains(run, one, scale)
    ]
    matches.data = one_data_set(sets, of_runs, asked)
    for need, result in sorted(fitting, key=lambda pair: str(pair[1].record.get("date"))):
        if not (of := data_of(result, table, need[1])).agrees(matches.data):
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
        reasons += _wrong_pictures(result, need, table)
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


def _wrong_pictures(result: Result, need: Need, table: Table) -> list[str]:
    """Whether what was pre-trained on is not as the table has it, beside what was evaluated on."""
    weights, evaluation = need
    (train, val), learned = result.data, result.science.get("data_digest")
    if evaluation.reads or (table.pretrains_elsewhere and not weights.with_labels):
        more = "other ones" if evaluation.reads else "more than those to train with"
        said = f"pre-trained on the pictures that it was evaluated on: here, on {more}"
        return [said] if learned in (train, val) else []
    return ["pre-trained on other pictures than it was evaluated on"] if learned != train else []


def trains(run: TrainingRun, weights: Weights, scale: Scale) -> bool:
    """Whether a run makes `weights`: it has, or will when it goes on."""
    if weights.recipe is None or run.cut or (run.state == "finished" and not run.can_be_evaluated):
        return False
    return run.science.get("backbone") == weights.backbone and not training_differences(
        run.science, weights, scale
    )


def runs_for(
    weights: Weights, scale: Scale, runs: Iterable[TrainingRun], data: DataSet, table: Table
) -> dict[int, TrainingRun]:
    """Seed → the run whose checkpoint serves, or else one that was begun; the last by path where there are several."""
    fitting = [
        run
        for run in runs
        if trains(run, weights, scale)
        and learned_from(weights, table, str(run.science.get("data_digest"))).agrees(data)
    ]
    fitting.sort(key=lambda run: (run.state == "finished", str(run.folder)), reverse=True)
    return dict(sorted({run.seed: run for run in fitting}.items()))
