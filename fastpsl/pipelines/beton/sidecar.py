r"""The JSON beside a dataset file, `train.beton.json` for `train.beton`: what the format has no place for.

Dataset files are read without it, too.

format        1
num_samples   as in the dataset file
class_names   list, label = position; null for a flat folder
source_paths  of each sample, relative to the source: newline-joined ("\" and newline escaped), zlib, base64
written       how it was written: options (split is what readers call the data's split), version, counts.
data_start, sha256   checksum of the bytes from data_start to the end of the file, then of those before it.
              The bytes are written in this order, so the checksum needs no second reading.
"""

import base64
import binascii
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

        Raises:
            ValueError: The paths are damaged or not as many as the samples. Those yielded before may be
                wrong, too.
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


_PIECE_BYTES = 1 << 16
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
        self._zlib, self._parts = zlib.compressobj(6), list[bytes]()
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
    record = {
        "format": FORMAT,
        "num_samples": sidecar.num_samples,
        "class_names": sidecar.class_names,
        "written": sidecar.written,
        "data_start": sidecar.data_start,
        "sha256": sidecar.sha256,
        "source_paths": sidecar.packed_paths,
    }
    return (json.dumps(record, indent=1, ensure_ascii=True) + "\n").encode()


def read_sidecar(beton: Path) -> Sidecar | None:
    """Return the sidecar of a dataset file; None where it has none.

    Raises:
        ValueError: It exists and cannot be understood.
    """
    path = sidecar_path(beton)
    try:
        data = path.read_bytes()
        is_too_large = sum(map(data.count, b"[{,:")) > _MAX_VALUES  # each takes 50 bytes of memory and more
        record: Any = None if is_too_large else json.loads(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
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
