"""Processes that share a place: two trainers, two writers, locks of dead processes, killed writers."""

import random
import signal
import time
from pathlib import Path

from fastpsl.pipelines.beton.verify import verify
from tests.faults.changed_data import beton
from tests.faults.disk import write_images
from tests.faults.forks import output_of, start
from tests.faults.small_runs import verdict
from tests.faults.trials import LIMIT_S, Outcome, Trial, long_run, recipe, stop_after, without_litter


def two_trainers(folder: Path) -> Outcome:
    """Start two trainers in one folder; the second is refused, the first finishes."""
    first = long_run(folder / "run", folder / "first.log")
    second = recipe(folder, out=folder / "run", words=(str(folder / "run"), "--out"))
    outcome = stop_after(first, folder / "run", 1)
    return second if outcome[0] == "goes on" else outcome


def lock_of_a_killed_trainer(folder: Path) -> Outcome:
    """Kill a trainer; the system releases its lock, so the run goes on at once."""
    process = long_run(folder / "run", folder / "log", "--checkpoint-steps", 1)
    process.send(signal.SIGKILL)
    process.wait(LIMIT_S)
    options = ("--plan", "end_to_end", "--epochs", 1000, "--max-steps-per-stage", 8)
    outcome = recipe(folder, *options)
    log = folder / "log"
    is_resumed = any("resuming" in path.read_text() for path in (log, output_of(log)))
    return outcome if outcome[0] != "goes on" or is_resumed else ("differs", "started anew")


def lock_with_other_content(folder: Path) -> Outcome:
    (folder / "run").mkdir()
    (folder / "run" / ".lock").write_text("pid 1 on another machine\n")
    return recipe(folder)


def two_writers(folder: Path) -> Outcome:
    """Start two writers of one beton; one writes it, the other is refused, and the beton is whole."""
    arguments = (
        "fastpsl",
        "beton",
        "write",
        write_images(folder / "pictures", 200),
        folder / "x.beton",
        "--max-side",
        100,
    )
    processes = [start(arguments, folder / f"{which}.log") for which in "ab"]
    ends = [process.wait(LIMIT_S) for process in processes]
    outcomes = [verdict(end, "fastpsl", words=("x.beton",)) for end in ends]
    if sorted(outcome for outcome, _ in outcomes) not in (["goes on", "refused"],):
        failures = (each for each in outcomes if each[0] not in ("goes on", "refused"))
        return next(failures, ("differs", f"{outcomes}"))
    faults = list(verify(folder / "x.beton", 1))
    refusal = next(each for each in outcomes if each[0] == "refused")
    return without_litter(("silent", str(faults[0])) if faults else refusal, folder)


def writer_killed(folder: Path) -> Outcome:
    """Kill a writer that overwrites a beton: either beton must be whole, and the next write succeed."""
    chance = random.Random(str(folder))
    out, source = beton(folder / "x.beton"), write_images(folder / "pictures", 120)
    old = out.read_bytes()
    arguments = ("fastpsl", "data", "write", source, out, "--max-side", 100, "--overwrite", "--workers", 1)
    started = time.monotonic()
    undisturbed = start((*arguments[:4], folder / "whole.beton", *arguments[5:]), folder / "whole.log")
    outcome = verdict(undisturbed.wait(LIMIT_S), "fastpsl")
    if outcome[0] != "goes on":
        return outcome
    seconds, new = time.monotonic() - started, (folder / "whole.beton").read_bytes()
    num_killed = 0
    for _ in range(6):
        process = start(arguments, folder / "log")
        time.sleep(chance.uniform(0, seconds))
        process.send(signal.SIGKILL)
        num_killed += process.wait(LIMIT_S).code == -signal.SIGKILL
        if out.read_bytes() not in (old, new):
            return "silent", "neither the old beton nor the new one"
        if faults := list(verify(out, 1)):
            return "differs", str(faults[0])
    outcome = verdict(start(arguments, folder / "log").wait(LIMIT_S), "fastpsl")
    if outcome[0] == "goes on" and out.read_bytes() != new:
        return "differs", "the write after the kills"
    return without_litter((outcome[0], f"{num_killed} of 6 were killed"), folder)


TRIALS: tuple[Trial, ...] = (
    two_trainers,
    lock_of_a_killed_trainer,
    lock_with_other_content,
    two_writers,
    writer_killed,
)
