"""Collect an experiment's runs: scores with all that they came from, rates, means and paired differences."""

import json
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.evidence.best_blocks import BEST, scores_of, stem_of, with_best
from bench.evidence.plan import RANDOM, Curve, Plan, Run, Step, commands_of, read_plan
from bench.schema import environment, output_of
from fastpsl.files.atomic import write_atomically
from fastpsl.files.digest import sha256_of_file
from fastpsl.pipelines.interface.identity import all_same

Record = dict[str, Any]
CONFIDENCE = 0.95


@dataclass
class Results:
    """An experiment's results.json, to which each run adds its records as soon as it is done."""

    path: Path
    plan_path: Path
    plan: Plan  # with the epochs that the clock has chosen, if it has
    record: Record

    @classmethod
    def opened(cls, path: Path, plan_path: Path) -> "Results":
        """Read results.json, or begin it where there is none; ValueError if it is of another plan."""
        plan = read_plan(plan_path)
        sha256 = sha256_of_file(plan_path)
        if not path.exists():
            return cls(path, plan_path, plan, {
                "title": plan.title, "claim": plan.claim, "paper": plan.paper, "plan": plan_path.name,
                "plan_sha256": sha256, "plan_commit": _commit_of(plan_path), "environment": environment(),
                "endpoint": asdict(plan.endpoint), "curve": plan.curve and asdict(plan.curve),
                "epochs": None, "calibration": {}, "first": [], "search": [], "training": [], "scores": [],
                "beside": [],
            })  # fmt: skip
        record = _read(path)
        if record["plan_sha256"] != sha256:
            raise ValueError(f"{path}: is of another plan than {plan_path}: give another --out")
        chosen = record.get("epochs")
        return cls(path, plan_path, plan.with_epochs(chosen) if chosen else plan, record)

    def choose_epochs(self, num: int, calibration: Record) -> None:
        """Note the number of epochs that the clock has chosen, and write it before there is any score."""
        assert not self.record["scores"]
        self.record |= {"epochs": num, "calibration": calibration}
        self.plan = self.plan.with_epochs(num)
        self.write()

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """Return the runs that have no records of all their commands yet."""
        have = commands_of(self.record)
        return [run for run in runs if not all(step.command in have for step in self.plan.steps_of(run))]

    def missing_beside(self) -> list[tuple[str, int | None, Step]]:
        """Return name, seed and command of the numbers to compare with that are not there yet."""
        have = commands_of(self.record)
        return [one for one in self.plan.compared() if one[2].command not in have]

    def add(self, run: Run, folder: Path) -> None:
        """Add the records of a run that is done in `folder`, and write results.json."""
        plan, of_run = self.plan, {"arm": run.arm, "rate": run.rate, "seed": run.seed}
        have = commands_of(self.record)
        self.record["first"] = list(dict.fromkeys([*self.record["first"], *(
            step.command for step in plan.first_of(run.seed)
        )]))  # fmt: skip
        if run.counts and run.arm != RANDOM and (step := plan.training_of(run)).command not in have:
            curve = plan.curve and _curve(plan.curve, folder / run.name)
            kept = [_kept(self.path.parent, run, folder, file) for file in plan.keep]
            self.record["training"].append(
                of_run | training_of(folder, step) | {"curve": curve} | ({"kept": kept} if kept else {})
            )
        for name in plan.evaluations_of(run):
            if (step := plan.evaluation_of(run, name)).command not in have:
                kind = "scores" if run.counts else "search"
                self.record[kind].append(of_run | {"evaluation": name} | score_of(folder, step))
        self.write()

    def add_beside(self, name: str, seed: int | None, step: Step, folder: Path) -> None:
        """Add a number to compare with, and write results.json."""
        of_step = {"name": name, "seed": seed, "number": self.plan.beside[name].number}
        self.record["beside"].append(of_step | score_of(folder, step))
        self.write()

    def rates(self) -> Mapping[str, float | None]:
        """Return the rates of the arms whose search is complete: the best by the mean of its numbers.

        It is None for arms whose commands have it.
        """
        arms, search = self.plan.arms, self.plan.search
        if search is None or len(search.rates) < 2:
            return dict.fromkeys(arms, next(iter(search.rates if search else ()), None))
        means: dict[str, dict[float, float]] = {arm: {} for arm in arms}
        for score in self.record["search"]:
            numbers = [score["numbers"][name] for name in search.numbers]
            means[score["arm"]][score["rate"]] = statistics.fmean(numbers)
        complete = {arm: found for arm, found in means.items() if len(found) == len(search.rates)}
        # The lower one of equal ones.
        best = {arm: max(sorted(found), key=lambda rate: found[rate]) for arm, found in complete.items()}
        if search.arm is None:
            return best
        return dict.fromkeys(arms, best[search.arm]) if best else {}

    def write(self) -> None:
        """Write results.json, with means and differences of what is there."""
        plan, record = self.plan, self.record
        _check_data(_data(plan, record).values())
        _check_inputs(record["scores"])
        for kind in ("search", "training", "scores"):
            record[kind].sort(key=lambda one: (one["seed"], plan.rows.index(one["arm"])))
        names = [*plan.beside]
        record["beside"].sort(key=lambda one: (names.index(one["name"]), one["seed"] or 0))
        rates = {arm: rate for arm, rate in self.rates().items() if rate is not None}
        record |= {
            "rates": rates, "means": list(_means(plan, record["scores"])),
            "differences": list(_differences(plan, record)),
            "curves": _curves(plan, record["training"]),
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(record, indent=1) + "\n").encode())


