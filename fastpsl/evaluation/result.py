"""Read and write result.json: the numbers of an evaluation and what is needed to repeat it."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastpsl.engine.environment import own_commit, package_versions
from fastpsl.files.atomic import write_atomically
from fastpsl.pipelines.data.dataset import Dataset

FORMAT = 1
NAME = "result.json"


def write_result(
    folder: Path,
    *,
    recipe: str,
    protocol: str,
    numbers: Mapping[str, float],
    settings: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    data: Mapping[str, Any],
    seconds: float,
    cut: bool,
) -> Path:
    """Write folder/result.json and return its path.

    Args:
        folder: An existing folder.
        recipe: Name of the recipe or command.
        protocol: Name of the protocol, such as "linear/vissl".
        numbers: Results in percent, such as top1_B4.
        settings: Every option and constant of the protocol, as plain values.
        checkpoint: `Pretrained.record`; its science is None for weights from elsewhere.
        data: The result of `data_record`.
        seconds: Duration.
        cut: Whether `--max-steps-per-stage` cut this evaluation or the training of its checkpoint short; such
            numbers mean nothing.
    """
    record = {
        "format": FORMAT,
        "protocol": protocol,
        "recipe": recipe,
        "numbers": {name: round(value, 4) for name, value in numbers.items()},
        "settings": dict(settings),
        "checkpoint": dict(checkpoint),
        "data": dict(data),
        "cut": cut,
        "seconds": round(seconds, 1),
        "commit": own_commit(),
        "packages": package_versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    path = folder / NAME
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def data_record(train: Dataset, val: Dataset | None) -> dict[str, Any]:
    """Return the "data" of result.json: digests and sizes of the training and validation data."""
    return {
        "train": train.digest(),
        "val": val.digest() if val is not None else None,
        "num_train": train.num_samples,
        "num_val": val.num_samples if val is not None else None,
    }


def read_result(path: Path) -> dict[str, Any]:
    """Return the record of a result.json.

    Raises:
        ValueError: The file cannot be read, or is no result of this format.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a result ({error}); evaluate again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no result of format {FORMAT}: it was written by another version; evaluate again"
        )
    return record


def result_line(path: Path) -> str:
    """Return the line that names a result, with a warning if it was cut short."""
    cut = read_result(path)["cut"]
    return f"result {path}" + (
        ", which is not comparable: the training or the evaluation was cut short" if cut else ""
    )
