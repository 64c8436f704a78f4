"""Two ranks, one of which is killed, stopped or out of memory: the other must end in one line.

The same command must then go on. The ranks start as under torchrun, but without it, because it would end the
other rank by a signal of its own. Case `seed` is the fault with that number, modulo their count, at a step
drawn from the seed.
"""

import functools
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fastpsl.engine.train_step import TrainStep
from tests.faults.forks import RunningProcess
from tests.faults.report import Finding
from tests.faults.small_runs import RANKS, left_behind, start_ranks, verdict
from tests.faults.trials import Outcome, litter, num_steps

TIMEOUT_S = 6  # for --timeout-s, on busy cores; ranks wait ten times as long for one another
_STEPS = (
    "--plan",
    "end_to_end",
    "--epochs",
    1,
    "--max-steps-per-stage",
    25,
    "--checkpoint-steps",
    4,
)
_WORDS = ("has gone or hangs", "same command")
_CODES = (1, 2)  # 1: the other rank is lost; 2: its own limits
_LIMIT_S = 10 * TIMEOUT_S + 90


class Fault(NamedTuple):
    """A fault of one rank: `strike` acts from outside at a random step, `prepare` from within."""

    name: str
    rank: int
    strike: Callable[[RunningProcess], None] | None = None
    prepare: Callable[[], object] | None = None


def _kill(rank: RunningProcess) -> None:
    rank.send(signal.SIGKILL)


def _stop(rank: RunningProcess) -> None:
    rank.send(signal.SIGSTOP)


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
    undisturbed = folder / "undisturbed"  # it compiles the code for the others, which takes time
    for rank in start_ranks(RANKS.command(undisturbed, *_STEPS), folder / "undisturbed.log", 2):
        outcome = verdict(rank.wait(_LIMIT_S), RANKS.recipe)
        if outcome[0] != "goes on":
            yield Finding("ranks", "undisturbed", *outcome)
            return
    for number in range(seed, seed + count):
        fault = FAULTS[number % len(FAULTS)]
        case_folder = folder / str(number)
        case_folder.mkdir()
        yield Finding(
            "ranks",
            fault.name,
            *_strike_and_resume(fault, case_folder, random.Random(number), undisturbed),
            number,
        )


def _strike_and_resume(fault: Fault, case_folder: Path, chance: random.Random, undisturbed: Path) -> Outcome:
    command, out = RANKS.command(case_folder / "run", *_STEPS, "--timeout-s", TIMEOUT_S), case_folder / "run"
    prepare = {fault.rank: fault.prepare} if fault.prepare else {}
    ranks = start_ranks(command, case_folder / "log", 2, prepare=prepare)
    if fault.strike:
        step = chance.randrange(1, 20)
        ranks[0].wait_until(lambda: num_steps(out) >= step, _LIMIT_S)
        fault.strike(ranks[fault.rank])
    other = ranks[1 - fault.rank].wait(_LIMIT_S)
    from_outside = fault.strike in (_kill, _stop)
    if from_outside:
        # torchrun would do the same now that one rank has ended; a stopped rank needs it.
        ranks[fault.rank].send(signal.SIGKILL)
    struck = ranks[fault.rank].wait(_LIMIT_S)
    if any(rank.others_left() for rank in ranks):
        return "hang", "a process is left"
    speakers = [RANKS.recipe, f"rank 1: {RANKS.recipe}"]
    if from_outside:
        outcome = verdict(other, speakers[1 - fault.rank], _WORDS, refusals=_CODES)
    else:  # the rank reports the fault itself, and the other one is silent
        outcome = verdict(struck, speakers[fault.rank], ("memory", "same command"))
        # Exit code 0: the memory that the rank had was enough.
        other_outcome = verdict(other, speakers[1 - fault.rank], codes=(0, *_CODES))
        outcome = outcome if other_outcome[0] == "goes on" else other_outcome
    if outcome[0] != "refused":
        return outcome
    # A partial file of rank 0 remains until the next start if rank 0 is killed.
    if (files := litter(case_folder)) and not (from_outside and fault.rank == 0):
        return "differs", f"left behind: {files}"
    again = [
        verdict(rank.wait(_LIMIT_S), RANKS.recipe)
        for rank in start_ranks(command, case_folder / "again.log", 2)
    ]
    for each in again:
        if each[0] != "goes on":
            return each
    if left_behind(out) != left_behind(undisturbed):
        return "differs", "from the undisturbed run"
    return outcome
