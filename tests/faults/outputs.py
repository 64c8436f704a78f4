"""Standard output that is closed, full, or a pipe without a reader, in interpreters of their own."""

import os
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.faults.changed_data import beton
from tests.faults.forks import RunningProcess, fresh
from tests.faults.small_runs import JIGSAW, checkpoints, verdict
from tests.faults.trials import LIMIT_S, SHORT, Outcome, Trial


def _training(kind: str, folder: Path) -> Outcome:
    """Train; the run must finish all the same, and its status must report it."""
    process = _start(JIGSAW.command(folder / "run", *SHORT), folder, kind)
    outcome = verdict(process.wait(LIMIT_S), JIGSAW.recipe, codes=(0, 120))
    status = (folder / "run" / "status.json").read_text()
    if '"finished"' not in status or not checkpoints(folder / "run"):
        return "differs", f"{status}; {outcome[1]}"
    return outcome


def _printing(kind: str, folder: Path) -> Outcome:
    """Run a command that only prints: it must end in one line, or silently where nobody reads."""
    process = _start(("fastpsl", "data", "info", beton(folder / "x.beton")), folder, kind)
    return verdict(
        process.wait(LIMIT_S),
        "fastpsl",
        words=("stdout cannot be written",),
        codes=(0, 1, 141) if kind == "no reader" else (0,),
    )


def _start(command: Sequence[object], folder: Path, kind: str) -> RunningProcess:
    log = folder / "log"
    match kind:
        case "closed":
            return fresh(command, log, preexec_fn=partial(os.close, 1))
        case "all closed":
            return fresh(command, log, preexec_fn=partial(os.closerange, 0, 3))
        case "full":
            with open("/dev/full", "wb") as full:
                return fresh(command, log, stdout=full)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        if kind == "no reader at all":
            return fresh(command, log, stdout=writing, stderr=subprocess.STDOUT)
        return fresh(command, log, stdout=writing)
    finally:
        os.close(writing)


def _trial(name: str, kind: str) -> Trial:
    trial = partial({"train": _training, "tell": _printing}[name], kind)
    trial.__name__ = f"{name}, output {kind}"  # type: ignore[attr-defined]
    return trial


_KINDS = {
    "train": ("closed", "all closed", "full", "no reader", "no reader at all"),
    "tell": ("closed", "full", "no reader"),
}
TRIALS: tuple[Trial, ...] = tuple(_trial(name, kind) for name, kinds in _KINDS.items() for kind in kinds)
