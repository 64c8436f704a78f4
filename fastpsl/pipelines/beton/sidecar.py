r"""The JSON beside a dataset file, `train.beton.json` for `train.beton`: what the format has no place for.

Dataset files are read without it, too.

format        1
num_samples   as in the dataset file
class_names   list, label = position; null for a flat folder
source_paths  of each sample, relative to the source: newline-joined ("\" and newline escaped), zlib, base64
written       how it was written: options (split is what readers call the data's split), version, counts.
data_start, sha256   checksum of the bytes from data_start to the end of the file, then of those before it.
              The bytes are written in this order, so the checksum needs no second reading.

Shards: the JSONs hold what is needed to open them as one. Whole files of different sources may be read
together, too. Shards of different runs are refused, and so are images that would appear twice. An appended
file, which comes from another source, belongs to shards whose class names it has. A file without this
information belongs anywhere.

Checksums lie between a file's last sample and its allocation table, where no pointer leads. So ffcv
reads such files as any other. A mark in the arguments of the first field, which ffcv's image field
ignores, shows that they exist.

All are CRC-32, uint32. Each sample has one, over its row of the table (size, pointer, label) and its data.
One is over everything before the table (header, field descriptors), and one over all of these. A CRC-32
finds accidents; it does not protect against forgery.
"""

import base64
import binascii
import json
import os
import re
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastpsl.console.words import at_home
from fastpsl.files.paths import named_files, require_existing
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.pipelines.beton.shard import FIELD, HEADER, REMEDY, Shard, Table

FORMAT = 1
_REMEDY = "copy it again, or remove it (the dataset file is read without it, but loses its class names)"


@dataclass
class Sidecar:
    """The contents of the JSON, which the module's docstring describes."""

    num_samples: int
    class_names: list[str] | None
    written: dict[str, Any]
    data_start: int
    sha256: str
    packed_paths: str
    path: Path | None = None  # the JSON, where it was read from one

    def source_paths(self) -> Iterator[str]:
        """Yield each sample's path in the source, in sample order; none for samples of no file.

        It holds a few MB at most, however long the packed paths claim to be.
        """
        num = 0
        try:
            for line in _unpacked(base64.b64decode(self.packed_paths)) if self.packed_paths else ():
                num += 1
                if num > self.num_samples:
                    break
                yield _unescape(line)
        except (ValueError, zlib.error):
            num = -1
        if self.packed_paths and num != self.num_samples:
            raise ValueError(f"{self.path}: its source_paths are damaged; {_REMEDY}")


_PIECE_BYTES = 1 << 16  # unpacked at a time, because few packed bytes may claim any number (not measured)
_MAX_VALUES = 1 << 21  # the paths are one, and a class name has a few commas at most
_MAX_PATH_BYTES = 1 << 20  # for names in a tar; file systems allow 4,096


def _unpacked(packed: bytes) -> Iterator[bytes]:
    """Yield the lines; raise ValueError or zlib.error where they are damaged."""
    unpacker, rest = zlib.decompressobj(), b""
    for start in range(0, len(packed), _PIECE_BYTES):
        piece = packed[start : start + _PIECE_BYTES]
        while piece or unpacker.unconsumed_tail:
            *lines, rest = (rest + unpacker.decompress(piece, _PIECE_BYTES)).split(b"\n")
            yield from lines
            piece = unpacker.unconsumed_tail
            if len(rest) > _MAX_PATH_BYTES:
                raise ValueError
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError
    yield rest


# Many lines per call, because each call gives up the GIL: 0.09 ms per path beside busy threads.
_LINES_AT_A_TIME = 1024


class PathPacker:
    """A compressor of source paths, which holds about 10 bytes per path."""

    def __init__(self) -> None:
        self._zlib, self._parts = zlib.compressobj(6), list[bytes]()  # zlib's default level
        self._lines: list[bytes] = []
        self._num_paths = 0

    def add(self, path: str) -> None:
        line = os.fsencode(path).replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        self._lines.append(line if not self._num_paths else b"\n" + line)
        self._num_paths += 1
        if len(self._lines) >= _LINES_AT_A_TIME:
            self._pack()

    def _pack(self) -> None:
        self._parts.append(self._zlib.compress(b"".join(self._lines)))
        self._lines.clear()

    def finish(self) -> str:
        if not self._num_paths:
            return ""
        self._pack()
        return base64.b64encode(b"".join(self._parts) + self._zlib.flush()).decode()


def _unescape(line: bytes) -> str:
    if b"\\" not in line:
        return os.fsdecode(line)
    halves = [half.replace(b"\\n", b"\n") for half in line.split(b"\\\\")]
    return os.fsdecode(b"\\".join(halves))


def sidecar_path(beton: Path) -> Path:
    """Return train.beton.json for train.beton."""
    return beton.with_name(beton.name + ".json")


def dump_sidecar(sidecar: Sidecar) -> bytes:
    """Return the JSON as bytes."""
    names = ("num_samples", "class_names", "written", "data_start", "sha256")
    record = {"format": FORMAT} | {name: getattr(sidecar, name) for name in names}
    record["source_paths"] = sidecar.packed_paths
    return (json.dumps(record, indent=1, ensure_ascii=True) + "\n").encode()


