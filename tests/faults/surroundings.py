"""Odd surroundings: disks, limits, homes, outputs, names, neighbours, clocks, and data that change under a run.

Each trial ends well, or in one line with the remedy, within its time limit. Case `seed` is the trial of that number, round and round.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.faults import changed_data, clocks, disk, homes, limits, neighbours, odd_paths, outputs
from tests.faults.report import Finding

TRIALS = tuple(
    trial
    for module in (disk, limits, changed_data, homes, outputs, odd_paths, neighbours, clocks)
    for trial in module.TRIALS
)


def run(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """The trials `seed` to `seed + count - 1`."""
    disk.may_mount()
    for number in range(seed, seed + count):
        trial = TRIALS[number % len(TRIALS)]
        place = folder / str(number)
        place.mkdir(parents=True)
        try:
            outcome, detail = trial(place)
        except (OSError, AssertionError, ValueError) as error:  # the others are tried all the same
            outcome, detail = "unclear", f"the trial itself: {type(error).__name__}: {error}"
        yield Finding("surroundings", trial.__name__.replace("_", " "), outcome, detail, number)
