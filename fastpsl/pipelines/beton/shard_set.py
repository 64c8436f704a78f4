"""The rules by which dataset files belong together: shards i/n of one source, written with the same options.

The JSONs hold what is needed. Whole files of different sources may be read together, too. Shards of
different runs are refused, and so are images that would appear twice. An appended file, which comes from
another source, belongs to shards whose class names it has. A file without this information belongs anywhere.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpsl.files.paths import require_existing

# The entries that all shards of a data set share, and their wording in messages.
_COMMON = {
    "shards": "of {} shards",
    # The last part of the path, because machines may have the source in different places.
    "source": "from {}",
    "split": "from split {}",
    "num_total": "from a source of {} images",
    "short_side": "with --short-side {}",
    "max_side": "with --max-side {}",
    "quality": "with --quality {}",
    "reencode": "with --reencode {}",
    "mode": "with --mode {}",
    "shard_mb": "with --shard-mb {}",
}
_MAX_SHARDS = 1_000_000
_AGAIN = "write them all again in one way, or read them one by one"


def shard_paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files that `source` names (a file, a glob, or several files), sorted by name.

    Raises:
        ValueError: There are none.
    """
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
        if not paths:
            raise ValueError("no dataset file given: give a file, a glob or a list of files")
        return sorted(paths)
    require_existing(source, "a .beton file or a quoted glob of them; `fastpsl data write` makes one")
    return [Path(source)] if os.path.exists(source) else sorted(map(Path, glob.glob(str(source))))


@dataclass(frozen=True)
class Written:
    """The part of a dataset file's JSON that describes how it was written."""

    name: str  # its path or address
    index: int  # of num_shards
    source: str
    common: tuple[tuple[str, str], ...]
    class_names: tuple[str, ...] | None
    is_appended: bool = False  # by `fastpsl data append`, from another source than the others

    @property
    def num_shards(self) -> int:
        return int(self.common[0][1])


def how_written(name: "str | Path", written: dict[str, Any], class_names: list[str] | None) -> Written | None:
    """Return the description from a JSON's `written` and `class_names`; None without shard and source."""
    shard = re.fullmatch("([0-9]{1,7})/([0-9]{1,7})", str(written.get("shard")))
    if not shard or not written.get("source"):
        return None
    index, num_shards = shard.groups()
    if not int(index) < int(num_shards) <= _MAX_SHARDS:
        return None
    source = str(written["source"])
    entries = {"reencode": "larger", **written, "shards": num_shards, "source": os.path.basename(source)}
    common = tuple((name, str(entries.get(name))) for name in _COMMON)
    names = None if class_names is None else tuple(class_names)
    return Written(str(name), int(index), source, common, names, bool(written.get("appended")))


def set_faults(shards: Sequence[Written]) -> list[str]:
    """Return what keeps these files from being one data set, a line each: other runs, repeated images."""
    appended = [shard for shard in shards if shard.is_appended]
    if appended:
        others = [shard for shard in shards if not shard.is_appended]
        return (set_faults(others) if others else []) + _appended_twice(others, appended)
    if all(shard.num_shards == 1 for shard in shards):
        return _twice(shards)
    first = _usual(shards)[0]
    faults, same = list[str](), list[Written]()
    for shard in shards:
        entries = zip(_COMMON.values(), shard.common, first.common, strict=True)
        differences = [
            (wording, value, other) for wording, (_, value), (_, other) in entries if value != other
        ]
        if differences:
            wording, value, other = differences[0]
            text = f"was written {wording.format(value)}, {first.name} {wording.format(other)}"
            faults.append(f"{shard.name}: {text}; {_AGAIN}")
        elif shard.class_names != first.class_names:
            faults.append(f"{shard.name}: its class names differ from those of {first.name}; {_AGAIN}")
        else:
            same.append(shard)
    return faults + _twice(same)


def _usual(shards: Sequence[Written]) -> list[Written]:
    """Return the shards of the run that has the most of them."""
    run, _ = Counter((shard.common, shard.class_names) for shard in shards).most_common(1)[0]
    return [shard for shard in shards if (shard.common, shard.class_names) == run]


def _twice(shards: Sequence[Written]) -> list[str]:
    """Return a line per beton that repeats another: whole ones of one source and split, or one shard."""
    first_of, faults = dict[object, Written](), list[str]()
    for shard in shards:
        whole_beton = (shard.source, dict(shard.common)["split"])
        other = first_of.setdefault(whole_beton if shard.num_shards == 1 else shard.index, shard)
        if other is not shard:
            of = f"shard {shard.index}/{shard.num_shards} of {shard.source}"
            faults.append(f"{shard.name}: holds the same images as {other.name} ({of}); remove one of them")
    return faults


def _appended_twice(others: Sequence[Written], appended: Sequence[Written]) -> list[str]:
    """Return a line per appended beton whose source is that of another file."""
    first_of, faults = dict[object, Written](), list[str]()
    for shard in (*others, *appended):
        other = first_of.setdefault((shard.source, dict(shard.common)["split"]), shard)
        if other is not shard and shard.is_appended:
            faults.append(
                f"{shard.name}: holds images of {shard.source}, as {other.name} does; remove one of them"
            )
    return faults


def missing_shards(shards: Sequence[Written]) -> list[str]:
    """Return a line per missing shard of the run that most of these belong to."""
    shards = [shard for shard in shards if not shard.is_appended]
    run = _usual(shards) if shards else []
    missing = set(range(run[0].num_shards)) - {shard.index for shard in run} if run else set()
    is_by_size = bool(run) and dict(run[0].common)["shard_mb"] != "None"
    again = "copy it, or write all again" if is_by_size else "write it with --shard {}/{}"
    folder = os.path.dirname(run[0].name) if run else ""
    return [
        f"{folder or '.'}: shard {index}/{run[0].num_shards} of {run[0].source} is missing; "
        f"{again.format(index, run[0].num_shards)}"
        for index in sorted(missing)
    ]
