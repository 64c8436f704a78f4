"""Values for --preset small and --config. This module does not import torch, which is slow."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastpsl.engine.options import RunOptions

MIN_STEPS = 2000  # of a stage; with fewer, features hardly change
MAX_BATCH_SHARE = 0.1  # of the images


def small_values(paper: Mapping[str, Any], at_most: Mapping[str, float], num_images: int) -> dict[str, Any]:
    """Return the values of --preset small that differ from the paper's.

    The batch becomes a power of two of at most a tenth of the images, and the learning rate shrinks in
    proportion. The stages become so long that each has 2,000 steps. Other sizes become powers of two.

    Args:
        paper: The paper's values.
        at_most: Sizes, by option, that are limited to a share of the images.
        num_images: The number of training images.
    """
    values = dict[str, Any]()
    for name, share in {"batch_size": MAX_BATCH_SHARE, **at_most}.items():
        limit = int(share * num_images)
        if paper[name] > limit:
            values[name] = 1 << max(1, limit.bit_length() - 1)
    batch_size = values.get("batch_size", paper["batch_size"])
    if batch_size != paper["batch_size"]:
        values["lr"] = paper["lr"] * batch_size / paper["batch_size"]
    epochs = -(-MIN_STEPS // max(1, num_images // batch_size))
    longer = tuple(max(given, epochs) for given in paper["epochs"])
    if longer != tuple(paper["epochs"]):
        values["epochs"] = longer
    return values


def values_of_config(path: Path, recipe: str, options: type[RunOptions]) -> dict[str, Any]:
    """Return the values of a run's config.json, but for --out, --resume and --config.

    Args:
        path: The config.json, or the folder of the run.
        recipe: The recipe's name.
        options: The class of its options.

    Raises:
        ValueError: The file cannot be read, is of another recipe, or has values that the recipe lacks.
    """
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file; give a run's folder, or its config.json")
    try:
        config = json.loads(path.read_text())
        given, made_by = dict(config["options"]), config["science"]["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--config {path}: it is no config.json of a run ({error})") from None
    if made_by != recipe:
        raise ValueError(f"--config {path}: it is of a run of {made_by}, and this is {recipe}")
    known = {field.name: field for field in fields(options)}
    values = given
    if unknown := values.keys() - known.keys():
        raise ValueError(f"--config {path}: {recipe} has no option {', '.join(sorted(unknown))}")
    for name in ("out", "resume", "config"):
        values.pop(name, None)
    return {name: _typed(value, str(known[name].type)) for name, value in values.items()}


def _typed(value: Any, kind: str) -> Any:
    """Return a value of JSON as the field has it."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if isinstance(value, str) and "Path" in kind else value