def score_of(folder: Path, step: Step) -> Record:
    """Return what an evaluation found, with all that it came from."""
    result = _read(folder / step.name / "result.json")
    if result["cut"]:
        raise ValueError(f"{folder / step.name}: it was cut short, so it shows nothing: remove it")
    weights = result["checkpoint"]
    seen = weights.get("input")
    return {
        "protocol": result["protocol"], "numbers": result["numbers"], "data": result["data"],
        "weights_sha256": weights.get("sha256"),
        "input": seen and {key: seen[key] for key in ("channels", "mean", "std")},
        "commit": result["commit"], **_done(folder, step),
    }  # fmt: skip


def training_of(folder: Path, step: Step) -> Record:
    """Return the losses of a training by stages, and its machine."""
    of = folder / step.name
    stages = _read(of / "results.json")
    if any(stage["num_steps"] != stage["num_steps_planned"] for stage in stages):
        raise ValueError(f"{of}: it was cut short, so it shows nothing: remove it")
    machine = _read(of / "environment.json")
    return {
        "stages": stages, "data_digest": _read(of / "config.json")["science"]["data_digest"],
        "machine": {name: machine[name] for name in ("gpu", "torch_threads", "python", "packages")},
        "commit": machine["commit"], **_done(folder, step),
    }  # fmt: skip


def _done(folder: Path, step: Step) -> Record:
    """Return command, end (UTC), seconds and processor of a command that is done."""
    return dict(_read(done_file(folder, step)))


def done_file(folder: Path, step: Step) -> Path:
    """Return the file that a command leaves in the folder of the runs when it is done."""
    return folder / f"{step.name}.done.json"


def _kept(out: Path, run: Run, folder: Path, file: str) -> str:
    """Copy a file of a training's folder to where results.json is, and return its name."""
    name = f"{run.short_name}-{file}"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / name, (folder / run.name / file).read_bytes())
    return name


def _curve(curve: Curve, run: Path) -> dict[int, float]:
    """Return epoch → value in percent of a training."""
    values = {line["epoch"]: line.get(curve.name) for line in map(json.loads, (run / curve.file).open())}
    return {int(epoch): round(100 * value, 2) for epoch, value in values.items() if value is not None}


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _data(plan: Plan, record: Record) -> dict[str, list[Record]]:
    """Return what the scores of each evaluation, and what is paired with them, are of."""
    data: dict[str, list[Record]] = {name: [] for name in plan.evaluations}
    for score in (*record["search"], *record["scores"]):
        data[score["evaluation"]].append(score["data"])
    paired = {arm for pair in plan.endpoint.pairs for arm in pair}
    data[plan.endpoint.evaluation] += [one["data"] for one in record["beside"] if one["name"] in paired]
    return data


def _check_data(data: Iterable[Sequence[Record]]) -> None:
    """Raise ValueError if an evaluation's scores are of several sets."""
    of_each = [*data]
    for part in ("train", "val"):
        if not all(all_same(one[part] for one in of) for of in of_each):
            raise ValueError(
                f"the scores are of several {part} sets; give another --work and --out for other data"
            )


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
    end = plan.endpoint
    stem = stem_of(end.numbers)
    for arm in plan.rows:
        for name in plan.evaluations:
            of_arm = scores_of({"scores": scores}, name).get(arm, {})
            if name == end.evaluation and f"{stem}_{BEST}" in end.numbers:
                of_arm = with_best(of_arm, stem)
            for number in next(iter(of_arm.values()), ()):
                values = [numbers[number] for numbers in of_arm.values()]
                yield {
                    "arm": arm, "evaluation": name, "number": number, "values": values,
                    "mean": round(statistics.fmean(values), 3),
                    "deviation": round(statistics.stdev(values), 3) if len(values) > 1 else None,
                }  # fmt: skip


def block_means(results: Mapping[str, Any]) -> tuple[list[str], dict[str, list[Record]]]:
    """Return the numbers of the endpoint's kind, one for each block, and each arm's means in their order."""
    end = results["endpoint"]
    stem = stem_of(end["numbers"])
    rows = [
        row
        for row in results["means"]
        if row["evaluation"] == end["evaluation"] and re.fullmatch(rf"{stem}_B\d+", row["number"])
    ]
    numbers = list(dict.fromkeys(row["number"] for row in rows))
    arms = dict.fromkeys(row["arm"] for row in rows)
    return numbers, {arm: [row for row in rows if row["arm"] == arm] for arm in arms}


