"""SIGTERM, SIGINT, both and twice, at any moment; pipes that close; Ctrl-C to all of `recipe | tee`: a run says how it ended, and goes on.

Case `seed` is the kind of stop of that number, round and round, at a moment drawn from the seed.
"""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.forks import ENVIRONMENT, ROOT, Ended, Started, fresh, start
from tests.faults.report import Finding
from tests.faults.small_runs import JIGSAW, checkpoints, left_behind, verdict
from tests.faults.trials import LIMIT_S, Outcome, litter, num_steps

_STEPS = ("--plan", "end_to_end", "--stage-epochs", 1, "--max-steps-per-stage", 30, "--checkpoint-steps", 0)
_INT, _TERM = signal.SIGINT, signal.SIGTERM


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    undisturbed = folder / "undisturbed"
    if (
        code := start(JIGSAW.command(undisturbed, *_STEPS), folder / "undisturbed.log").wait(LIMIT_S).code
    ) != 0:
        yield Finding("signals", "undisturbed", "unclear", f"exit {code}")
        return
    names = list(STOPS)
    for number in range(seed, seed + count):
        name = names[number % len(names)]
        place = folder / str(number)
        place.mkdir()
        outcome = STOPS[name](place, random.Random(number))
        if outcome[0] == "goes on":
            outcome = _goes_on(place, undisturbed, outcome[1])
        yield Finding("signals", name, *outcome, number)


def _goes_on(place: Path, undisturbed: Path, detail: str) -> Outcome:
    """Whether the same command leads to the same end."""
    if left := litter(place):
        return "differs", f"left behind: {left}"
    outcome = verdict(
        start(JIGSAW.command(place / "run", *_STEPS), place / "again.log").wait(LIMIT_S), JIGSAW.recipe
    )
    if outcome[0] == "goes on" and left_behind(place / "run") != left_behind(undisturbed):
        return "differs", f"from the undisturbed run; {detail}"
    return outcome[0], outcome[1] or detail


def _signalled(numbers: tuple[signal.Signals, ...], folder: Path, chance: random.Random) -> Outcome:
    """Signals 0 to 50 ms apart, anywhere in training."""
    process = start(JIGSAW.command(folder / "run", *_STEPS), folder / "log")
    step = chance.randrange(1, 20)
    process.wait_until(lambda: num_steps(folder / "run") >= step, LIMIT_S)
    for number in numbers:
        process.send(number)
        time.sleep(chance.uniform(0, 0.05))
    return _stopped(process.wait(LIMIT_S), folder)


def _at_the_start(number: signal.Signals, folder: Path, chance: random.Random) -> Outcome:
    """Before the first step, while imports run: of an interpreter of its own. SIGTERM has its usual meaning there."""
    process = fresh(JIGSAW.command(folder / "run", *_STEPS), folder / "log")
    time.sleep(chance.uniform(0.1, 4.0))
    process.send(number)
    ended = process.wait(LIMIT_S)
    if ended.code == -number and not (folder / "run" / "status.json").exists():
        return "goes on", f"ended by {number.name} before it had begun"
    return _stopped(ended, folder)


def _stopped(ended: Ended, folder: Path) -> Outcome:
    """Exit 75 and `preempted`, with a checkpoint of the step before; or 0 and `finished`, where it was too late."""
    outcome, detail = verdict(ended, JIGSAW.recipe, codes=(0, 75))
    status_file = folder / "run" / "status.json"
    if outcome != "goes on" or (ended.code == 75 and not status_file.exists()):
        return outcome, detail
    status = json.loads(status_file.read_text())
    wanted = {0: "finished", 75: "preempted"}[ended.code or 0]
    if status["state"] != wanted and not (
        wanted == "preempted" and not checkpoints(folder / "run") and status["state"] == "failed"
    ):
        return "differs", f"exit {ended.code}, {status}"
    if num_steps(folder / "run") and not checkpoints(folder / "run"):
        return "differs", f"no checkpoint after {num_steps(folder / 'run')} steps"
    return outcome, f"{wanted} at step {status['step']}"


def _piped(
    reader: str, both: bool, stop: signal.Signals | None, folder: Path, chance: random.Random
) -> Outcome:
    """`recipe | reader` in a shell; stop: a signal to all of them, as Ctrl-C is."""
    words = shlex.join([sys.executable, *map(str, JIGSAW.command(folder / "run", *_STEPS))])
    line = f"{words} {'2>&1' if both else '2>' + shlex.quote(str(folder / 'errors'))} | {reader} > {shlex.quote(str(folder / 'read'))}; exit ${{PIPESTATUS[0]}}"
    shell = subprocess.Popen(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**ENVIRONMENT, **_path()},
        start_new_session=True,
    )
    process = Started(shell, folder / "errors")
    if stop:
        step = chance.randrange(1, 20)
        process.wait_until(lambda: num_steps(folder / "run") >= step, LIMIT_S)
        process.send(stop)
    ended = process.wait(LIMIT_S)
    if stop and ended.code in (
        -stop,
        128 + stop,
    ):  # the shell itself was stopped: its child may be a moment behind
        deadline = time.monotonic() + LIMIT_S
        while process.others_left() and time.monotonic() < deadline:
            time.sleep(0.05)
        state = json.loads((folder / "run" / "status.json").read_text())["state"]
        ended = ended._replace(code={"finished": 0, "preempted": 75}.get(state, 2))
    if (folder / "read").exists():
        ended = ended._replace(output=ended.output + (folder / "read").read_text())
    return _stopped(ended, folder)


def _path() -> dict[str, str]:
    return {
        name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR") if name in os.environ
    }


STOPS = {
    "SIGTERM": partial(_signalled, (_TERM,)),
    "SIGINT": partial(_signalled, (_INT,)),
    "SIGINT twice": partial(_signalled, (_INT, _INT)),
    "SIGINT, SIGTERM, SIGINT": partial(_signalled, (_INT, _TERM, _INT)),
    "SIGINT while importing": partial(_at_the_start, _INT),
    "SIGTERM while importing": partial(_at_the_start, _TERM),
    "| tee, and Ctrl-C": partial(_piped, "tee", False, _INT),
    "2>&1 | tee, and Ctrl-C": partial(_piped, "tee", True, _INT),
    "| head -1": partial(_piped, "head -1", False, None),
    "2>&1 | head -1": partial(_piped, "head -1", True, None),
    "| head -1, and SIGTERM": partial(_piped, "head -1", False, _TERM),
}
