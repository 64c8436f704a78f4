"""Run what is missing of an experiment of bench/evidence, and add it to the experiment's results.json.

    python -m bench.evidence.run bench/evidence/uic-cpu.json --source CIFAR10 --work runs/uic --seconds 600

An arm's training with its scores is one entry of results.json, which is written as soon as it is there. The
same command begins only entries that are missing, also on another machine. It ends by itself after --seconds
(exit 75). What was stopped keeps its place in --work. Where the plan leaves the number of epochs to the
clock, short runs of all arms are timed first. The number is written before any score.
"""

import json
import multiprocessing
import os
import re
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from heapq import heapreplace
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional, arg

from bench.evidence.data import write as write_data
from bench.evidence.plan import RANDOM, Plan, Run, Step, of_cpu
from bench.evidence.results import Results, done_file
from bench.program import run_program
from fastpsl.console.terminal import EXIT_PREEMPTED
from fastpsl.engine.gpu import cpu_name
from fastpsl.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]
_SAY_EVERY_S = 10.0
_END_S = 60.0  # for a training to write its checkpoint
_TIMED_EPOCHS = (1, 2)  # the first compiles


@dataclass(frozen=True, kw_only=True)
class Options:
    plan: Positional[Annotated[Path, arg(metavar="PLAN")]]  # The plan, a JSON file.
    work: Path  # The folder of its data and runs.
    source: Path | None = None
    """The images as they are published (see data.py). [none: WORK has the data]"""
    out: Path | None = None
    """The folder of results.json; docs/runs/PLAN adds to what is published. [WORK]"""
    seconds: float = 540.0  # After so long everything is stopped, to be gone on with.
    jobs: int = 1  # Entries at a time; each has its part of the cores.


class OutOfTime(Exception):
    """The time is over; the same command goes on."""


@dataclass
class Runner:
    """A runner of the commands of a plan that are not done yet."""

    data: Path  # the folder of the data
    runs: Path  # the folder of the runs
    jobs: int  # entries at a time
    results: Results
    deadline: float  # when to stop, by time.monotonic()
    stopping: threading.Event = field(default_factory=threading.Event)  # something failed or the time is over
    lock: threading.Lock = field(default_factory=threading.Lock)
    needed_s: dict[str, float] = field(default_factory=dict)  # by arm, where it is known

    def left_s(self) -> float:
        """Return the seconds until the time is over."""
        return self.deadline - time.monotonic()

    @property
    def plan(self) -> Plan:
        """The plan, with the number of epochs if it is chosen."""
        return self.results.plan

    def enter(self, run: Run) -> None:
        """Train and evaluate, and add that to the results; do not begin what would not end in time."""
        began = time.monotonic()
        if self.needed_s.get(run.arm, 0) > self.left_s():
            raise OutOfTime
        self.do(run)
        with self.lock:
            self.results.add(run, self.runs)
        if run.arm in self.needed_s:
            self.needed_s[run.arm] = time.monotonic() - began
        print(f"{run.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    def do(self, run: Run) -> None:
        """Train and evaluate."""
        self.train(run)
        for name in self.plan.evaluations_of(run):
            self.run_step(self.plan.evaluation_of(run, name))

    def train(self, run: Run) -> None:
        """Train, with the labels that this needs."""
        with self.lock:  # because others may need the same
            for step in self.plan.first_for(run):
                self.run_step(step)
        if run.arm != RANDOM:
            self.run_step(self.plan.training_of(run))

    def comparing(self, *, with_trainings: bool = True) -> list[Callable[[], None]]:
        """Return what finds the numbers to compare with: all, or those that read nothing of a training."""
        return [
            partial(self.enter_beside, *one)
            for one in self.results.missing_beside()
            if with_trainings or not re.search("{runs}|docs/runs/", one[2].template)
        ]

    def entering(self, runs: Iterable[Run]) -> list[Callable[[], None]]:
        """Return what makes the entries that are missing."""
        return [partial(self.enter, run) for run in self.results.missing(runs)]

    def enter_beside(self, name: str, seed: int | None, step: Step) -> None:
        """Run the command of a number to compare with, and add that to the results."""
        with self.lock:  # because others may need the same
            for first in self.plan.first_of(seed) if seed is not None else ():
                self.run_step(first)
        self.run_step(step)
        with self.lock:
            self.results.add_beside(name, seed, step, self.runs)

    def all(self, works: Sequence[Callable[[], None]]) -> None:
        """Do all, some at a time. A failure stops the others; what has no time left is left out."""

        def one(work: Callable[[], None]) -> None:
            if self.stopping.is_set():
                raise OutOfTime
            try:
                work()
            except OutOfTime:
                raise
            except BaseException:
                self.stopping.set()
                raise

        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(one, work) for work in works]
            try:
                errors = [error for future in futures if (error := future.exception()) is not None]
            except BaseException:
                self.stopping.set()
                raise
        if errors:  # the first that is no end of the time, or that
            raise min(errors, key=lambda each: isinstance(each, OutOfTime))

    def run_step(self, step: Step) -> None:
        """Run a command unless it is done."""
        name, done = step.name, done_file(self.runs, step)
        log, before = self.runs / f"{name}.log", done.exists() and json.loads(done.read_text())["command"]
        if before:
            if before != step.command:
                raise ValueError(f"{done} is of another command ({before}): give another --work")
            return
        process = _PROCESSES.Process(
            target=work, args=(self.words_of(step), step.command, log, done), name=name
        )
        with _POLLING:
            process.start()
        try:
            self._wait(process, log)
        finally:
            _end(process)
        if process.exitcode == EXIT_PREEMPTED:
            raise OutOfTime
        if process.exitcode:
            raise ValueError(
                f"{name} failed with exit code {process.exitcode}: {_last_line(log)} (all in {log})"
            )

    def words_of(self, step: Step) -> list[str]:
        """Return the words of a command on this machine."""
        words = step.words(self.data, self.runs)
        return words if torch.cuda.is_available() else of_cpu(words)

    def _wait(self, process: ForkServerProcess, log: Path) -> None:
        said = time.monotonic()
        while _is_alive(process):
            wait([process.sentinel], 0.2)
            if self.left_s() < 0 or self.stopping.is_set():
                raise OutOfTime
            if time.monotonic() - said >= _SAY_EVERY_S:
                said = time.monotonic()
                print(f"{process.name}: {_last_line(log)}", file=sys.stderr, flush=True)


