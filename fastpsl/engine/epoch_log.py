"""The file epochs.jsonl of a run: a task's figures, one line per epoch, also if the run was resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastpsl.engine.metrics_file import MetricsFile
from fastpsl.files.atomic import write_atomically
from fastpsl.files.paths import read_lines


class EpochLog:
    """A log of epochs. Opening it removes the lines after the step from which a run resumes."""

    def __init__(self, path: Path, resumed_run_step: int):
        self.path = path
        if path.exists():
            MetricsFile(path, resumed_run_step)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line. It replaces lines of the same or a later "run_step" and "epoch"."""
        place = (line["run_step"], line["epoch"])
        lines = [each.row for each in read_lines(self.path) if "epoch" in each.row]
        # A killed run may have logged epochs after its last checkpoint, which the resumed run logs again.
        lines = [each for each in lines if (each["run_step"], each["epoch"]) < place]
        text = "".join(json.dumps(each) + "\n" for each in (*lines, line))
        write_atomically(self.path, text.encode())
