"""Readers of untrusted arrays, archives and pickles that limit memory and time before they read any contents.

`load_plain` reads pickled dictionaries, lists, numbers, text, bytes and arrays of numbers of Python 2 or 3.
Names of Python objects are never looked up, and no code of numpy runs.
"""

import contextlib
import io
import math
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from typing_extensions import Self, override

from fastpsl.files.json_records import open_regular
from fastpsl.files.system_errors import raise_of_the_system


def map_npy(path: Path) -> np.ndarray:
    """Return the array of an .npy file as a memory map."""
    open_regular(path).close()
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, MemoryError):
        raise
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except Exception as error:  # noqa: BLE001  numpy parses headers by tokenize and ast, which raise many types
        raise ValueError(f"its header means nothing ({type(error).__name__})") from None
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise ValueError("an archive of arrays, not one")  # noqa: TRY004
    return mapped


def read_npy(path: Path, max_bytes: int) -> np.ndarray:
    """Return the array of an .npy file that takes at most `max_bytes`."""
    mapped = map_npy(path)
    if mapped.nbytes > max_bytes:
        raise ValueError(f"{mapped.nbytes:,} bytes, and at most {max_bytes:,} are read")
    return np.array(mapped)


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Raise ValueError if what a file claims is larger than what is read of it."""
    if num_bytes > max_bytes:
        raise ValueError(f"it would take {num_bytes:,} bytes of memory, and at most {max_bytes:,} are read")


# Such a zip may have been checked, and be read as another one.
_AMBIGUOUS = "two readers of zips may find other parts in it"


def check_zip(path: Path, max_bytes: int) -> None:
    """Check a zip before another reader opens it, because torch and numpy compare no checksums."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # zipfile inflates no member beyond the size that the archive states.
        num_bytes = sum(member.file_size for member in members)
        check_size(num_bytes, max_bytes)
        if len(members) > _MOST_MEMBERS + max_bytes // _BYTES_PER_MEMBER:
            raise ValueError(f"{len(members):,} parts are more than {max_bytes:,} bytes can hold")
        # Of names that are equal but for their case, torch reads another one than zipfile.
        if len({member.filename.casefold() for member in members}) < len(members):
            raise ValueError(_AMBIGUOUS)
        _require_usual_end(path)
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} fails its checksum")


def _require_usual_end(path: Path) -> None:
    """Raise ValueError unless a zip's list of members ends the file, where all readers find the same list."""
    with open(path, "rb") as file:
        num_bytes = file.seek(0, io.SEEK_END)
        # A zip's end has 22 bytes. Before it, a zip64 has 20 that tell where its own end of 56 bytes lies.
        file.seek(max(num_bytes - 98, 0))
        tail = file.read().rjust(98, b"\0")
    record, place, end = tail[:56], tail[56:76], tail[76:]
    size, start, comment = struct.unpack("<IIH", end[12:])
    at = num_bytes - len(end)
    if place.startswith(b"PK\6\7"):  # a zip64's end, and where it is said to lie
        at = num_bytes - len(tail)
        (size, start), (said,) = struct.unpack("<QQ", record[40:]), struct.unpack("<Q", place[8:16])
        if said != at or not record.startswith(b"PK\6\6"):
            raise ValueError(_AMBIGUOUS)
    if not end.startswith(b"PK\5\6") or comment or start + size != at:
        raise ValueError(_AMBIGUOUS)


