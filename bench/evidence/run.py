"""Run an experiment of bench/evidence by its plan, in pieces, and write results.json and a figure.

    python -m bench.evidence.run bench/evidence/psl_jigsaw-small.json --data DATA --runs RUNS --minutes 9

The same command goes on where it was stopped: it ends by itself after --minutes (exit 75), trainings keep
their place, and what is done is not done again. Each number comes with its command, seed, data and commit.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from bench.evidence.page import draw_figure
from bench.evidence.plan import RANDOM, Plan, Run, Step, read_plan
from bench.evidence.results import Done, chosen_rates, collect
from bench.program import run_program
from fastpsl.console.terminal import EXIT_PREEMPTED
from fastpsl.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]
_SAY_EVERY_S = 10.0
_END_S = 120.0  # for a training to write its checkpoint


@dataclass(frozen=True, kw_only=True)
class Options:
    plan: Positional[Annotated[Path, arg(metavar="PLAN")]]  # The plan, a JSON file.
    data: Path  # The folder of its data (see the script beside the plan).
    runs: Path  # The folder of its runs.
    out: Path | None = None
    """Where results.json and figure.png go. [RUNS]"""
    minutes: float = 9.0  # After so long everything is stopped, to be gone on with.
    jobs: int = 1  # Trainings at a time; each has its part of the cores.


class OutOfTime(Exception):
    """The time is over; the same command goes on."""


@dataclass(frozen=True)
class Runner:
    """Runs the commands of a plan that are not done yet."""

    plan: Plan
    options: Options
    deadline: float  # when to stop, by time.monotonic()
    stopping: threading.Event  # set when something failed or the time is over
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, run: Run) -> None:
        """Train and evaluate."""
        self._first(run.seed)
        if run.arm != RANDOM:
            self._run(self.plan.training_of(run))
        for name in self.plan.evaluations_of(run):
            self._run(self.plan.evaluation_of(run, name))

    def compare(self) -> None:
        """Run the commands of the numbers to compare with."""
        for _, seed, step in self.plan.compared():
            if seed is not None:
                self._first(seed)
            self._run(step)

    def _first(self, seed: int) -> None:
        """Run what comes before a training of this seed."""
        with self.lock:  # because others may need the same
            for step in self.plan.first_of(seed):
                self._run(step)

    def _run(self, step: Step) -> None:
        """Run a command unless it is done, and note that it is."""
        runs, name = self.options.runs, step.name
        words, command = step.words(self.options.data, runs), step.command
        done, log = runs / f"{name}.done.json", runs / f"{name}.log"
        if done.exists():
            before = json.loads(done.read_text())["command"]
            if before != command:
                raise ValueError(f"{done} is of another command ({before}): give another --runs")
            return
        threads = max(1, len(os.sched_getaffinity(0)) // self.options.jobs)
        with log.open("a") as file:
            process = subprocess.Popen(
                _program(words),
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            try:
                self._wait(process, name, log)
            finally:
                _end(process)
        if process.returncode == EXIT_PREEMPTED:
            raise OutOfTime
        if process.returncode:
            raise ValueError(
                f"{name} failed with exit code {process.returncode}: {_last_line(log)} (all in {log})"
            )
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_atomically(done, json.dumps({"command": command, "date": date}).encode())

    def _wait(self, process: "subprocess.Popen[bytes]", name: str, log: Path) -> None:
        said = time.monotonic()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            if time.monotonic() > self.deadline or self.stopping.is_set():
                _end(process)
                raise OutOfTime
            if time.monotonic() - said >= _SAY_EVERY_S:
                said = time.monotonic()
                print(f"{name}: {_last_line(log)}", file=sys.stderr, flush=True)


def _program(words: Sequence[str]) -> list[str]:
    """Return the command with this interpreter: `fastpsl ...` or a script."""
    if words[0] == "fastpsl":
        return [str(Path(sys.executable).with_name("fastpsl")), *words[1:]]
    return [sys.executable, *words]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process by SIGTERM, which trainings answer by a checkpoint, or after two minutes by SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1][:200] if lines else "begun"


def all_of(runner: Runner, runs: Iterable[Run]) -> None:
    """Run all, some at a time; the first failure stops the others."""

    def one(run: Run) -> None:
        if runner.stopping.is_set():
            raise OutOfTime
        try:
            runner.run(run)
        except BaseException:
            runner.stopping.set()
            raise

    with ThreadPoolExecutor(runner.options.jobs) as pool:
        futures = [pool.submit(one, run) for run in runs]
        try:
            errors = [error for future in futures if (error := future.exception()) is not None]
        except BaseException:
            runner.stopping.set()
            raise
    if errors:  # the first that is no end of the time, or that
        raise min(errors, key=lambda each: isinstance(each, OutOfTime))


def main() -> int:
    """Run what is missing, and write the results so far."""
    options = tyro.cli(Options, description=__doc__)
    if options.minutes <= 0 or options.jobs < 1:
        raise ValueError(f"--minutes {options.minutes:g}, --jobs {options.jobs}: both must be above 0")
    plan = read_plan(options.plan)
    if not options.data.is_dir():
        raise ValueError(f"--data {options.data}: no such folder")
    options.runs.mkdir(parents=True, exist_ok=True)
    out = options.out or options.runs
    done = Done(options.runs)
    runner = Runner(plan, options, time.monotonic() + 60 * options.minutes, threading.Event())
    code = 0
    try:
        all_of(runner, plan.searched())
        all_of(runner, plan.counted(chosen_rates(plan, done)))
        runner.compare()
    except OutOfTime:
        print("the time is over; the same command goes on", file=sys.stderr)
        code = EXIT_PREEMPTED
    finally:
        results = collect(options.plan, plan, done)
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
        if results["scores"]:
            draw_figure(plan, results, out / "figure.png")
    print(out / "results.json")
    return code


if __name__ == "__main__":
    run_program(main)
