"""Choose the results and the training runs that a table may use.

They are of its rows, of its scale and of one data set, and nothing has cut them short.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastpsl.tables.data_sets import Digests, agree, data_of, in_words, learned_from, one_data_set
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.results import Result, RunIndex, TrainingRun
from fastpsl.tables.rows import CLUSTERS, COUPLED, NO_LABELS, Evaluation, Table, Weights
from fastpsl.tables.scales import Scale


def training_differences(science: Mapping[str, Any], weights: Weights, scale: Scale) -> list[str]:
    """Return why a run with this science has not made the weights; empty if it has.

    The backbone is not compared, because a result records it itself.
    """
    wanted = {name: value for name, value in scale.training_science(weights).items() if name != "backbone"}
    reasons = differences("pre-trained", science, wanted)
    if "labels" in science:
        reasons.append("pre-trained on labels of a file")
    reasons += _label_differences(science, weights, scale)
    if weights.base is None:
        return [*reasons, "fine-tuned"] if "fine_tune" in science else reasons
    base = science.get("fine_tuned")
    if base is None:
        return [*reasons, "pre-trained without saying what it fine-tunes"]
    if base["data_digest"] != science.get("data_digest"):
        reasons.append("fine-tuned on other images")
    of_base = training_differences(base, weights.base, scale)
    return reasons + [f"before it was fine-tuned: {reason}" for reason in of_base]


def label_source(science: Mapping[str, Any]) -> str:
    """Return the source of the pseudo-labels of a run: iic, coupled, true, random, k-means or none."""
    return str(science.get("pseudo_labels", {}).get("source", NO_LABELS))


def _label_differences(science: Mapping[str, Any], weights: Weights, scale: Scale) -> list[str]:
    """Return how the pseudo-labels of a run differ from those of the weights."""
    labels, record = weights.labels, science.get("pseudo_labels", {})
    if label_source(science) != weights.label_source:
        return [f"pre-trained with pseudo-labels {label_source(science)}, here {weights.label_source}"]
    if labels is None or labels == COUPLED:  # an option of the run has the number of coupled classes
        return []
    reasons = differences("its pseudo-labels made", record, scale.label_science(labels))
    if record.get("cut"):
        reasons.append("its pseudo-labels made by a run that --max-steps-per-stage cut short")
    if record.get("seed", science.get("seed")) != science.get("seed"):
        reasons.append(f"its pseudo-labels of seed {record['seed']}, its own is {science.get('seed')}")
    if record.get("data_digest", science.get("data_digest")) != science.get("data_digest"):
        reasons.append("its pseudo-labels made from other images")
    return reasons


def differences(what: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return a reason for each wanted value that is missing or different."""
    return [
        f"{what} with {name} {_words(given[name])}, here {_words(value)}"
        if name in given
        else f"{what} without saying {name}"
        for name, value in wanted.items()
        if name not in given or given[name] != value
    ]


def _words(value: Any) -> str:
    return " ".join(map(str, value)) or "default" if isinstance(value, list) else str(value)


Need = tuple[Weights, Evaluation]
# Settings of older evaluations that do not record them.
_UNSAID = {"whole": False}


@dataclass
class Matches:
    """The results of a folder, sorted by whether a table uses them."""

    used: dict[Need, dict[int, Result]] = field(default_factory=dict)  # by seed
    unused: dict[Path, str] = field(default_factory=dict)  # the reason for each that comes near a row
    num_other: int = 0  # of results that belong to no row of this table
    data: Digests = field(default_factory=dict)  # of the results that count


def needs_of(table: Table) -> list[Need]:
    """Return each pair of weights and evaluation that the table is measured on, in the order of its rows."""
    measures = (measure for row in table.rows for measure in row.measures)
    return list(dict.fromkeys((measure.weights, measure.evaluation) for measure in measures))


def match(table: Table, scale: Scale, index: RunIndex, asked: Digests) -> Matches:
    """Sort the results by whether a table uses them."""
    matches = Matches(unused=dict(index.unreadable))
    fitting: list[tuple[Need, Result]] = []
    for result in index.results:
        need, reasons = closest(result, table, scale)
        if need is not None and not reasons:
            if reason := _missing_numbers(result, need, table):
                matches.unused[result.path] = reason
            else:
                fitting.append((need, result))
        elif need is None or _of_another_table(result, scale):
            matches.num_other += 1
        else:
            matches.unused[result.path] = "; ".join(reasons)
    all_weights = {weights for need in needs_of(table) for weights in (need[0], need[0].before) if weights}
    of_results = [(data_of(result, table, need[1]), result.path) for need, result in fitting]
    of_runs = [
        (learned_from(weights, table, str(run.science.get("data_digest"))), run.folder)
        for run in index.runs
        for weights in all_weights
        if trains(run, weights, scale)
    ]
    matches.data = one_data_set(of_results, of_runs, asked)
    for need, result in sorted(fitting, key=lambda pair: str(pair[1].record.get("date"))):
        if not agree(data := data_of(result, table, need[1]), matches.data):
            parts = "train/val/pre-training" if "pretrain" in data else "train/val"
            matches.unused[result.path] = f"of other images ({in_words(data)}, {parts})"
            continue
        seeds = matches.used.setdefault(need, {})
        if (older := seeds.get(result.seed)) is not None:
            matches.unused[older.path] = f"the same seed again, and {result.path} is newer"
        seeds[result.seed] = result
    return matches


