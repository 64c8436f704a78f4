"""Collect an experiment's runs: scores with all that they came from, rates, means and paired differences."""

import json
import re
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.evidence.plan import RANDOM, Curve, Plan, Run, Step
from bench.schema import environment
from fastpsl.models.foreign_weights import sha256_of_file

Record = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A record of what is done of a plan."""

    runs: Path  # the folder of the runs

    def of(self, name: str) -> Record:
        """Return command and date (UTC) of what is done in the folder; else nothing."""
        path = self.runs / f"{name}.done.json"
        return _read(path) if path.exists() else {}

    def score(self, step: Step) -> Record | None:
        """Return what an evaluation found, with all that it came from; None if it is not done."""
        if not (how := self.of(step.name)):
            return None
        folder = self.runs / step.name
        result = _read(folder / "result.json")
        if result["cut"]:
            raise ValueError(f"{folder}: it was cut short, so it shows nothing: remove it")
        weights = result["checkpoint"]
        seen = weights.get("input")
        return {
            "protocol": result["protocol"], "numbers": result["numbers"], "data": result["data"],
            "weights_sha256": weights.get("sha256"),
            "input": seen and {key: seen[key] for key in ("channels", "mean", "std")},
            "seconds": result.get("seconds"), "commit": result["commit"], **how,
        }  # fmt: skip

    def training(self, run: Run) -> Record | None:
        """Return the losses of a training by stages; None for random weights, or if it is not done."""
        if run.arm == RANDOM or not (how := self.of(run.name)):
            return None
        folder = self.runs / run.name
        stages = _read(folder / "results.json")
        if any(stage["num_steps"] != stage["num_steps_planned"] for stage in stages):
            raise ValueError(f"{folder}: it was cut short, so it shows nothing: remove it")
        science, machine = _read(folder / "config.json")["science"], _read(folder / "environment.json")
        return {
            "arm": run.arm, "rate": run.rate, "seed": run.seed, "stages": stages,
            "data_digest": science["data_digest"], "commit": machine["commit"], **how,
        }  # fmt: skip

    def curve(self, curve: Curve, run: Run) -> dict[int, float]:
        """Return epoch → value in percent of a training; nothing if it is not done."""
        if not self.of(run.name):
            return {}
        lines = (self.runs / run.name / curve.file).read_text().splitlines()
        values = {line["epoch"]: line.get(curve.name) for line in map(json.loads, lines)}
        return {epoch: round(100 * value, 2) for epoch, value in values.items() if value is not None}


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


CONFIDENCE = 0.95


def collect(path: Path, plan: Plan, done: Done) -> Record:
    """Return the results of a plan's runs so far, as plain values."""
    rates = rates_so_far(plan, done)
    search = [score for run in plan.searched() for score in _scores(plan, run, done)]
    counted = list(plan.counted(rates))
    scores = [score for run in counted for score in _scores(plan, run, done)]
    training = [record for run in counted if (record := done.training(run)) is not None]
    _check_data([*search, *scores])
    _check_inputs(scores)
    firsts = dict.fromkeys(
        step.command
        for seed in (plan.search.seed, *plan.seeds)
        for step in plan.first_of(seed)
        if done.of(step.name)
    )
    return {
        "title": plan.title, "claim": plan.claim, "paper": plan.paper, "plan": path.name,
        "plan_sha256": sha256_of_file(path), "plan_commit": _commit_of(path), "environment": environment(),
        "endpoint": asdict(plan.endpoint), "curve": plan.curve and asdict(plan.curve), "first": list(firsts),
        "search": search, "rates": rates, "training": training, "scores": scores,
        "beside": list(_beside(plan, done)), "means": list(_means(plan, scores)),
        "differences": list(_differences(plan, scores)), "curves": _curves(plan, counted, done),
    }  # fmt: skip


def chosen_rates(plan: Plan, done: Done) -> dict[str, float]:
    """Return each arm's rate, by the best mean of the search's numbers; the lower one of equal ones."""
    rates = rates_so_far(plan, done)
    assert rates.keys() == plan.arms.keys(), rates
    return rates


def rates_so_far(plan: Plan, done: Done) -> dict[str, float]:
    """Return the rates of the arms whose search is complete."""
    if len(plan.search.rates) == 1:
        return dict.fromkeys(plan.arms, plan.search.rates[0])
    means: dict[str, dict[float, float]] = {arm: {} for arm in plan.arms}
    for run in plan.searched():
        for score in _scores(plan, run, done):
            assert run.rate is not None
            means[run.arm][run.rate] = statistics.fmean(
                score["numbers"][name] for name in plan.search.numbers
            )
    complete = {arm: found for arm, found in means.items() if len(found) == len(plan.search.rates)}
    return {arm: max(sorted(found), key=lambda rate: found[rate]) for arm, found in complete.items()}


def _scores(plan: Plan, run: Run, done: Done) -> Iterator[Record]:
    """Yield the results of a training's evaluations that are done."""
    for name in plan.evaluations_of(run):
        if score := done.score(plan.evaluation_of(run, name)):
            yield {"arm": run.arm, "rate": run.rate, "seed": run.seed, "evaluation": name} | score


