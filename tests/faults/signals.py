"""SIGTERM and SIGINT at any moment, closing pipes, and Ctrl-C to `recipe | tee`: a run reports its end.

The same command must then go on. Case `seed` is the kind of stop with that number, modulo their count, at a
moment drawn from the seed.
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

from tests.faults.forks import ENVIRONMENT, ROOT, ProcessEnd, RunningProcess, fresh, start
from tests.faults.report import Finding
from tests.faults.small_runs import JIGSAW, checkpoints, left_behind, verdict
from tests.faults.trials import LIMIT_S, Outcome, litter, num_steps

_STEPS = ("--plan", "end_to_end", "--epochs", 1, "--max-steps-per-stage", 30, "--checkpoint-steps", 0)
_INT, _TERM = signal.SIGINT, signal.SIGTERM


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    undisturbed = folder / "undisturbed"
    process = start(JIGSAW.command(undisturbed, *_STEPS), folder / "undisturbed.log")
    if (code := process.wait(LIMIT_S).code) != 0:
        yield Finding("signals", "undisturbed", "unclear", f"exit {code}")
        return
    names = list(STOPS)
    for number in range(seed, seed + count):
        name = names[number % len(names)]
        case_folder = folder / str(number)
        case_folder.mkdir()
        outcome = STOPS[name](case_folder, random.Random(number))
        if outcome[0] == "goes on":
            outcome = _goes_on(case_folder, undisturbed, outcome[1])
        yield Finding("signals", name, *outcome, number)


def _goes_on(case_folder: Path, undisturbed: Path, detail: str) -> Outcome:
    """Run the same command again, and check that the result is that of the undisturbed run."""
    if files := litter(case_folder):
        return "differs", f"left behind: {files}"
    outcome = verdict(
        start(JIGSAW.command(case_folder / "run", *_STEPS), case_folder / "again.log").wait(LIMIT_S),
        JIGSAW.recipe,
    )
    if outcome[0] == "goes on" and left_behind(case_folder / "run") != left_behind(undisturbed):
        return "differs", f"from the undisturbed run; {detail}"
    return outcome[0], outcome[1] or detail


def _send_signals(numbers: tuple[signal.Signals, ...], folder: Path, chance: random.Random) -> Outcome:
    """Send signals 0 to 50 ms apart, anywhere in training."""
    process = start(JIGSAW.command(folder / "run", *_STEPS), folder / "log")
    step = chance.randrange(1, 20)
    process.wait_until(lambda: num_steps(folder / "run") >= step, LIMIT_S)
    for number in numbers:
        process.send(number)
        time.sleep(chance.uniform(0, 0.05))
    return _judge_end(process.wait(LIMIT_S), folder)


def _signal_at_the_start(number: signal.Signals, folder: Path, chance: random.Random) -> Outcome:
    """Send a signal while a new interpreter still imports, where SIGTERM has its default action."""
    process = fresh(JIGSAW.command(folder / "run", *_STEPS), folder / "log")
    time.sleep(chance.uniform(0.1, 4.0))
    process.send(number)
    end = process.wait(LIMIT_S)
    if end.code == -number and not (folder / "run" / "status.json").exists():
        return "goes on", f"ended by {number.name} before it had begun"
    return _judge_end(end, folder)


def _judge_end(end: ProcessEnd, folder: Path) -> Outcome:
    """Check the end of a stopped run.

    It must be exit 75 and `preempted`, with a checkpoint of its last step, or 0 and `finished` if the signal
    was late.
    """
    outcome, detail = verdict(end, JIGSAW.recipe, codes=(0, 75))
    status_file = folder / "run" / "status.json"
    if outcome != "goes on" or (end.code == 75 and not status_file.exists()):
        return outcome, detail
    status = json.loads(status_file.read_text())
    state = {0: "finished", 75: "preempted"}[end.code or 0]
    if status["state"] != state and not (
        state == "preempted" and not checkpoints(folder / "run") and status["state"] == "failed"
    ):
        return "differs", f"exit {end.code}, {status}"
    if num_steps(folder / "run") and not checkpoints(folder / "run"):
        return "differs", f"no checkpoint after {num_steps(folder / 'run')} steps"
    return outcome, f"{state} at step {status['step']}"


def _run_in_pipe(
    reader: str, both: bool, stop: signal.Signals | None, folder: Path, chance: random.Random
) -> Outcome:
    """Run `recipe | reader` in a shell, and send the signal `stop` to all of them, as Ctrl-C does."""
    words = shlex.join([sys.executable, *map(str, JIGSAW.command(folder / "run", *_STEPS))])
    redirection = "2>&1" if both else "2>" + shlex.quote(str(folder / "errors"))
    output = shlex.quote(str(folder / "read"))
    line = f"{words} {redirection} | {reader} > {output}; exit ${{PIPESTATUS[0]}}"
    shell = subprocess.Popen(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**ENVIRONMENT, **_path()},
        start_new_session=True,
    )
    process = RunningProcess(shell, folder / "errors")
    if stop:
        step = chance.randrange(1, 20)
        process.wait_until(lambda: num_steps(folder / "run") >= step, LIMIT_S)
        process.send(stop)
    end = process.wait(LIMIT_S)
    # The shell itself was stopped, and its child may end a moment later.
    if stop and end.code in (-stop, 128 + stop):
        deadline = time.monotonic() + LIMIT_S
        while process.others_left() and time.monotonic() < deadline:
            time.sleep(0.05)
        state = json.loads((folder / "run" / "status.json").read_text())["state"]
        end = end._replace(code={"finished": 0, "preempted": 75}.get(state, 2))
    if (folder / "read").exists():
        end = end._replace(output=end.output + (folder / "read").read_text())
    return _judge_end(end, folder)


def _path() -> dict[str, str]:
    return {
        name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR") if name in os.environ
    }


STOPS = {
    "SIGTERM": partial(_send_signals, (_TERM,)),
    "SIGINT": partial(_send_signals, (_INT,)),
    "SIGINT twice": partial(_send_signals, (_INT, _INT)),
    "SIGINT, SIGTERM, SIGINT": partial(_send_signals, (_INT, _TERM, _INT)),
    "SIGINT while importing": partial(_signal_at_the_start, _INT),
    "SIGTERM while importing": partial(_signal_at_the_start, _TERM),
    "| tee, and Ctrl-C": partial(_run_in_pipe, "tee", False, _INT),
    "2>&1 | tee, and Ctrl-C": partial(_run_in_pipe, "tee", True, _INT),
    "| head -1": partial(_run_in_pipe, "head -1", False, None),
    "2>&1 | head -1": partial(_run_in_pipe, "head -1", True, None),
    "| head -1, and SIGTERM": partial(_run_in_pipe, "head -1", False, _TERM),
}