# A start polls all processes, and of two polls at once one finds no exit code.
_POLLING = threading.Lock()
# Each command has a process, forked from one that has torch already: a start takes a moment, not seconds.
_PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["fastpsl.scripts.recipe_process", "fastpsl.evaluate", "bench.evidence.results"]
_PROCESSES.set_forkserver_preload(PRELOADED)


def work(words: Sequence[str], command: str, log: Path, done: Path) -> None:
    """Do a command, `fastpsl ...` or a script, in this process, which ends with its exit code.

    The seconds of its parts, where it was stopped and gone on with, are added up.
    """
    began, sys.argv = time.monotonic(), [*words]
    parts = done.with_suffix(".parts.json")
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    os.chdir(ROOT)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        if words[0] == "fastpsl":
            from fastpsl.cli import main

            main()
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code == EXIT_PREEMPTED:
            write_atomically(parts, json.dumps(_spent(began, parts)).encode())
        if end.code:
            raise
    record = {
        "command": command, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **_spent(began, parts), "cpu": cpu_name(),
    }  # fmt: skip
    write_atomically(done, json.dumps(record).encode())


def _spent(began: float, parts: Path) -> dict[str, float]:
    """Return the seconds of this process and of the parts before it, by the clock and of the processor."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(each.ru_utime + each.ru_stime for each in usage)
    now = {"seconds": time.monotonic() - began, "cpu_seconds": cpu_s}
    before = json.loads(parts.read_text()) if parts.exists() else dict.fromkeys(now, 0.0)
    return {name: round(before[name] + seconds, 1) for name, seconds in now.items()}


def _end_with_the_parent() -> None:
    """Wait until the process that asked for this one is gone, and stop this one, which keeps its place."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _end(process: ForkServerProcess) -> None:
    """End a process by SIGTERM, which trainings answer by a checkpoint, or after a minute by SIGKILL."""
    if _is_alive(process):
        process.terminate()
        wait([process.sentinel], _END_S)
    if _is_alive(process):
        process.kill()
        wait([process.sentinel])
    assert not _is_alive(process)


