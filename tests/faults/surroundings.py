"""Odd surroundings: disks, limits, homes, outputs, names, neighbours, clocks, and changing data.

Each trial must end well, or in one line with the remedy, within its time limit. Case `seed` is the trial with
that number, modulo their count.
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
    """Yield the findings of the trials `seed` to `seed + count - 1`."""
    disk.may_mount()
    for number in range(seed, seed + count):
        trial = TRIALS[number % len(TRIALS)]
        case_folder = folder / str(number)
        case_folder.mkdir(parents=True)
        try:
            outcome, detail = trial(case_folder)
        except (OSError, AssertionError, ValueError) as error:  # so that the other trials go on
            outcome, detail = "unclear", f"the trial itself: {type(error).__name__}: {error}"
        yield Finding("surroundings", trial.__name__.replace("_", " "), outcome, detail, number)
