"""The floor of an evaluation: the same network before any training, scored in the same way.

Its scores are kept in the cache, because they depend on no training.
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastpsl.engine.distributed import World, share, wait_for_all
from fastpsl.files.atomic import write_atomically
from fastpsl.files.caches import cache_folder
from fastpsl.files.digest import sha256_of_json
from fastpsl.files.json_records import NUMBERS, TEXT, Form, NoRecord
from fastpsl.files.system_errors import output_errors
from fastpsl.models.names import is_module
from fastpsl.models.weights import Pretrained, random_weights


class Floor(NamedTuple):
    """The score of an untrained network: the block that it is judged by, "" for all, and its numbers."""

    block: str
    numbers: dict[str, float]


class Work(NamedTuple):
    """The scoring of a network.

    Attributes:
        wanted: What the score depends on.
        names: The numbers that it has.
        score: Scores in a folder, which it makes; rank 0 alone gets the score.
    """

    wanted: Mapping[str, Any]
    names: Collection[str]
    score: Callable[[Path], Floor | None]


def score_floor(
    weights: Pretrained, seed: int, prepare: Callable[[Pretrained], Work], folder: Path, world: World
) -> tuple[Floor | None, str]:
    """Score a network of the same kind with random weights, or read its score in the cache.

    Every rank calls it. Where the weights are random themselves, there is no score, and no reason to tell.

    Args:
        weights: The weights beside which it stands.
        seed: That of the random weights.
        prepare: Returns the work on a network.
        folder: Where it works; it is then removed.
        world: The ranks that share the work.

    Returns:
        The score, on rank 0 at least, and why there is none, or "".
    """
    name = str(weights.record["backbone"])
    if weights.record["kind"] == "random":
        return None, ""
    if is_module(name):
        return None, "a module that a program made cannot be made anew with random weights"
    wanted, names, score = prepare(random_weights(name, seed, weights.input))
    path = cache_folder() / "untrained" / f"{sha256_of_json(wanted)[:32]}.json"
    kept: Floor | None = share(world, _kept(path, names) if world.rank == 0 else None)
    if kept is not None:
        return kept, ""
    scored = score(folder)
    wait_for_all(world)  # no rank reads the folder any more
    if scored is not None:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(scored._asdict()) + "\n").encode())
        shutil.rmtree(folder, ignore_errors=True)  # what a disk elsewhere still holds may stay
    return scored, ""


_KEPT = Form("untrained.json", {"block": TEXT, "numbers": NUMBERS})


def _kept(path: Path, names: Collection[str]) -> Floor | None:
    """Return a score that was kept; None if there is none, or it is not as it was written."""
    try:
        record = _KEPT.read(path)
    except (OSError, NoRecord):
        return None
    numbers = record["numbers"]
    return Floor(record["block"], numbers) if all(name in numbers for name in names) else None


def no_floor_lines(why_not: str) -> list[str]:
    """Return a line of why no untrained network is scored, if there is a reason."""
    return [f"no untrained network beside it: {why_not}"] * bool(why_not)