def _is_alive(process: ForkServerProcess) -> bool:
    with _POLLING:
        return process.is_alive()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1][:200] if lines else "begun"


def choose_epochs(runner: Runner) -> None:
    """Time short runs of all arms, and choose the most epochs by which all seeds end in time.

    They have the seed that counts nowhere, and their scores are not looked at.
    """
    plan = runner.plan
    assert plan.search is not None, "read_plan requires it of plans with epochs"
    rates = runner.results.rates()
    runs = [Run(arm, rate, plan.search.seed, counts=True) for arm, rate in rates.items()]
    for num in _TIMED_EPOCHS:
        folder = runner.runs / f"timed-{num}"
        folder.mkdir(exist_ok=True)
        timing = replace(runner, runs=folder, results=replace(runner.results, plan=plan.with_epochs(num)))
        timing.all([partial(timing.train, run) for run in runs])
    timing.all([partial(timing.do, run) for run in runs])
    timed = {run.arm: _timed(timing, run, num) for run in runs}
    fitting = [num for num in plan.epochs if _span(runner, timed, num) <= runner.left_s()]
    runner.results.choose_epochs((fitting or plan.epochs[-1:])[0], timed)


def _timed(runner: Runner, run: Run, num: int) -> dict[str, float]:
    """Return the seconds of a run's start, of one of its `num` epochs, and of its scores.

    Its start includes what makes its labels.
    """
    first, (training, *scores) = (
        [json.loads(done_file(runner.runs, step).read_text())["seconds"] for step in steps]
        for steps in (runner.plan.first_for(run), runner.plan.steps_of(run))
    )
    stages = json.loads((runner.runs / run.name / "results.json").read_text())
    steps = sum(stage["seconds"] for stage in stages)
    found = {
        "start_s": sum(first) + training - steps, "epoch_s": steps / num, "scores_s": sum(scores),
    }  # fmt: skip
    return {name: round(seconds, 2) for name, seconds in found.items()}


def needed_s(timed: Mapping[str, float], num: int) -> float:
    """Return the seconds of a run of so many epochs with its scores."""
    return timed["start_s"] + num * timed["epoch_s"] + timed["scores_s"]


def _span(runner: Runner, timed: Mapping[str, Mapping[str, float]], num: int) -> float:
    """Return the seconds of all seeds; no training is as long as two epochs of the longest arm."""
    runs = [needed_s(of_arm, num) for of_arm in timed.values()]
    if runner.plan.untrained is not None:
        runs.append(max(needed_s(of_arm, 2) for of_arm in timed.values()))
    free = [0.0] * runner.jobs
    for seconds in runs * len(runner.plan.seeds):
        heapreplace(free, free[0] + seconds)
    return max(free)


def prepared(options: Options) -> Runner:
    """Return the runner of an experiment whose data are written; the environment has its threads."""
    deadline = time.monotonic() + options.seconds
    if options.seconds <= 0 or options.jobs < 1:
        raise ValueError(f"--seconds {options.seconds:g}, --jobs {options.jobs}: both must be above 0")
    work = options.work.resolve()
    results = Results.opened((options.out or work) / "results.json", options.plan)
    data, runs = work / "data", work / "runs"
    if not data.is_dir():
        write_data(options.plan.stem, options.source, data)
    runs.mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
    return Runner(data, runs, options.jobs, results, deadline)


def main() -> int:
    """Run what is missing."""
    runner = prepared(tyro.cli(Options, description=__doc__))
    results = runner.results
    end = ""
    try:
        if runner.plan.epochs and not results.record["epochs"]:
            choose_epochs(runner)
        for arm, timed in results.record.get("calibration", {}).items():
            runner.needed_s[arm] = needed_s(timed, results.record["epochs"])
        runner.all(runner.entering(runner.plan.searched()))
        # Where the clock has chosen the epochs, it left no time for anything before them.
        first = [] if runner.plan.epochs else runner.comparing(with_trainings=False)
        runner.all(first + runner.entering(runner.plan.counted(results.rates())))
        runner.all(runner.comparing())
    except OutOfTime:
        end = "; the time is over, and the same command goes on"
    print(f"{results.path}: {len(results.record['scores'])} scores{end}")
    return EXIT_PREEMPTED if end else 0


if __name__ == "__main__":
    run_program(main)
