"""Measure how long an experiment's arms train until their features are worth something.

    python -m bench.evidence.times bench/evidence/psl_jigsaw-small.json --data DATA --runs RUNS \\
        --arms psl "end to end" --accuracy 0.2

Each arm trains anew, at the rate that results.json of --out names for it, alone on the machine, and the
arms take turns. What a plan runs before its trainings, such as random labels, must be in RUNS. The online
monitor (docs/how_to/monitoring.md) looks after every few epochs: nearest neighbours of the stage's last
block, on the images by which rates were chosen. Its looks are not on the clock. The accuracy counts as
reached in an arm's last stage alone, because stages before it may end at another block. The arms are also
compared at equal time: when the first of them is done. Writes times.json beside results.json; the same
command goes on after the last training that came to its end.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import tyro
from tyro.conf import Positional, arg

from bench.evidence.data import SEARCH, TRAIN
from bench.evidence.plan import Plan, Run, read_plan
from bench.evidence.results import Record, difference
from bench.program import progress, run_program
from bench.recipe_stages import recipe_of
from bench.schema import commit, environment, finish
from bench.time_to_accuracy import seconds_to, timed
from fastpsl.console.terminal import EXIT_PREEMPTED
from fastpsl.engine.distributed import World, join_world
from fastpsl.evaluation.result import data_record
from fastpsl.files.atomic import write_atomically
from fastpsl.models.foreign_weights import sha256_of_file
from fastpsl.pipelines.datasets.open import open_data


@dataclass(frozen=True, kw_only=True)
class Options:
    plan: Positional[Annotated[Path, arg(metavar="PLAN")]]  # The experiment's plan, a JSON file.
    data: Path  # The folder of its data.
    runs: Path  # The folder of its runs; the trainings go into its subfolder times.
    arms: tuple[str, ...]  # The arms that are compared; the first is set against each of the others.
    accuracy: float  # The accuracy that is to be reached, in (0, 1).
    every: int = 1  # Epochs between two looks.
    out: Path | None = None
    """Where results.json of the experiment is, and times.json goes. [RUNS]"""

    def check(self, plan: Plan) -> None:
        """Raise ValueError if options are out of range or the plan has no such arm."""
        if not 0 < self.accuracy < 1:
            raise ValueError(f"--accuracy {self.accuracy:g}: it must be between 0 and 1")
        if self.every < 1:
            raise ValueError(f"--every {self.every}: it must be 1 or more")
        if unknown := [arm for arm in self.arms if arm not in plan.arms]:
            raise ValueError(f"--arms {', '.join(unknown)}: the plan has {', '.join(plan.arms)}")
        if len(self.arms) < 2:
            raise ValueError("--arms: give two or more")


def published(options: Options, out: Path) -> tuple[Record, Record]:
    """Return the rates of an experiment's results.json, and digests and sizes of the data's images."""
    path = out / "results.json"
    ended = "run bench.evidence.run to its end first"
    if not path.exists():
        raise ValueError(f"{path}: there is no such file: {ended}")
    results: Record = json.loads(path.read_text())
    if results["plan_sha256"] != sha256_of_file(options.plan):
        raise ValueError(f"{path} is of another plan than {options.plan}, or of an earlier state of it")
    if without := [arm for arm in options.arms if arm not in results["rates"]]:
        raise ValueError(f"{path}: no rate is chosen yet for {', '.join(without)}: {ended}")
    images = (closing(open_data(options.data / f"{name}.beton")) for name in (TRAIN, SEARCH))
    with next(images) as train, next(images) as val:
        data = data_record(train, val)
    if others := {training["data_digest"] for training in results["training"]} - {data["train"]}:
        raise ValueError(
            f"--data {options.data}: its training images have the digest {data['train']}, "
            f"those of results.json {', '.join(sorted(others))}"
        )
    return results["rates"], data


def train(options: Options, plan: Plan, run: Run, world: World) -> Record:
    """Train an arm's run with a monitor, or read what it left; return its looks and their origin."""
    folder = options.runs / "times" / run.name
    done = options.runs / "times" / f"{run.name}.json"
    step = replace(plan.training_of(run), name=f"times/{run.name}")
    words, command = step.words(options.data, options.runs), step.command
    if done.exists():
        record: Record = json.loads(done.read_text())
        if (record["command"], record["every"]) != (command, options.every):
            raise ValueError(f"{done} is of another command ({record['command']}): remove it")
        return record
    shutil.rmtree(folder, ignore_errors=True)  # a part of a training, whose time cannot be gone on with
    recipe = Path(words[0]).stem
    parsed = recipe_of(recipe).parse(words[1:], log=lambda line: None)
    trained = timed(recipe, replace(parsed, probe_every=options.every), world)
    if trained is None:
        raise InterruptedError
    record = {
        "arm": run.arm, "rate": run.rate, "seed": run.seed, "command": command, "every": options.every,
        "commit": commit(), "num_steps": trained.num_steps, "looks": trained.looks,
    }  # fmt: skip
    write_atomically(done, json.dumps(record).encode())
    return record


