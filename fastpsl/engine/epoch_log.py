"""epochs.jsonl of a run: figures that tasks give of epochs, a line an epoch, each once whatever was resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastpsl.engine.metrics_file import MetricsFile
from fastpsl.pipelines.files.atomic import write_atomically
from fastpsl.pipelines.files.json_lines import read_lines


class EpochLog:
    """The file, cut off behind the step from which a run goes on."""

    def __init__(self, path: Path, resumed_run_step: int):
        self.path = path
        if path.exists():
            MetricsFile(path, resumed_run_step)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line; lines of the same "run_step" and "epoch", or of later ones, are replaced."""
        place = (line["run_step"], line["epoch"])
        lines = [each.row for each in read_lines(self.path) if "epoch" in each.row]
        # What a run that was killed had logged already is logged again.
        lines = [each for each in lines if (each["run_step"], each["epoch"]) < place]
        text = "".join(json.dumps(each) + "\n" for each in (*lines, line))
        write_atomically(self.path, text.encode())
