"""`fastpsl.runs` and `fastpsl.compare`: the runs of a folder, and runs beside each other."""

import os
from collections.abc import Sequence
from pathlib import Path

from fastpsl.console.offered import named_arguments
from fastpsl.scripts.call import user_errors
from fastpsl.tables.comparison import Comparison
from fastpsl.tables.comparison import compare as compare_places
from fastpsl.tables.runs import Run, find_runs

Place = str | os.PathLike[str]


@named_arguments()
@user_errors()
def runs(folder: Place = "runs") -> list[Run]:
    """Find the runs below a folder, as `fastpsl runs` lists them.

    Args:
        folder: The folder that runs are written to; they count at any depth.

    Returns:
        The runs, the one that changed last first. Each stands for its folder wherever a path is expected.

    Raises:
        ValueError: There is no such folder, or no run in it.
    """
    return find_runs(Path(folder))


@named_arguments()
@user_errors()
def compare(runs: Place | Sequence[Place]) -> Comparison:
    """Put runs beside each other, as `fastpsl compare` does; `fastpsl.plot.compare` draws them.

    Args:
        runs: Folders of runs, globs of them, folders that hold several, or what `fastpsl.runs` returns.

    Returns:
        What each run reached and took, and how their options differ.

    Raises:
        ValueError: A place does not exist, or none holds a run.
    """
    return compare_places([runs] if isinstance(runs, str | os.PathLike) else runs)
