"""Write the weights of an experiment, or train them again and compare them with those that are there.

    python -m bench.evidence.weights bench/evidence/uic-cpu.json --work runs/uic --out docs/runs/uic-cpu

OUT has the results.json of the complete experiment. Of each arm that beats "no training" by `RULE`, it gets
the first seed's backbone, ARM-sSEED.safetensors, and its certificate, ARM-sSEED.safetensors.json. A training
that WORK has not is done again by the record's command, with --source and within --seconds. What OUT has
already stays: its tensors or else its scores are compared, and the exit code is 1 where the scores differ by
more than seeds do.
"""

import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from scipy import stats

from bench.evidence.best_blocks import bests
from bench.evidence.plan import UNTRAINED, Run, Step
from bench.evidence.power import LEVEL
from bench.evidence.results import Record, holm, score_of, t_interval, training_of
from bench.evidence.run import Options, OutOfTime, Runner, prepared
from bench.program import run_program
from fastpsl.console.terminal import EXIT_PREEMPTED
from fastpsl.files.atomic import write_atomically
from fastpsl.files.digest import sha256_of_file
from fastpsl.models.export import export
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.weights import Pretrained, sha256_of_tensors
from fastpsl.pipelines.interface.identity import same_data

RULE = (
    "An arm has weights if its best block is above that of no training: by their differences, seed by seed, "
    "in the evaluation of the endpoint. A seed's best block is that of the other seeds. The test is "
    "Student's t, two-sided, at 5 %. Holm's correction is for all arms of the experiment. The interval at "
    "the i-th smallest p of N has the level 1 − 0.05 / (N − i + 1)."
)
MAX_BYTES = 3_000_000
_DTYPE = "float16; float32 where a tensor has one dimension, as BatchNorm's have"


@dataclass(frozen=True)
class Gain:
    """The mean difference of an arm's best block from that of "no training", and what `RULE` says of it."""

    arm: str
    mean: float
    interval: tuple[float, float]
    level: float  # of the interval
    p: float  # corrected

    @property
    def is_above(self) -> bool:
        """Whether it is above 0."""
        return self.mean > 0 and self.p < LEVEL


def gains(results: Mapping[str, Any]) -> list[Gain]:
    """Return the gains of all arms of an experiment's results.json; each arm has each seed."""
    evaluation = results["endpoint"]["evaluation"]
    values = {
        one.arm: [*one.gains.values()] for one in bests(results) if one.evaluation == evaluation and one.gains
    }
    if not values:
        raise ValueError(f"an interval needs two seeds or more of an arm and of {UNTRAINED}")
    p = dict(zip(values, holm([*values.values()], len(values)), strict=True))
    means = {arm: statistics.fmean(of_arm) for arm, of_arm in values.items()}
    found = {}
    for rank, arm in enumerate(
        sorted(means, key=lambda arm: stats.sem(values[arm]) / abs(means[arm] or 1e-9))
    ):
        level = 1 - LEVEL / (len(values) - rank)
        low, high = t_interval(values[arm], level)
        found[arm] = Gain(arm, round(means[arm], 3), (low, high), round(level, 5), p[arm])
    return [found[arm] for arm in values]


def beating(found: list[Gain]) -> list[str]:
    """Return the arms that beat "no training"."""
    return [gain.arm for gain in found if gain.is_above]


def halved(pretrained: Pretrained) -> Pretrained:
    """Turn the matrices and filters of a backbone into float16, in place."""
    for tensor in (*pretrained.backbone.parameters(), *pretrained.backbone.buffers()):
        if tensor.ndim > 1 and tensor.is_floating_point():
            tensor.data = tensor.data.half()
            if not tensor.isfinite().all():
                raise ValueError(f"{pretrained.record['path']}: some weights are no numbers of float16")
    return pretrained