def compared_numbers(results: Mapping[str, Any]) -> dict[tuple[str, int], Mapping[str, float]]:
    """Return what decides: the numbers of the endpoint's evaluation, and those to compare with, by seed."""
    end = results["endpoint"]
    of_arms = {
        (arm, seed): numbers
        for arm, of in scores_of(results, end["evaluation"]).items()
        for seed, numbers in with_best(of, stem_of(end["numbers"])).items()
    }
    return of_arms | {(one["name"], one["seed"]): one["numbers"] for one in results["beside"]}


def _differences(plan: Plan, results: Record) -> Iterator[Record]:
    """Yield the differences of the endpoint's pairs, seed by seed, with the t interval of their mean."""
    end, scores = plan.endpoint, results["scores"]
    of = compared_numbers(results)
    for first, second in end.pairs:
        its, others = (numbers_of(plan, arm, scores) for arm in (first, second))
        for number, other in zip(its, others, strict=True):
            here = ((first, number), (second, other))
            seeds = [
                seed for seed in plan.seeds if all(name in of.get((arm, seed), ()) for arm, name in here)
            ]
            if not seeds:
                continue
            values = [of[first, seed][number] - of[second, seed][other] for seed in seeds]
            name = number if number == other else f"{number} - {other}"
            yield {"pair": [first, second], "number": name, "seeds": seeds, **difference(values)}


def numbers_of(plan: Plan, arm: str, scores: Sequence[Record]) -> Sequence[str]:
    """Return the numbers of an arm that are compared: all of the endpoint, or the best by `chosen_by`.

    What stands beside the arms has one number.
    """
    end = plan.endpoint
    if arm in plan.beside:
        return [plan.beside[arm].number] * (1 if end.chosen_by else len(end.numbers))
    means = {row["number"]: row["mean"] for row in _means(plan, scores)
             if (row["arm"], row["evaluation"]) == (arm, end.chosen_by)}  # fmt: skip
    if means:
        return [max(end.numbers, key=lambda number: means[number])]
    return end.numbers[:1] if end.chosen_by else end.numbers


def difference(values: Sequence[float]) -> Record:
    """Return the mean of paired differences and its two-sided 95 % interval by Student's t."""
    return {
        "values": [round(value, 3) for value in values], "mean": round(statistics.fmean(values), 3),
        "interval": t_interval(values, CONFIDENCE) if len(values) > 1 else None,
    }  # fmt: skip


def t_interval(values: Sequence[float], confidence: float) -> list[float]:
    """Return the two-sided interval of the mean of two or more values by Student's t."""
    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return [round(mean - half, 3), round(mean + half, 3)]


def holm(differences: Sequence[Sequence[float]], num: int) -> list[float]:
    """Return the p value of each mean difference by Student's t, corrected by Holm for `num` comparisons.

    Those that are not among the differences yet count as the ones with the greatest p.
    """
    errors = np.array([stats.sem(values) for values in differences])
    with np.errstate(divide="ignore"):  # all seeds may be equal
        t = np.abs([statistics.fmean(values) for values in differences]) / errors
    p = 2 * stats.t.sf(t, [len(values) - 1 for values in differences])
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(num, num - len(p), -1))
    return np.minimum(adjusted, 1).tolist()  # type: ignore[no-any-return]


def _curves(plan: Plan, trainings: Sequence[Record]) -> Record:
    """Return the curve's values in percent by arm, one list for each training, and their change."""
    curves = dict[str, Record]()
    if (curve := plan.curve) is None:
        return curves
    for training in trainings:
        if training["arm"] not in plan.arms or not (values := training.get("curve")):
            continue
        epochs = [int(epoch) for epoch in values]
        of_arm = curves.setdefault(training["arm"], {"seeds": [], "epochs": epochs, "values": []})
        of_arm["seeds"].append(training["seed"])
        of_arm["values"].append(list(values.values()))
    for of_arm in curves.values():
        epochs = of_arm["epochs"]
        ends = [epoch for epoch in epochs if curve.first_epoch <= epoch <= curve.last_epoch]
        if len(ends) > 1:
            places = [epochs.index(ends[0]), epochs.index(ends[-1])]
            first, last = ([values[place] for values in of_arm["values"]] for place in places)
            of_arm["change"] = {
                "epochs": [ends[0], ends[-1]], "means": [statistics.fmean(first), statistics.fmean(last)],
                **difference([after - before for before, after in zip(first, last, strict=True)]),
            }  # fmt: skip
    return curves


def _commit_of(path: Path) -> str | None:
    """Return the commit that last changed the plan; None if it is not committed as it is.

    Without git it is FASTPSL_COMMIT, the commit of the whole tree.
    """
    if override := os.environ.get("FASTPSL_COMMIT"):
        return None if " " in override else override
    git = ("git", "-C", str(path.resolve().parent))
    if not output_of(*git, "rev-parse", "HEAD") or output_of(*git, "diff", "HEAD", "--", path.name):
        return None
    return output_of(*git, "log", "-1", "--format=%H", "--", path.name)
