"""Runs that are killed, stopped by signals, or lose one of two ranks: the same command must go on.

Its result must then be that of an undisturbed run, bit for bit.
"""

import functools
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fastpsl.engine.train_step import TrainStep
from tests.faults import runs
from tests.faults.report import ROOT, Finding, Outcome
from tests.faults.runs import (
    JIGSAW,
    ONE_STAGE,
    RANKS,
    ProcessEnd,
    RunningProcess,
    checkpoints,
    num_steps,
    verdict,
)

MAX_KILLS_OF_ONE_RUN = 8
_NEAR_S = 0.3  # the longest delay of a "near" kill after a checkpoint or its temporary file appeared
_INT, _TERM = signal.SIGINT, signal.SIGTERM
_SIGNALLED = (*ONE_STAGE, "--max-steps-per-stage", 30, "--checkpoint-steps", 0)
TIMEOUT_S = 6  # for --timeout-s, on busy cores; ranks wait ten times as long for one another
_RANKS_LIMIT_S = 10 * TIMEOUT_S + 90
_ON_RANKS = (*ONE_STAGE, "--max-steps-per-stage", 25, "--checkpoint-steps", 4)
_CODES = (1, 2)  # of a rank: 1 where the other one is lost, 2 for its own limits


def kills(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield a finding for each of `count` SIGKILLs, half of them near a checkpoint, of all kinds of runs.

    Each run is resumed until its end.
    """
    chance, number = random.Random(seed), 0
    kinds = [JIGSAW, runs.MOCO, runs.UIC, runs.IIC, runs.sslpp(folder / runs.IIC.name / "labels.npz"), RANKS]
    seconds: dict[str, float] = {}  # of each undisturbed run
    while number < count and kinds:
        kind = kinds.pop(0)
        if kind.name not in seconds:
            started = time.monotonic()
            ends = [rank.wait() for rank in kind.start(folder / kind.name, folder / f"{kind.name}.log")]
            seconds[kind.name] = time.monotonic() - started
            if any(end.code != 0 for end in ends):
                yield Finding(kind.name, "unclear", f"the undisturbed run: {ends[0].output[-300:]}")
                continue
        kinds.append(kind)
        out, moments = folder / f"{kind.name}-{number}", list[str]()
        most = min(MAX_KILLS_OF_ONE_RUN, count - number)
        while True:
            ranks = kind.start(out, out.with_suffix(".log"))
            moment = _kill(ranks, out, chance, seconds[kind.name]) if len(moments) < most else ""
            ends = [rank.wait() for rank in ranks]
            if not moment or ends[0].code == 0:  # the run ended before the kill
                break
            moments.append(moment)
        outcome = runs.ended_as(out, folder / kind.name, verdict(ends[0], kind.recipe))
        # A kill spares data that were handed to the system, so a file with a checkpoint's name must be whole.
        for line in ends[0].output.splitlines():
            outcome = ("differs", line) if "passed over" in line else outcome
        for moment in moments:
            yield Finding(kind.name, outcome[0], "; ".join(filter(None, (moment, outcome[1]))))
        number += len(moments)


def _kill(ranks: Sequence[RunningProcess], out: Path, chance: random.Random, seconds: float) -> str:
    """Kill all ranks at a random moment, and return it in words; "" where the run ended before."""
    is_near = chance.random() < 0.5
    delay_s = chance.uniform(0, _NEAR_S) if chance.random() < 0.5 else chance.uniform(0, 0.02)
    random_s = chance.uniform(0, seconds)
    for _ in range(chance.choice((1, 1, 2, 3)) if is_near else 0):
        old = set(checkpoints(out))
        if not ranks[0].wait_until(lambda: set(checkpoints(out)) - old):  # noqa: B023
            return ""
    time.sleep(delay_s if is_near else random_s)
    newest = (checkpoints(out) or ["none"])[-1]
    if ranks[0].poll() is not None:
        return ""
    for rank in ranks:
        rank.send(signal.SIGKILL)
    near = f"{1000 * delay_s:.0f} ms after a checkpoint appeared"
    return f"{near if is_near else f'{random_s:.2f} s after the start'}, newest {newest}"


def signals(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield a finding for each stop by SIGTERM, SIGINT or a closed pipe: a run reports its end.

    Case `seed` is the kind of stop with that number, modulo their count, at a moment drawn from the seed.
    """
    undisturbed, names = folder / "undisturbed", list(STOPS)
    if (code := JIGSAW.start(undisturbed, folder / "whole.log", *_SIGNALLED)[0].wait().code) != 0:
        yield Finding("undisturbed", "unclear", f"exit {code}")
        return
    for number in range(seed, seed + count):
        name, here = names[number % len(names)], folder / str(number)
        here.mkdir()
        outcome = STOPS[name](here, random.Random(number))
        if outcome[0] == "goes on" and (files := runs.litter(here)):
            outcome = "differs", files
        if outcome[0] == "goes on":
            again = verdict(JIGSAW.start(here / "run", here / "again.log", *_SIGNALLED)[0].wait())
            outcome = runs.ended_as(here / "run", undisturbed, (again[0], again[1] or outcome[1]))
        yield Finding(name, *outcome, number)


def _send_signals(numbers: tuple[signal.Signals, ...], folder: Path, chance: random.Random) -> Outcome:
    """Send signals 0 to 50 ms apart, anywhere in training."""
    (process,) = JIGSAW.start(folder / "run", folder / "log", *_SIGNALLED)
    step = chance.randrange(1, 20)
    process.wait_until(lambda: num_steps(folder / "run") >= step)
    for number in numbers:
        process.send(number)
        time.sleep(chance.uniform(0, 0.05))
    return _judge_end(process.wait(), folder)


def _signal_at_the_start(number: signal.Signals, folder: Path, chance: random.Random) -> Outcome:
    """Send a signal while a new interpreter still imports, where SIGTERM has its default action."""
    process = runs.fresh(JIGSAW.command(folder / "run", *_SIGNALLED), folder / "log")
    time.sleep(chance.uniform(0.1, 4.0))
    process.send(number)
    end = process.wait()
    if end.code == -number and not (folder / "run" / "status.json").exists():
        return "goes on", f"ended by {number.name} before it had begun"
    return _judge_end(end, folder)


def _judge_end(end: ProcessEnd, folder: Path) -> Outcome:
    """Check the end of a stopped run.

    It must be exit 75 and `preempted`, with a checkpoint of its last step, or 0 and `finished` if the signal
    was late.
    """
    outcome, out = verdict(end, codes=(0, 75)), folder / "run"
    if outcome[0] != "goes on" or (end.code == 75 and not (out / "status.json").exists()):
        return outcome
    status = json.loads((out / "status.json").read_text())
    state = {0: "finished", 75: "preempted"}[end.code or 0]
    failed_early = state == "preempted" and not checkpoints(out) and status["state"] == "failed"
    if status["state"] != state and not failed_early:
        return "differs", f"exit {end.code}, {status}"
    if num_steps(out) and not checkpoints(out):
        return "differs", f"no checkpoint after {num_steps(out)} steps"
    return outcome[0], f"{state} at step {status['step']}"


def _run_in_pipe(
    reader: str, both: bool, stop: signal.Signals | None, folder: Path, chance: random.Random
) -> Outcome:
    """Run `recipe | reader` in a shell, and send the signal `stop` to all of them, as Ctrl-C does."""
    words = shlex.join([sys.executable, *map(str, JIGSAW.command(folder / "run", *_SIGNALLED))])
    redirection = "2>&1" if both else "2>" + shlex.quote(str(folder / "errors"))
    line = f"{words} {redirection} | {reader} > {shlex.quote(str(folder / 'read'))}; exit ${{PIPESTATUS[0]}}"
    kept = {name: os.environ.get(name) for name in ("PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR")}
    variables = runs.ENVIRONMENT | {name: value for name, value in kept.items() if value is not None}
    shell = subprocess.Popen(["bash", "-c", line], cwd=ROOT, env=variables, start_new_session=True)
    process = RunningProcess(shell, folder / "errors")
    if stop:
        step = chance.randrange(1, 20)
        process.wait_until(lambda: num_steps(folder / "run") >= step)
        process.send(stop)
    end = process.wait()
    # The shell itself was stopped, and its child may end a moment later.
    if stop and end.code in (-stop, 128 + stop):
        deadline = time.monotonic() + 300
        while process.others_left() and time.monotonic() < deadline:
            time.sleep(0.05)
        state = json.loads((folder / "run" / "status.json").read_text())["state"]
        end = end._replace(code={"finished": 0, "preempted": 75}.get(state, 2))
    if (folder / "read").exists():
        end = end._replace(output=end.output + (folder / "read").read_text())
    return _judge_end(end, folder)


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


class Fault(NamedTuple):
    """A fault of one rank: `strike` acts from outside at a random step, `prepare` from within.

    `is_lost` tells that the rank does not report its end itself.
    """

    name: str
    rank: int
    strike: Callable[[RunningProcess], None] | None = None
    prepare: Callable[[], object] | None = None
    is_lost: bool = False


def _take_memory_away(rank: RunningProcess) -> None:
    """Allow no further memory, so that the next large allocation fails."""
    resource.prlimit(rank.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))