def _beside(plan: Plan, done: Done) -> Iterator[Record]:
    """Yield the numbers to compare with."""
    for name, seed, step in plan.compared():
        if score := done.score(step):
            yield {"name": name, "seed": seed, "number": plan.beside[name].number} | score


def _check_data(scores: Sequence[Record]) -> None:
    for part, of in (
        ("train", scores),
        ("val", [score for score in scores if score["evaluation"] == scores[-1]["evaluation"]]),
    ):
        if len({score["data"][part] for score in of}) > 1:
            raise ValueError(f"the scores are of several {part} sets; give another --runs for other data")


def _check_inputs(scores: Sequence[Record]) -> None:
    """Raise ValueError if random weights see another input than what is compared with them."""
    inputs = {score["arm"]: score["input"] for score in scores if score.get("input")}
    for arm, seen in inputs.items():
        if seen != inputs.get(RANDOM, seen):
            raise ValueError(
                f"{RANDOM} saw the input {inputs[RANDOM]}, {arm} {seen}: give the plan's random the "
                "--input-channels, --input-mean and --input-std of the trainings"
            )


def _means(plan: Plan, scores: Sequence[Record]) -> Iterator[Record]:
    """Yield mean and sample standard deviation of each number of an arm, in percent."""
    for arm in plan.rows:
        for name in plan.evaluations:
            of_arm = [score for score in scores if (score["arm"], score["evaluation"]) == (arm, name)]
            for number in of_arm[0]["numbers"] if of_arm else ():
                values = [score["numbers"][number] for score in of_arm]
                yield {
                    "arm": arm, "evaluation": name, "number": number, "values": values,
                    "mean": round(statistics.fmean(values), 3),
                    "deviation": round(statistics.stdev(values), 3) if len(values) > 1 else None,
                }  # fmt: skip


def block_means(results: Mapping[str, Any]) -> tuple[list[str], dict[str, list[Record]]]:
    """Return the numbers of the endpoint's kind, one for each block, and each arm's means in their order."""
    end = results["endpoint"]
    stem = end["numbers"][0].rpartition("_")[0]
    rows = [
        row
        for row in results["means"]
        if row["evaluation"] == end["evaluation"] and re.fullmatch(rf"{stem}_B\d+", row["number"])
    ]
    numbers = list(dict.fromkeys(row["number"] for row in rows))
    arms = dict.fromkeys(row["arm"] for row in rows)
    return numbers, {arm: [row for row in rows if row["arm"] == arm] for arm in arms}


def _differences(plan: Plan, scores: Sequence[Record]) -> Iterator[Record]:
    """Yield the differences of the endpoint's pairs, seed by seed, with the t interval of their mean."""
    end = plan.endpoint
    of = {(s["arm"], s["seed"]): s["numbers"] for s in scores if s["evaluation"] == end.evaluation}
    for first, second in end.pairs:
        seeds = [seed for seed in plan.seeds if (first, seed) in of and (second, seed) in of]
        for number in end.numbers if seeds else ():
            values = [of[first, seed][number] - of[second, seed][number] for seed in seeds]
            yield {"pair": [first, second], "number": number, "seeds": seeds, **difference(values)}


def difference(values: Sequence[float]) -> Record:
    """Return the mean of paired differences and its two-sided 95 % interval by Student's t."""
    mean, interval = statistics.fmean(values), None
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
        interval = [round(mean - half, 3), round(mean + half, 3)]
    return {"values": [round(value, 3) for value in values], "mean": round(mean, 3), "interval": interval}


def holm(differences: Sequence[Sequence[float]]) -> list[float]:
    """Return the p value of each mean difference by Student's t, corrected by Holm for their number."""
    errors = np.array([stats.sem(values) for values in differences])
    with np.errstate(divide="ignore"):  # all seeds may be equal
        t = np.abs([statistics.fmean(values) for values in differences]) / errors
    p = 2 * stats.t.sf(t, [len(values) - 1 for values in differences])
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1).tolist()  # type: ignore[no-any-return]


def _curves(plan: Plan, counted: Sequence[Run], done: Done) -> Record:
    """Return the curve's values in percent by arm, one list for each training, and their change."""
    curves = dict[str, Record]()
    if (curve := plan.curve) is None:
        return curves
    for run in counted:
        if run.arm not in plan.arms or not (values := done.curve(curve, run)):
            continue
        of_arm = curves.setdefault(run.arm, {"seeds": [], "epochs": list(values), "values": []})
        of_arm["seeds"].append(run.seed)
        of_arm["values"].append(list(values.values()))
    for of_arm in curves.values():
        epochs = of_arm["epochs"]
        if {curve.first_epoch, curve.last_epoch} <= set(epochs):
            first, last = epochs.index(curve.first_epoch), epochs.index(curve.last_epoch)
            of_arm["change"] = difference([values[last] - values[first] for values in of_arm["values"]])
    return curves


def _commit_of(path: Path) -> str | None:
    """Return the commit that last changed the plan; None if it is not committed as it is."""
    git = ("git", "-C", str(path.resolve().parent))
    if subprocess.run(
        [*git, "diff", "--quiet", "HEAD", "--", path.name], check=False, stderr=subprocess.DEVNULL
    ).returncode:
        return None
    found = subprocess.run(
        [*git, "log", "-1", "--format=%H", "--", path.name], check=False, capture_output=True, text=True
    )
    return found.stdout.strip() or None