@contextlib.contextmanager
def open_npz(path: Path, max_bytes: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Open an .npz file that takes at most `max_bytes`.

    Raises:
        UnreadableError: The system cannot read it.
        ValueError: It is damaged, claims more, or its arrays are not what the block takes them for.
    """
    try:
        check_zip(path, max_bytes)
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except Exception as error:  # noqa: BLE001  (zipfile, zlib and numpy raise different errors)
        if not isinstance(error, MemoryError):  # by a header alone, since the file's size is bounded
            raise_of_the_system(path, error)
        raise ValueError(" ".join(str(error).strip("'\"").split())[:120] or type(error).__name__) from None


_CUT = "a pickle that is cut short"
_CLAIM = "a pickle of more objects, longer names or deeper lists than a file of its size has"
# The most opcodes, calls and members of a small file, and the bytes of the file that allow one more of each.
# ResNet-152 with SGD's momenta has 48,751 opcodes, 4,200 calls and 1,405 members, and 480 MB allow far more.
# docs/project/reliability.md tells what they bound memory to.
_MOST_OPCODES, _BYTES_PER_OPCODE = 1 << 16, 4
_MOST_CALLS, _BYTES_PER_CALL = 20_000, 32
_MOST_MEMBERS, _BYTES_PER_MEMBER = 2_000, 256
_MOST_DEPTH = 64  # of lists in lists; `_plain` calls itself as often
_MOST_LETTERS = 1_000  # of a name, such as a parameter's, which has some dozens
_MOST_USES = 4  # of an array, each of which may be copied; a larger bound would allow more memory
_ALONE = re.compile(rb"[(012Nadelstu})\]\x85-\x89\x93\x94]+")  # opcodes that are one byte and call nothing
_CALLS = frozenset(b"RbQ\x81")
# Opcode → the bytes of its argument; and opcode → the bytes of the length that stands before its argument.
_FIXED = dict(zip(b"KMJGhj\x80", (1, 2, 4, 8, 1, 4, 1), strict=True))
_SIZED = dict(zip(b"UXTBC\x8c\x8d\x8e\x96\x8a", (1, 4, 4, 4, 1, 1, 8, 8, 8, 1), strict=True))
_PUTS = dict(zip(b"qr", (1, 4), strict=True))
_LINES = dict(zip(b"ILFSVgpc", (1, 1, 1, 1, 1, 1, 1, 2), strict=True))
_FRAME, _STOP, _PUT, _GLOBAL = b"\x95"[0], b"."[0], b"p"[0], b"c"[0]


def check_pickles(data: bytes | mmap.mmap, num_bytes: int, num: int = 1) -> list[str]:
    """Read the opcodes of `num` pickles, one after the other, before they are loaded.

    Memory and time of loading them are bounded by the file's size then. Sets, integers of more than 255 bytes
    and opcodes of extensions are refused.

    Args:
        data: The pickles, and whatever comes after them.
        num_bytes: The size of the file that they are from.
        num: Their number.

    Returns:
        The names of Python objects in them, as "module.name", in their order.

    Raises:
        ValueError: They claim more than so large a file can hold, or are cut short.
    """
    at, count, calls, names = 0, 0, 0, list[str]()
    most_opcodes = _MOST_OPCODES + num_bytes // _BYTES_PER_OPCODE
    most_calls = _MOST_CALLS + num_bytes // _BYTES_PER_CALL
    whole = len(data)
    while num:
        if alone := _ALONE.match(data, at):
            count += alone.end() - at
            at = alone.end()
        if at >= whole:
            raise ValueError(_CUT)
        opcode = data[at]
        at, count = at + 1, count + 1
        if opcode in _FIXED:
            at += _FIXED[opcode]
        elif opcode in _PUTS:
            at += (width := _PUTS[opcode])
            if int.from_bytes(data[at - width : at], "little") > count:
                raise ValueError(_CLAIM)
        elif opcode in _SIZED:
            at += (width := _SIZED[opcode])
            at += int.from_bytes(data[at - width : at], "little")
        elif opcode in _CALLS:
            calls += 1
        elif opcode in _LINES:
            start = at
            for _ in range(_LINES[opcode]):
                at = data.find(b"\n", at) + 1
                if not at or (at - start > _MOST_LETTERS and opcode not in b"SV"):
                    raise ValueError(_CLAIM)
            if opcode == _GLOBAL:
                names.append(data[start : at - 1].replace(b"\n", b".").decode("utf-8", "replace"))
            elif opcode == _PUT and not (
                data[start : at - 1].isdigit() and int(data[start : at - 1]) <= count
            ):
                raise ValueError(_CLAIM)
        elif opcode == _FRAME:
            at += 8
            if int.from_bytes(data[at - 8 : at], "little") > whole - at:
                raise ValueError(_CUT)
        elif opcode == _STOP:
            num -= 1
        else:
            raise ValueError(f"a pickle with the opcode {opcode}, which plain data have not")
        if at > whole:
            raise ValueError(_CUT)
        if count > most_opcodes or calls > most_calls:
            raise ValueError(_CLAIM)
    return names


def leaves(value: Any, num_bytes: int) -> list[Any]:
    """Return the values that dicts, lists and tuples from a pickle hold at any depth.

    Args:
        value: What the pickle held. Its parts may hold each other.
        num_bytes: The size of the file that it is from.

    Raises:
        ValueError: A walk through it would be too deep or too long, or a dict has a name that is too long.
    """
    found, level = list[Any](), [value]
    left = _MOST_OPCODES + num_bytes // _BYTES_PER_OPCODE
    for _ in range(_MOST_DEPTH):
        inside = list[Any]()
        for item in level:
            if isinstance(item, Mapping):
                if any(isinstance(key, (str, bytes)) and len(key) > _MOST_LETTERS for key in item):
                    raise ValueError(_CLAIM)
                items: Collection[Any] = item.values()
            elif isinstance(item, (list, tuple)):
                items = item
            else:
                found.append(item)
                continue
            left -= len(items)
            if left < 0:
                raise ValueError(_CLAIM)
            inside += items
        if not inside:
            return found
        level = inside
    raise ValueError(_CLAIM)


class _Call:
    """A stand-in for any function that a pickle calls, and for the function's result."""

    left = 0  # the entries of lists and dicts that further calls may copy

    def __new__(cls, *arguments: Any) -> Self:
        for argument in arguments:
            if isinstance(argument, (list, tuple, dict)):
                cls.left -= len(argument)
        if cls.left < 0:
            raise ValueError(_CLAIM)
        return super().__new__(cls)

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _DryRun(pickle.Unpickler):
    """An unpickler that makes plain values, and stand-ins for all other objects."""

    def __init__(self, stream: IO[bytes] | mmap.mmap, num_bytes: int):
        super().__init__(stream, encoding="latin1")
        left = _MOST_OPCODES + num_bytes // _BYTES_PER_OPCODE
        self._call = type("_Call", (_Call,), {"left": left})

    @override
    def find_class(self, module: str, name: str) -> Any:
        return self._call

    @override
    def persistent_load(self, pid: Any) -> Any:
        return self._call()


def check_calls(stream: IO[bytes] | mmap.mmap, num_bytes: int, num: int = 1) -> None:
    """Raise ValueError if calls in `num` pickles copy the same lists again and again, as `set` may.

    `check_pickles` has passed them.
    """
    for _ in range(num):
        _DryRun(stream, num_bytes).load()


_NDARRAY = "numpy.ndarray"
_MOST_SIDES = 32  # of an array, as in NumPy 1
_NUMBERS = ("b1", "u1", "u2", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class _Type:
    """A stand-in for numpy.dtype; `numbers` is None for types that are not allowed."""

    def __init__(self, name: object):
        known = name.decode() if isinstance(name, bytes) else name
        self.numbers = np.dtype(f"<{known}") if known in _NUMBERS else None

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|", b"<", b"|"):
            self.numbers = None  # big-endian numbers are not allowed


class _Array:
    """A stand-in for numpy.ndarray while it is unpickled."""

    def __init__(self, values: np.ndarray | None = None):
        self.values = values

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = _numbers(data, dtype, shape, is_fortran)


def _numbers(data: Any, dtype: Any, shape: Any, is_fortran: Any) -> np.ndarray:
    kind = dtype.numbers if isinstance(dtype, _Type) else None
    # Products of many sides, or of long ones, would take minutes. No memory has an array of 2**48 values.
    is_sized = type(shape) is tuple and len(shape) <= _MOST_SIDES
    is_sized = is_sized and all(type(side) is int and 0 <= side < 1 << 48 for side in shape)
    is_plain = type(data) in (bytes, bytearray) and type(is_fortran) in (bool, int)
    if kind is None or not (is_sized and is_plain and math.prod(shape) * kind.itemsize == len(data)):
        raise pickle.UnpicklingError("an array of another kind")
    return np.frombuffer(data, kind).reshape(shape, order="F" if is_fortran else "C")


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, num_bytes: int):
        super().__init__(stream, encoding="bytes")
        self._left = num_bytes

    def _encoded(self, text: str) -> bytes:
        """Return the bytes of a text, which a pickle may ask for any number of times."""
        self._left -= len(text)
        if self._left < 0:
            raise pickle.UnpicklingError(_CLAIM)
        return text.encode("latin1")

    @override
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")  # the name in numpy 2
        known = {
            # These functions are new for each call, so that a pickle can change nothing else.
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy.core.multiarray", "scalar"): lambda dtype, data: _numbers(data, dtype, (), False).item(),
            # Python 3 stores arrays so in protocol 5.
            ("numpy.core.numeric", "_frombuffer"): lambda data, dtype, shape, order: _Array(
                _numbers(data, dtype, shape, order == "F")
            ),
            ("numpy", "dtype"): lambda name, *_: _Type(name),
            ("numpy", "ndarray"): _NDARRAY,
            # Python 3 stores bytes so in its protocols for Python 2.
            ("_codecs", "encode"): lambda text, _: self._encoded(text),
            ("__builtin__", "bytes"): lambda: b"",
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(
                f"{module}.{name} is not let in: plain data are numbers, text, lists and arrays"
            )
        return known[module, name]


def load_plain(data: bytes | mmap.mmap) -> dict[Any, Any]:
    """Return a pickled dictionary of plain data.

    Its values are plain, arrays, or lists and dictionaries of these. Strings of Python 2 become bytes, and
    arrays are read-only.

    Raises:
        ValueError: It is none, or claims more than it can hold.
    """
    try:
        check_pickles(data, len(data))
        stream = data if isinstance(data, mmap.mmap) else io.BytesIO(data)
        record = _Unpickler(stream, len(data)).load()
        arrays = [each.values for each in leaves(record, len(data)) if isinstance(each, _Array)]
        check_size(sum(array.nbytes for array in arrays if array is not None), _MOST_USES * len(data))
    except (MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  unpicklers raise nearly anything on damaged data
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"a pickle that is not of plain data ({reason})") from None
    if type(record) is not dict:
        raise ValueError("a pickle that is no dictionary")
    plain: dict[Any, Any] = _plain(record)
    return plain


def _plain(value: Any) -> Any:
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    if type(value) is list:
        return [_plain(item) for item in value]
    return value.values if isinstance(value, _Array) else value