def accuracy_at(looks: Sequence[Mapping[str, Any]], seconds: float) -> float:
    """Return the accuracy of the last look by so many seconds of training; 0 before the first."""
    return next((look["accuracy"] for look in reversed(looks) if look["seconds"] <= seconds), 0.0)


def compare(records: Sequence[Mapping[str, Any]], arms: Sequence[str], accuracy: float) -> Record:
    """Return each arm's times and accuracies, a value for each seed, and the differences at equal time."""
    seeds = sorted({record["seed"] for record in records})
    looks = {(record["arm"], record["seed"]): record["looks"] for record in records}
    equal_s = [min(looks[arm, seed][-1]["seconds"] for arm in arms) for seed in seeds]
    rows: list[dict[str, Any]] = []
    for arm in arms:
        of_arm = [looks[arm, seed] for seed in seeds]
        last = [[look for look in each if look["stage"] == each[-1]["stage"]] for each in of_arm]
        rows.append({
            "arm": arm,
            "seconds": [each[-1]["seconds"] for each in of_arm],
            "cpu_seconds": [each[-1]["cpu_seconds"] for each in of_arm],
            "seconds_to": [seconds_to(each, accuracy) for each in last],
            "at_equal_time": [100 * accuracy_at(*each) for each in zip(of_arm, equal_s, strict=True)],
            "at_the_end": [100 * each[-1]["accuracy"] for each in of_arm],
        })  # fmt: skip
    first, *others = rows
    differences = []
    for other in others:
        pairs = zip(first["at_equal_time"], other["at_equal_time"], strict=True)
        differences.append({"pair": [first["arm"], other["arm"]], **difference([a - b for a, b in pairs])})
    return {"seeds": seeds, "equal_s": equal_s, "rows": rows, "differences": differences}


def main() -> int:
    """Train what is missing, and write the comparison of what is complete."""
    options = tyro.cli(Options, description=__doc__)
    plan = read_plan(options.plan)
    options.check(plan)
    out = options.out or options.runs
    rates, data = published(options, out)
    (options.runs / "times").mkdir(parents=True, exist_ok=True)
    world = join_world("auto", timeout_s=600)
    machine = environment(world.device)
    records: list[Record] = []
    turns = [
        (arm, seed)
        for place, seed in enumerate(plan.seeds)
        for turn in [place % len(options.arms)]
        for arm in options.arms[turn:] + options.arms[:turn]
    ]
    with progress() as log:
        for arm, seed in turns:
            log(f"{arm}, seed {seed}: training {len(records) + 1} of {len(turns)}")
            try:
                records.append(train(options, plan, Run(arm, rates[arm], seed, counts=True), world))
            except InterruptedError:
                print("stopped; the same command goes on", file=sys.stderr)
                return EXIT_PREEMPTED
    command = shlex.join(["python", "-m", "bench.evidence.times", *sys.argv[1:]])
    result = {
        "plan": options.plan.name,
        "command": command.replace(str(options.data), "DATA").replace(str(options.runs), "RUNS"),
        "notes": finish(machine), "environment": machine, "data": data, "accuracy": options.accuracy,
        "every": options.every, **compare(records, options.arms, options.accuracy), "training": records,
    }  # fmt: skip
    write_atomically(out / "times.json", (json.dumps(result, indent=1) + "\n").encode())
    for row in result["rows"]:
        reached = ", ".join("never" if s is None else f"{s:.0f} s" for s in row["seconds_to"])
        at_equal_time = ", ".join(f"{percent:.1f} %" for percent in row["at_equal_time"])
        print(f"{row['arm']}: {100 * options.accuracy:g} % after {reached}; at equal time {at_equal_time}")
    print(out / "times.json")
    return 0


if __name__ == "__main__":
    run_program(main)
