"""A wall clock that jumps during training (by libfaketime), which must not change the run's results."""

import os
from pathlib import Path

from tests.faults.forks import fresh
from tests.faults.small_runs import JIGSAW, left_behind, verdict
from tests.faults.trials import LIMIT_S, NOT_HERE, Outcome, Trial, num_steps, recipe

_LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
_TRAINED = ("--max-steps-per-stage", 8, "--checkpoint-minutes", 1, "--tensorboard")


def _jumps(folder: Path, *shifts: str) -> Outcome:
    """Set the wall clock to each shift in turn, every few steps; the steady clock of waits stays real."""
    library = next(filter(os.path.exists, _LIBRARIES), None)
    if library is None:
        return NOT_HERE, "needs libfaketime: apt install faketime"
    clock = folder / "clock"
    _set(clock, shifts[0])
    environment = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
    }
    process = fresh(JIGSAW.command(folder / "run", *_TRAINED), folder / "log", environment)
    for number, shift in enumerate(shifts[1:], 1):
        process.wait_until(lambda: num_steps(folder / "run") >= 4 * number, LIMIT_S)  # noqa: B023
        _set(clock, shift)
    outcome = verdict(process.wait(LIMIT_S), JIGSAW.recipe)
    if outcome[0] != "goes on":
        return outcome
    steady = recipe(folder, *_TRAINED, out=folder / "steady")
    if steady[0] == "goes on" and left_behind(folder / "run") != left_behind(folder / "steady"):
        return "differs", "from the run with a steady clock"
    return steady


def _set(clock: Path, shift: str) -> None:
    """Write the shift at once, because the library reads the file at any time."""
    temporary = clock.with_name("clock of next")
    temporary.write_text(shift)
    temporary.replace(clock)


def clock_jumps_back(folder: Path) -> Outcome:
    return _jumps(folder, "+0", "-2d", "-10y")


def clock_jumps_ahead(folder: Path) -> Outcome:
    return _jumps(folder, "+0", "+2d", "+10y")


def clock_of_1970(folder: Path) -> Outcome:
    return _jumps(folder, "@1970-01-01 00:00:10")


TRIALS: tuple[Trial, ...] = (clock_jumps_back, clock_jumps_ahead, clock_of_1970)
