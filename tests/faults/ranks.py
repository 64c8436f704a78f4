"""Two ranks, one of which is killed, stopped, or out of memory: the other ends in one line with the remedy, and the run goes on.

The ranks are started as torchrun starts them, without torchrun: it would end the other by a signal of its own. Case `seed` is the fault
of that number, round and round, at a step drawn from the seed.
"""

import functools
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fastpsl.engine.train_step import TrainStep
from tests.faults.forks import Started
from tests.faults.report import Finding
from tests.faults.small_runs import RANKS, left_behind, start_ranks, verdict
from tests.faults.trials import Outcome, litter, num_steps

TIMEOUT_S = 6  # of --timeout-s, beside busy neighbours; ranks wait ten times as long for one another
_STEPS = (
    "--plan",
    "end_to_end",
    "--stage-epochs",
    1,
    "--max-steps-per-stage",
    25,
    "--checkpoint-steps",
    4,
)
_WORDS = ("has gone or hangs", "same command")
_CODES = (1, 2)  # 1: it lost the other; 2: its own limits
_LIMIT_S = 10 * TIMEOUT_S + 90


class Fault(NamedTuple):
    """What happens to which rank: by `strike` from outside at a step of chance, or by `prepare` from within."""

    name: str
    rank: int
    strike: Callable[[Started], None] | None = None
    prepare: Callable[[], object] | None = None


def _kill(rank: Started) -> None:
    rank.send(signal.SIGKILL)


def _stop(rank: Started) -> None:
    rank.send(signal.SIGSTOP)


def _take_memory_away(rank: Started) -> None:
    """No byte more than it has: its next large allocation fails."""
    resource.prlimit(rank.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))


def _out_of_memory() -> None:
    """Step 7 of this rank runs out of memory, as Python and numpy say it."""
    step, count = TrainStep.step, iter(range(1, 1 << 30))

    @functools.wraps(step)
    def failing(*arguments: object, **more: object) -> object:
        if next(count) == 7:
            raise MemoryError("Unable to allocate 3.00 GiB for an array")
        return step(*arguments, **more)  # type: ignore[arg-type]

    TrainStep.step = failing  # type: ignore[method-assign, assignment]


FAULTS = tuple(
    Fault(f"rank {rank} {name}", rank, strike, prepare)
    for name, strike, prepare in (
        ("killed", _kill, None),
        ("stopped", _stop, None),
        ("without memory", _take_memory_away, None),
        ("raises MemoryError", None, _out_of_memory),
    )
    for rank in (1, 0)
)


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    undisturbed = folder / "undisturbed"  # it compiles what the others find compiled, and takes its time
    for rank in start_ranks(RANKS.command(undisturbed, *_STEPS), folder / "undisturbed.log", 2):
        outcome = verdict(rank.wait(_LIMIT_S), RANKS.recipe)
        if outcome[0] != "goes on":
            yield Finding("ranks", "undisturbed", *outcome)
            return
    for number in range(seed, seed + count):
        fault = FAULTS[number % len(FAULTS)]
        place = folder / str(number)
        place.mkdir()
        yield Finding("ranks", fault.name, *_struck(fault, place, random.Random(number), undisturbed), number)


def _struck(fault: Fault, place: Path, chance: random.Random, undisturbed: Path) -> Outcome:
    command, out = RANKS.command(place / "run", *_STEPS, "--timeout-s", TIMEOUT_S), place / "run"
    prepare = {fault.rank: fault.prepare} if fault.prepare else {}
    ranks = start_ranks(command, place / "log", 2, prepare=prepare)
    if fault.strike:
        step = chance.randrange(1, 20)
        ranks[0].wait_until(lambda: num_steps(out) >= step, _LIMIT_S)
        fault.strike(ranks[fault.rank])
    other = ranks[1 - fault.rank].wait(_LIMIT_S)
    from_outside = fault.strike in (_kill, _stop)
    if from_outside:
        ranks[fault.rank].send(
            signal.SIGKILL
        )  # torchrun would, now that one has ended; a stopped one needs it
    itself = ranks[fault.rank].wait(_LIMIT_S)
    if any(rank.others_left() for rank in ranks):
        return "hang", "a process is left"
    speakers = [RANKS.recipe, f"rank 1: {RANKS.recipe}"]
    if from_outside:
        outcome = verdict(other, speakers[1 - fault.rank], _WORDS, refusals=_CODES)
    else:  # it says why itself, and the other one keeps quiet
        outcome = verdict(itself, speakers[fault.rank], ("memory", "same command"))
        quiet = verdict(
            other, speakers[1 - fault.rank], codes=(0, *_CODES)
        )  # 0: the memory it had was enough
        outcome = outcome if quiet[0] == "goes on" else quiet
    if outcome[0] != "refused":
        return outcome
    # What rank 0 was writing when it was killed lies there until the next start.
    if (left := litter(place)) and not (from_outside and fault.rank == 0):
        return "differs", f"left behind: {left}"
    again = [
        verdict(rank.wait(_LIMIT_S), RANKS.recipe) for rank in start_ranks(command, place / "again.log", 2)
    ]
    for each in again:
        if each[0] != "goes on":
            return each
    if left_behind(out) != left_behind(undisturbed):
        return "differs", "from the undisturbed run"
    return outcome