def read_sidecar(beton: Path) -> Sidecar | None:
    """Return the sidecar of a dataset file; None where it has none."""
    path = sidecar_path(beton)
    try:
        data = path.read_bytes()
        is_too_large = sum(map(data.count, b"[{,:")) > _MAX_VALUES  # each takes 50 bytes of memory and more
        record: Any = None if is_too_large else json.loads(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise_of_the_system(path, error)
        raise ValueError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    if is_too_large:
        raise ValueError(f"{path}: holds more than {_MAX_VALUES:,} values; {_REMEDY}")
    try:
        names = record["class_names"]
        sidecar = Sidecar(
            num_samples=int(record["num_samples"]),
            class_names=None if names is None else [str(name) for name in names],
            written=dict(record["written"]),
            data_start=int(record["data_start"]),
            sha256=str(record["sha256"]),
            packed_paths=str(record["source_paths"]),
            path=path,
        )
        if sidecar.num_samples < 0 or not 0 <= sidecar.data_start < 1 << 63:
            raise ValueError(f"num_samples {sidecar.num_samples}, data_start {sidecar.data_start}")
        base64.b64decode(sidecar.packed_paths, validate=True)
        is_known_format = record["format"] == FORMAT
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
        raise ValueError(f"{path}: not the JSON of a dataset file ({error!r}); {_REMEDY}") from None
    if not is_known_format:
        raise ValueError(
            f"{path}: format {record['format']}, known is {FORMAT}; update fastpsl, or remove the file"
        )
    return sidecar


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
    "range": "with --range {}",
    "bands": "with --bands {}",
}
_MAX_SHARDS = 1_000_000  # bounds the list of missing ones that a damaged JSON asks for
_AGAIN = "write them all again in one way, or read them one by one"


def shard_paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files that `source` names (a file, a glob, or several files), sorted by name."""
    if isinstance(source, os.PathLike):
        source = Path(source)
    if not isinstance(source, str | Path):
        if not isinstance(source, Sequence) or not all(
            isinstance(path, str | os.PathLike) for path in source
        ):
            raise ValueError(
                f"dataset files are named by {type(source).__name__}; give a path, a glob or a list of paths"
            )
        paths = [Path(at_home(path)) for path in source]
        if not paths:
            raise ValueError("no dataset file given: give a file, a glob or a list of files")
        return sorted(paths)
    named = at_home(source)
    require_existing(named, "a .beton file or a quoted glob of them; `fastpsl data write` makes one")
    return named_files(named)


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
        difference = next(((w, mine, other) for w, (_, mine), (_, other) in entries if mine != other), None)
        if difference:
            wording, value, other = difference
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
    if not shards:
        return []
    run = _usual(shards)
    num, is_by_size = run[0].num_shards, dict(run[0].common)["shard_mb"] != "None"
    again = "copy it, or write all again" if is_by_size else "write it with --shard {}/{}"
    beginning = os.path.dirname(run[0].name) or "."
    return [
        f"{beginning}: shard {i}/{num} of {run[0].source} is missing; {again.format(i, num)}"
        for i in sorted(set(range(num)) - {shard.index for shard in run})
    ]


MARK = b"fastpsl crc32 1"  # in the arguments of the first field
MARK_START = HEADER.itemsize + 1 + FIELD["name"].itemsize
_ITEM_BYTES = 4
_NUM_FURTHER = 2  # one over the header, and one over all


class Checksums:
    """The checksums of samples that are being written, at 4 bytes per sample."""

    def __init__(self) -> None:
        self._each = array("I")
        assert self._each.itemsize == _ITEM_BYTES and sys.byteorder == "little"

    def add(self, row: bytes, data: bytes) -> int:
        """Add a sample and return its checksum."""
        self._each.append(zlib.crc32(data, zlib.crc32(row)))
        return self._each[-1]

    @property
    def num_bytes(self) -> int:
        """The number of bytes that `finish` returns."""
        return num_checksum_bytes(len(self._each))

    def finish(self, head: bytes) -> bytes:
        """Return the bytes before the allocation table; `head` is the header and the field descriptors."""
        self._each.append(zlib.crc32(head))
        self._each.append(zlib.crc32(self._each))
        return self._each.tobytes()


def num_checksum_bytes(num_samples: int) -> int:
    """Return the bytes of all checksums of a file."""
    return _ITEM_BYTES * (num_samples + _NUM_FURTHER)


def has_checksums(shard: Shard) -> bool:
    """Return whether the file is marked to have checksums; those of ffcv and older versions have none."""
    return os.pread(shard.fd, len(MARK), MARK_START) == MARK


def checksum_bytes(shard: Shard) -> bytes:
    """Return all checksums as they are on disk; empty where a damaged header leaves no room for them."""
    num_bytes = num_checksum_bytes(shard.num_samples)
    start = shard.alloc - num_bytes
    return os.pread(shard.fd, num_bytes, start) if start >= shard.table_end else b""


def read_checksums(shard: Shard) -> np.ndarray:
    """Return the checksums of the samples, uint32 [num_samples]."""
    num_bytes, data = num_checksum_bytes(shard.num_samples), checksum_bytes(shard)
    checksums = np.frombuffer(data[: len(data) // _ITEM_BYTES * _ITEM_BYTES], "<u4")
    if len(data) < num_bytes or checksums[-1] != zlib.crc32(data[:-_ITEM_BYTES]):
        raise ValueError(f"{shard.name}: its checksums are damaged; copy it again, or {REMEDY}")
    if checksums[-2] != zlib.crc32(os.pread(shard.fd, shard.table_start, 0)):
        raise ValueError(f"{shard.name}: its header is not as it was written; copy it again, or {REMEDY}")
    return checksums[:-_NUM_FURTHER]


def sample_checksums(shard: Shard, samples: np.ndarray) -> np.ndarray:
    """Return the checksums of some samples, uint32 [n], of a file whose checksums are sound."""
    start = shard.alloc - num_checksum_bytes(shard.num_samples)
    return Table(shard.fd, start, np.dtype("<u4"), shard.num_samples)[samples]


def matches_checksum(shard: Shard, index: int, data: bytes, checksum: int) -> bool:
    """Return whether a sample's row and data match its checksum."""
    return zlib.crc32(data, zlib.crc32(shard.row_bytes(index))) == checksum