def write_weights(runner: Runner, run: Run) -> tuple[str, bool]:
    """Train if need be, and write or compare the weights of a run; return a line, and whether all is well."""
    runner.do(run)
    of = runner.plan.own_backbone.removeprefix(" --backbone ")
    pretrained = load_pretrained(runner.runs / run.name, of or None)
    certificate = _certificate(runner, run, pretrained)
    name = run.short_name
    out = runner.results.path.with_name(f"{name}.safetensors")
    path = out.with_name(f"{out.name}.json")
    known = json.loads(path.read_text()) if path.exists() else None
    said, is_well = _compared(certificate, known, runner.results.record)
    if not is_well or (known and out.exists()):
        return f"{name}: {said}", is_well
    size = sum(tensor.nbytes for tensor in halved(pretrained).backbone.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(f"{out}: would have {size:,} bytes; those of at most {MAX_BYTES:,} are published")
    here = runner.runs / out.name
    export(pretrained, "safetensors", here, overwrite=True)
    of_file = {
        "file": out.name, "sha256": sha256_of_file(here), "bytes": here.stat().st_size, "dtype": _DTYPE,
        "scores_of_file": _scores_of_file(runner, run, here),
    }  # fmt: skip
    write_atomically(out, here.read_bytes())
    write_atomically(path, (json.dumps(of_file | certificate, indent=1) + "\n").encode())
    return f"{name}: {said}; {out}, {size / 1e6:.2f} MB", True


def _scores_of_file(runner: Runner, run: Run, file: Path) -> Record:
    """Return the numbers of a file of weights in the folder of the runs, by evaluation."""
    plan, found = runner.plan, Record()
    for name in plan.evaluations_of(run):
        command = plan.evaluations[name].replace("{weights}", f"{{runs}}/{file.name}{plan.own_backbone}")
        step = Step(f"{file.name}-{name}", command, run.values)
        runner.run_step(step)
        score = score_of(runner.runs, step)
        if score["weights_sha256"] != sha256_of_file(file):
            raise ValueError(f"{file.with_name(step.name)}: scores of an earlier {file.name}; remove them")
        found[name] = score["numbers"]
    return found


def _saw_same(recorded: Record, now: Record) -> bool:
    """Return whether the data of two scores is the same; the record may be older than digests of contents."""
    return recorded.keys() == now.keys() and all(
        same_data(value, now[name]) if isinstance(value, str) else value == now[name]
        for name, value in recorded.items()
    )


def _certificate(runner: Runner, run: Run, pretrained: Pretrained) -> Record:
    """Return what a run's weights came from and score; ValueError if the record saw other data."""
    plan, record, sha256 = runner.plan, runner.results.record, pretrained.record["sha256"]
    training = training_of(runner.runs, plan.training_of(run))
    scores = {name: score_of(runner.runs, plan.evaluation_of(run, name)) for name in plan.evaluations_of(run)}
    of_run = [one for one in record["scores"] if (one["arm"], one["seed"]) == (run.arm, run.seed)]
    if not all(_saw_same(one["data"], scores[one["evaluation"]]["data"]) for one in of_run):
        raise ValueError(
            f"{run.name} saw other data than the record: give their --source, and another --work"
        )
    machine = training["machine"]
    return {
        "experiment": runner.results.path.resolve().parent.name,
        "plan": record["plan"], "plan_sha256": record["plan_sha256"],
        "arm": run.arm, "rate": run.rate, "seed": run.seed,
        "backbone": pretrained.record["backbone"], "input": pretrained.input.as_dict(),
        "tensors_sha256": sha256_of_tensors(pretrained.backbone.state_dict()),
        "checkpoint_sha256": sha256,
        "is_of_the_record": all(one["weights_sha256"] == sha256 for one in of_run),
        "environment": {
            "cpu": training["cpu"], "gpu": machine["gpu"], "threads": machine["torch_threads"],
            "torch": machine["packages"].get("torch"), "python": machine["python"],
            "commit": training["commit"],
        },
        "first": [step.command for step in plan.first_for(run)], "training": training, "scores": scores,
    }  # fmt: skip


def _compared(made: Record, known: Record | None, results: Record) -> tuple[str, bool]:
    """Return how a training agrees with the certificate or else with the record, and whether it does."""
    if known and made["tensors_sha256"] == known["tensors_sha256"]:
        return "bit-equal to the certificate's", True
    if made["is_of_the_record"] and not known:
        return "the checkpoint of the record", True
    end, words, is_well = results["endpoint"], list[str](), True
    for number in end["numbers"]:
        low, high = spread([
            score["numbers"][number] for score in results["scores"]
            if (score["arm"], score["evaluation"]) == (made["arm"], end["evaluation"])
        ])  # fmt: skip
        value = made["scores"][end["evaluation"]]["numbers"][number]
        is_within = low <= value <= high
        is_well = is_well and is_within
        words.append(f"{number} {value:g} is {'' if is_within else 'not '}within {low:.2f} to {high:.2f}")
    before = known["environment"] if known else {}
    differing = [key for key, value in before.items() if made["environment"][key] != value]
    of = f"the certificate's, with other {', '.join(differing) or 'nothing'}" if known else "the record's"
    return f"other bits than {of}; {', '.join(words)}, where 95 % of seeds lie", is_well


def spread(values: list[float]) -> tuple[float, float]:
    """Return the interval in which one more seed lies with 95 %, by Student's t."""
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * statistics.stdev(values)
    mean = statistics.fmean(values)
    half *= (1 + 1 / len(values)) ** 0.5
    return mean - half, mean + half


def _runs(runner: Runner) -> Iterator[Run]:
    """Yield the first seed's run of each arm that beats "no training"; print the gains of all."""
    results, plan = runner.results, runner.plan
    rates = results.rates()
    if missing := results.missing(plan.counted(rates)):
        raise ValueError(
            f"{results.path}: {len(missing)} entries are missing, such as {missing[0].name}; run "
            f"bench.evidence.run first, with --out {results.path.parent}"
        )
    # Bits depend on the number of threads.
    os.environ["OMP_NUM_THREADS"] = str(results.record["training"][0]["machine"]["torch_threads"])
    found = gains(results.record)
    for gain in found:
        low, high = gain.interval
        print(
            f"{gain.arm} - {UNTRAINED}, best blocks: {gain.mean:+.2f} ({low:+.2f} to {high:+.2f} at "
            f"{100 * gain.level:.2f} %), p {gain.p:.2g}: {'above' if gain.is_above else 'not above'} 0"
        )
    for arm in beating(found):
        yield Run(arm, rates[arm], plan.seeds[0], counts=True)


def main() -> int:
    """Write or compare the weights."""
    runner = prepared(tyro.cli(Options, description=__doc__))
    is_well = True
    try:
        for run in _runs(runner):
            said, is_alike = write_weights(runner, run)
            print(said, flush=True)
            is_well = is_well and is_alike
    except OutOfTime:
        print("the time is over; the same command goes on", file=sys.stderr)
        return EXIT_PREEMPTED
    return int(not is_well)


if __name__ == "__main__":
    run_program(main)
