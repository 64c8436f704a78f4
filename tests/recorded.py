"""Records of runs and weights as values: read, changed at a place, and written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.views import Input

Place = tuple[Any, ...]  # keys of dicts and numbers of lists, from outside


def strings(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the places of all strings in a JSON value, and of None, where a string may stand."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from strings(item, (*place, key))
    if isinstance(value, str) or value is None:
        yield place


def planted(value: Any, place: Place, planting: Any) -> Any:
    """Return a copy of a JSON value with another value at a place."""
    if not place:
        return planting
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[place[0]] = planted(value[place[0]], place[1:], planting)
    return changed


def read(path: Path) -> Any:
    """Return a record: JSON, lines of it, or a checkpoint's entries without tensors."""
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        return {name: state[name] for name in ("science", "machine", "position", "input")}
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
    return json.loads(path.read_text()) if lines is None else lines


def write(path: Path, value: Any) -> None:
    """Write a record as `read` returned it."""
    if path.suffix == ".pt":
        torch.save({**torch.load(path, weights_only=True), **value}, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in value))
    else:
        path.write_text(json.dumps(value))


def save_checkpoint(folder: Path, weights: Any, seen: Input, planned: int, **science: Any) -> None:
    """Write the last checkpoint of a run that made seven of its planned steps."""
    summary = {"num_steps": 7, "num_steps_planned": planned}
    state = {"science": science, "num_stages": 1, "position": {"run_step": 7, "summaries": [summary]}}
    CheckpointManager(folder).save(7, {**state, "input": seen.as_dict(), "backbone": weights})
