"""Runs that are killed, or lose one of two ranks: the same command must go on.

Its result must then be that of an undisturbed run, bit for bit.
"""

import functools
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastpsl.engine.train_step import TrainStep
from tests.faults import runs
from tests.faults.report import Finding, Outcome
from tests.faults.runs import (
    JIGSAW,
    ONE_STAGE,
    RANKS,
    RunningProcess,
    checkpoints,
    num_steps,
    verdict,
)

MAX_KILLS_OF_ONE_RUN = 8
_NEAR_S = 0.3  # the longest delay of a "near" kill after a checkpoint or its temporary file appeared
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
