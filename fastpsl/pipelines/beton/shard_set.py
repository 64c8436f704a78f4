"""Which betons belong together, as their JSONs tell: the shards i/n of one source, written with the same options.

Whole betons of different sources may be read together too; what is refused are shards of different runs, and images
that would be there twice. A beton without a JSON, or whose JSON does not tell, belongs anywhere.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the shards of one data set have in common, and how it is said.
_COMMON = {
    "shards": "of {} shards",
    "source": "from {}",  # its last name: machines may have it in other places
    "split": "from split {}",
    "num_total": "from a source of {} images",
    "short_side": "with --short-side {}",
    "max_side": "with --max-side {}",
    "quality": "with --quality {}",
    "mode": "with --mode {}",
}
_MAX_SHARDS = 1_000_000
_AGAIN = "write them all again in one way, or read them one by one"


@dataclass(frozen=True)
class Written:
    """What a JSON tells of how its beton was written."""

    path: Path
    index: int  # of num_shards
    source: str
    common: tuple[tuple[str, str], ...]
    class_names: tuple[str, ...] | None

    @property
    def num_shards(self) -> int:
        return int(self.common[0][1])


def how_written(path: Path, written: dict[str, Any], class_names: list[str] | None) -> Written | None:
    """From a JSON's `written` and `class_names`; None where it does not tell of shard and source."""
    shard = re.fullmatch("([0-9]{1,7})/([0-9]{1,7})", str(written.get("shard")))
    if not shard or not written.get("source"):
        return None
    index, num_shards = shard.groups()
    if not int(index) < int(num_shards) <= _MAX_SHARDS:
        return None
    source = str(written["source"])
    told = {**written, "shards": num_shards, "source": os.path.basename(source)}
    common = tuple((name, str(told.get(name))) for name in _COMMON)
    return Written(path, int(index), source, common, None if class_names is None else tuple(class_names))


def set_faults(shards: Sequence[Written]) -> list[str]:
    """What keeps these betons from being one data set, a line each: other runs, the same images twice."""
    if all(shard.num_shards == 1 for shard in shards):
        return _twice(shards)
    first = _usual(shards)[0]
    faults, same = list[str](), list[Written]()
    for shard in shards:
        told = zip(_COMMON.values(), shard.common, first.common, strict=True)
        differs = [(how, here, there) for how, (_, here), (_, there) in told if here != there]
        if differs:
            how, here, there = differs[0]
            text = f"was written {how.format(here)}, {first.path} {how.format(there)}"
            faults.append(f"{shard.path}: {text}; {_AGAIN}")
        elif shard.class_names != first.class_names:
            faults.append(f"{shard.path}: its class names differ from those of {first.path}; {_AGAIN}")
        else:
            same.append(shard)
    return faults + _twice(same)


def _usual(shards: Sequence[Written]) -> list[Written]:
    """Those of the run that most belong to."""
    run, _ = Counter((shard.common, shard.class_names) for shard in shards).most_common(1)[0]
    return [shard for shard in shards if (shard.common, shard.class_names) == run]


def _twice(shards: Sequence[Written]) -> list[str]:
    """Shards that hold the images of another one: whole betons of one source and split, or one shard of a run."""
    seen, faults = dict[object, Written](), list[str]()
    for shard in shards:
        whole = (shard.source, dict(shard.common)["split"])
        other = seen.setdefault(whole if shard.num_shards == 1 else shard.index, shard)
        if other is not shard:
            of = f"shard {shard.index}/{shard.num_shards} of {shard.source}"
            faults.append(f"{shard.path}: holds the same images as {other.path} ({of}); remove one of them")
    return faults


def missing_shards(shards: Sequence[Written]) -> list[str]:
    """The shards that are not there, a line each, of the run that most of these belong to."""
    there = _usual(shards) if shards else []
    missing = set(range(there[0].num_shards)) - {shard.index for shard in there} if there else set()
    return [
        f"{there[0].path.parent}: shard {index}/{there[0].num_shards} of {there[0].source} is missing; "
        f"write it with --shard {index}/{there[0].num_shards}"
        for index in sorted(missing)
    ]
