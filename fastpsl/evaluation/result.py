"""result.json: what an evaluation found, and all that is needed to do it again; `fastpsl table` reads it."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastpsl.engine.environment import own_commit, package_versions
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.files.atomic import write_atomically

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

    protocol: its name, such as "linear/vissl". numbers: percent, such as top1_B4. settings: every option and constant of the
    protocol, as plain values. checkpoint: path, sha256, kind, backbone, run_step, and the science of the run that trained it (None
    for others' weights). data: train and val digests, num_train, num_val. cut: whether `--max-steps-per-stage` cut this
    evaluation, or the training of its checkpoint, short; such numbers say nothing.
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
    """Which data was learned from and scored on: the "data" of result.json."""
    return {
        "train": train.digest(),
        "val": val.digest() if val is not None else None,
        "num_train": train.num_samples,
        "num_val": val.num_samples if val is not None else None,
    }


def read_result(path: Path) -> dict[str, Any]:
    """The record of a result.json. ValueError where it is none."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a result ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of format {FORMAT}: it was written by another version")
    return record


def result_line(path: Path) -> str:
    """What a script says at its end of the result that it wrote."""
    cut = read_result(path)["cut"]
    return f"result {path}" + (
        ", of a training or an evaluation that was cut short: it says nothing" if cut else ""
    )
