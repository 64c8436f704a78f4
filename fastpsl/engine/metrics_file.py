"""The file metrics.jsonl of a run: the measurements of each step."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from fastpsl.files.paths import read_lines


class MetricsFile:
    """A file with a line per step. Opening it cuts off damaged lines and those after a resumed checkpoint."""

    def __init__(self, path: Path, resumed_run_step: int):
        self.path = path
        path.touch()
        kept_bytes = 0
        for line in read_lines(path):
            if line.row["run_step"] > resumed_run_step:
                break
            kept_bytes = line.end
        else:
            with open(path, "rb") as file:
                file.seek(kept_bytes)
                is_damaged = b"\n" in file.read()  # `read_lines` has warned
            if is_damaged:
                shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
        os.truncate(path, kept_bytes)

    def append(self, lines: list[dict[str, Any]]) -> None:
        with open(self.path, "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        with open(self.path, "a") as file:
            os.fsync(file.fileno())

    def losses(self, stage: str) -> list[float]:
        """Return the losses of a stage's steps that had valid samples."""
        rows = (line.row for line in read_lines(self.path))
        return [row["loss"] for row in rows if row["stage"] == stage and row.get("loss") is not None]