def _missing_numbers(result: Result, need: Need, table: Table) -> str:
    """Return why a result cannot fill the table's cells; empty if it has all their numbers."""
    missing = {
        name
        for row in table.rows
        for measure in row.measures
        if (measure.weights, measure.evaluation) == need
        for name in measure.numbers
    } - result.record["numbers"].keys()
    is_top5 = any(name.startswith("top5") for name in missing)
    cause = ": top-5 needs more than five classes" if is_top5 else ""
    return f"it has no {', '.join(sorted(missing))}{cause}" if missing else ""


def _of_another_table(result: Result, scale: Scale) -> bool:
    nearest = (closest(result, other, scale) for other in TABLES.values())
    return any(need is not None and not reasons for need, reasons in nearest)


def closest(result: Result, table: Table, scale: Scale) -> tuple[Need | None, list[str]]:
    """Return the need of a table that a result comes nearest to, and why it does not fit.

    The need is None if the result belongs to another table. There is no reason if it fits.
    """
    nearest: tuple[Need | None, list[str]] = (None, [])
    for need in needs_of(table):
        weights, evaluation = need
        origin = (evaluation.recipe, evaluation.protocol, weights.recipe)
        if origin != (result.record["recipe"], result.record["protocol"], result.science.get("recipe")):
            continue
        if weights.recipe is None and result.record["checkpoint"].get("kind") != "random":
            continue  # these are others' weights
        if label_source(result.science) != weights.label_source:
            continue
        reasons = mismatches(result, need, table, scale)
        if nearest[0] is None or len(reasons) < len(nearest[1]):
            nearest = need, reasons
    return nearest


def mismatches(result: Result, need: Need, table: Table, scale: Scale) -> list[str]:
    """Return why a result does not fit a need; empty if it does."""
    weights, evaluation = need
    reasons = ["cut short by --max-steps-per-stage"] if result.record["cut"] else []
    checkpoint = result.record["checkpoint"]
    backbone = checkpoint.get("backbone")
    if backbone != weights.backbone:
        reasons.append(f"backbone {backbone}, here {weights.backbone}")
    if weights.recipe is not None:
        reasons += training_differences(result.science, weights, scale)
        reasons += _wrong_images(result, need, table)
    if result.data[0] == result.data[1]:
        reasons.append("scored on the images that it learned from")
    channels = (checkpoint.get("input") or {}).get("channels", "RGB")
    if channels != scale.channels(weights):
        reasons.append(f"its network sees {channels}, here {scale.channels(weights)}")
    settings = result.record["settings"]
    if evaluation == CLUSTERS and Path(settings["labels"]).parent != Path(checkpoint["path"]).parent.parent:
        reasons.append("of other labels than its run left")
    return reasons + differences("evaluated", _UNSAID | settings, scale.evaluation_settings(evaluation))


def _wrong_images(result: Result, need: Need, table: Table) -> list[str]:
    """Return why the images of the pre-training are not the right ones beside those of the evaluation."""
    weights, evaluation = need
    (train, val), learned = result.data, result.science.get("data_digest")
    if evaluation.reads or (table.pretrains_elsewhere and not weights.with_labels):
        images = "other ones" if evaluation.reads else "more than those to train with"
        reason = f"pre-trained on the images that it was evaluated on: here, on {images}"
        return [reason] if learned in (train, val) else []
    return ["pre-trained on other images than it was evaluated on"] if learned != train else []


def trains(run: TrainingRun, weights: Weights, scale: Scale) -> bool:
    """Return whether a run has made the weights, or makes them when it is resumed."""
    if weights.recipe is None or run.cut or (run.state == "finished" and not run.can_be_evaluated):
        return False
    has_backbone = run.science.get("backbone") == weights.backbone
    return has_backbone and not training_differences(run.science, weights, scale)


def runs_for(
    weights: Weights, scale: Scale, runs: Iterable[TrainingRun], data: Digests, table: Table
) -> dict[int, TrainingRun]:
    """Return the run that makes the weights, by seed.

    A finished run comes before one that has only begun; of several, the last by path counts.
    """
    fitting = [
        run
        for run in runs
        if trains(run, weights, scale)
        and agree(learned_from(weights, table, str(run.science.get("data_digest"))), data)
    ]
    fitting.sort(key=lambda run: (run.state == "finished", str(run.folder)), reverse=True)
    return dict(sorted({run.seed: run for run in fitting}.items()))