def _out_of_memory() -> None:
    """Make step 7 of this rank run out of memory, as Python and numpy report it."""
    step, count = TrainStep.step, iter(range(1, 1 << 30))

    @functools.wraps(step)
    def failing(*arguments: object, **more: object) -> object:
        if next(count) == 7:
            raise MemoryError("Unable to allocate 3.00 GiB for an array")
        return step(*arguments, **more)  # type: ignore[arg-type]

    TrainStep.step = failing  # type: ignore[method-assign, assignment]


FAULTS = tuple(
    Fault(f"rank {rank} {name}", rank, *how)
    for name, *how in (
        ("killed", lambda rank: rank.send(signal.SIGKILL), None, True),
        ("stopped", lambda rank: rank.send(signal.SIGSTOP), None, True),
        ("without memory", _take_memory_away, None),
        ("raises MemoryError", None, _out_of_memory),
    )
    for rank in (1, 0)
)


def ranks(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield a finding for each fault of one of two ranks: the other one must end in one line.

    The ranks start as under torchrun, but without it, because it would end the other rank by a signal of its
    own. Case `seed` is the fault with that number, modulo their count, at a step drawn from the seed.
    """
    undisturbed = folder / "undisturbed"  # it compiles the code for the others, which takes time
    for rank in RANKS.start(undisturbed, folder / "undisturbed.log", *_ON_RANKS):
        if (outcome := verdict(rank.wait(_RANKS_LIMIT_S)))[0] != "goes on":
            yield Finding("undisturbed", *outcome)
            return
    for number in range(seed, seed + count):
        fault, here = FAULTS[number % len(FAULTS)], folder / str(number)
        here.mkdir()
        outcome = _strike_and_resume(fault, here, random.Random(number), undisturbed)
        yield Finding(fault.name, *outcome, number)


def _strike_and_resume(fault: Fault, folder: Path, chance: random.Random, undisturbed: Path) -> Outcome:
    out, options = folder / "run", (*_ON_RANKS, "--timeout-s", TIMEOUT_S)
    prepare = {fault.rank: fault.prepare} if fault.prepare else {}
    both = RANKS.start(out, folder / "log", *options, prepare=prepare)
    if fault.strike:
        step = chance.randrange(1, 20)
        both[0].wait_until(lambda: num_steps(out) >= step, _RANKS_LIMIT_S)
        fault.strike(both[fault.rank])
    other = both[1 - fault.rank].wait(_RANKS_LIMIT_S)
    if fault.is_lost:
        # torchrun would do the same now that one rank has ended; a stopped rank needs it.
        both[fault.rank].send(signal.SIGKILL)
    struck = both[fault.rank].wait(_RANKS_LIMIT_S)
    if any(rank.others_left() for rank in both):
        return "hang", "a process is left"
    speakers = [RANKS.recipe, f"rank 1: {RANKS.recipe}"]
    if fault.is_lost:
        words = ("has gone or hangs", "same command")
        outcome = verdict(other, speakers[1 - fault.rank], words, refusals=_CODES)
    else:  # the rank reports the fault itself, and the other one is silent
        outcome = verdict(struck, speakers[fault.rank], ("memory", "same command"))
        # Exit code 0: the memory that the rank had was enough.
        of_other = verdict(other, speakers[1 - fault.rank], codes=(0, *_CODES))
        outcome = outcome if of_other[0] == "goes on" else of_other
    if outcome[0] != "refused":
        return outcome
    # A partial file of rank 0 remains until the next start if rank 0 is killed.
    if (files := runs.litter(folder)) and not (fault.is_lost and fault.rank == 0):
        return "differs", files
    again = [verdict(rank.wait(120)) for rank in RANKS.start(out, folder / "again.log", *options)]
    failed = [each for each in again if each[0] != "goes on"]
    ended = failed[0] if failed else runs.ended_as(out, undisturbed, again[0])
    return outcome if ended[0] == "goes on" else ended
