"""What it takes to append the images of another source to a dataset file or to a set of shards.

Nothing that is there is touched: the images become one more file of the set, train.more-00001.beton for
train.beton, which readers open with the others by a glob. Its name follows theirs, so the indices of the
samples before stay as they are.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard_set import how_written, set_faults, shard_paths
from fastpsl.pipelines.beton.sidecar import Sidecar, read_sidecar
from fastpsl.pipelines.sources.renumbered import Renumbered
from fastpsl.pipelines.sources.source import Sample, Source

_MORE = ".more-"


@dataclass(frozen=True)
class Appendix:
    """The file to be written.

    Attributes:
        out: Its path.
        target: The form in which the set's images are stored.
        class_names: The set's.
        pattern: What names the set with this file.
    """

    out: Path
    target: Target
    class_names: list[str] | None
    pattern: str

    def samples(self, source: Source) -> Callable[[int], Iterator[Sample]]:
        """Return the function that yields the source's images from the i-th on, with the set's labels."""
        return source.samples if self.class_names is None else Renumbered(source, self.class_names).samples


def appendix(data: str, source: Source, record: dict[str, object]) -> Appendix:
    """Return what is to be written to append `source` to `data`, a dataset file or a glob of shards.

    Args:
        data: The set.
        source: The images to be appended.
        record: What the new file's JSON will tell of its writing.

    Raises:
        ValueError: The set does not tell how it was written, holds images of this source already, or lacks
            a class of the source. The message is one line.
    """
    paths = shard_paths(data)
    if len(paths) == 1:
        stem, suffix = _stem(paths[0]), paths[0].suffix
        paths = sorted(
            {*paths, *(path for path in paths[0].parent.iterdir() if _is_more(path, stem, suffix))}
        )
    with Beton(paths) as beton:
        class_names = beton.class_names
    sidecars = [_sidecar(path) for path in paths]
    targets = [_target(sidecar) for sidecar in sidecars]
    for path, target in zip(paths, targets, strict=True):
        for name, first in vars(targets[0]).items():
            if (value := getattr(target, name)) != first:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{path}: was written with {option} {value}, {paths[0]} with {option} {first}; "
                    f"append to one of the two"
                )
    out = _next(paths)
    written = [how_written(p, s.written, s.class_names) for p, s in zip(paths, sidecars, strict=True)]
    new = how_written(out, record, class_names)
    faults = set_faults([each for each in (*written, new) if each])
    if faults:
        raise ValueError(faults[0].replace("remove one of them", "they are there already"))
    _require_known(paths[0], class_names, source)
    return Appendix(out, targets[0], class_names, _pattern(data, paths, out))


def _stem(path: Path) -> str:
    return re.sub(rf"{re.escape(_MORE)}[0-9]{{5}}$", "", path.stem)


def _is_more(path: Path, stem: str, suffix: str) -> bool:
    return path.suffix == suffix and path.stem != stem and _stem(path) == stem


def _next(paths: list[Path]) -> Path:
    """Return the name of the next file, which follows the others in their order."""
    last, number = paths[-1], 1
    while True:
        out = last.with_name(f"{_stem(last)}{_MORE}{number:05}{last.suffix}")
        if not out.exists():
            return out
        number += 1


def _pattern(data: str, paths: list[Path], out: Path) -> str:
    """Return `data` if it names the new file, too, else a glob that does."""
    if not os.path.exists(data) and fnmatch.fnmatch(str(out), data):
        return data
    stems = {_stem(path) for path in paths}
    name = f"{stems.pop()}.*" if len(stems) == 1 else f"{os.path.commonprefix(sorted(stems))}*."
    return str(out.with_name(name + out.suffix[1:]))


def _sidecar(path: Path) -> Sidecar:
    sidecar = read_sidecar(path)
    if sidecar is None or "mode" not in sidecar.written:
        raise ValueError(
            f"{path}: does not tell how it was written ({path.name}.json is missing, or of another writer); "
            f"write the new images to a file of their own by `fastpsl data write`, and read both with a glob"
        )
    return sidecar


def _target(sidecar: Sidecar) -> Target:
    names = {field.name for field in fields(Target)}
    return Target(**{name: value for name, value in sidecar.written.items() if name in names})


def _require_known(path: Path, class_names: list[str] | None, source: Source) -> None:
    """Raise ValueError unless the set has all of the source's classes, which go by their names."""
    if source.class_names is None or class_names is None:
        if source.class_names != class_names:
            has, other = ("none", "has some") if class_names is None else ("class names", "has none")
            raise ValueError(f"{path}: has {has}, the source {other}; give a source of the same kind")
        return
    known = set(class_names)
    new = [name for name in source.class_names if name not in known]
    if new:
        more = f" (and {len(new) - 1:,} more)" if len(new) > 1 else ""
        raise ValueError(
            f"{path}: has no class {' '.join(new[0].split())}{more}, which the source has; "
            f"leave it out, or write all anew with all classes"
        )
