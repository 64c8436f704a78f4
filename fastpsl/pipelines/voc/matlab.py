"""MATLAB files of strangers (version 5, as MATLAB 5 to 7.2 write them): their structure is looked through before scipy reads them.

scipy's reader is compiled, and trusts what it reads: a type of data that does not exist ends the process, cells within cells exhaust its
stack, and compressed parts fill the memory.

https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

import io
import math
import zlib
from collections.abc import Collection
from typing import Any, Literal

_HEADER_BYTES, _TAG_BYTES = 128, 8
# Types of data; numbers and text in UTF are values.
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_VALUES = {1, 2, 3, 4, _INT32, _UINT32, 7, 9, 12, 13, 16, 17, 18}
# Classes of arrays, and the flag of complex numbers.
_CELL, _STRUCT, _CHAR, _SPARSE, _NUMBERS = 1, 2, 4, 5, range(6, 16)
_IS_COMPLEX = 0x800
_MOST_LEVELS, _MOST_DIMENSIONS = 32, 32
_MOST_TIMES, _SPARE_BYTES = 64, 1 << 26


def read_mat(data: bytes, names: Collection[str]) -> dict[str, Any]:
    """Read variables of a MATLAB file.

    Args:
        data: the file's bytes.
        names: the variables; those that the file lacks are left out.

    Returns:
        What `scipy.io.loadmat` makes of each.

    Raises:
        ValueError: it is of another version, or damaged, or holds MATLAB's objects or functions, or would inflate to more than 64 times its
            size and 64 MiB.
    """
    from scipy.io import loadmat  # takes a second

    _look_through(data)
    try:
        return loadmat(io.BytesIO(data), variable_names=list(names))
    except Exception as error:
        raise _damaged(" ".join(str(error).split())) from error


def _damaged(what: str) -> ValueError:
    return ValueError(f"cannot be read as a MATLAB file ({what}); fetch it again")


def _look_through(data: bytes) -> None:
    """ValueError unless the file is of arrays alone, each of the parts that its class has."""
    mark = data[124:_HEADER_BYTES]
    if mark in (b"\0\2IM", b"\2\0MI"):
        raise ValueError("is a file of MATLAB 7.3 (HDF5), which is not read here; save it in MATLAB with -v7")
    if mark not in (b"\0\1IM", b"\1\0MI"):
        raise _damaged("it does not begin as one of version 5 does")
    parts = _Parts(memoryview(data)[_HEADER_BYTES:], "little" if mark.endswith(b"IM") else "big")
    left = _MOST_TIMES * len(data) + _SPARE_BYTES
    while not parts.at_end():
        kind, body = parts.next()
        if kind == _COMPRESSED:
            inflated = _inflated(body, left)
            left -= len(inflated)
            kind, body = _Parts(inflated, parts.order).next()
        _look_at_array(kind, _Parts(body, parts.order), _MOST_LEVELS)


class _Parts:
    """The parts of a file or of an array, one after the other: a tag with type and size, and a body that ends at a multiple of 8 bytes."""

    def __init__(self, data: memoryview, order: Literal["little", "big"]):
        self.order = order
        self._data, self._at = data, 0

    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def next(self) -> tuple[int, memoryview]:
        """Type and body."""
        tag = self._data[self._at : self._at + _TAG_BYTES]
        if len(tag) < _TAG_BYTES:
            raise _damaged("a part is missing or cut off")
        kind, num_bytes = self._number(tag[:4]), self._number(tag[4:])
        start, step = self._at + _TAG_BYTES, -(-num_bytes // 8) * 8
        if kind >> 16:  # up to 4 bytes, within the tag
            kind, num_bytes = kind & 0xFFFF, kind >> 16
            start, step = self._at + 4, 4
        body = self._data[start : start + num_bytes]
        if kind == _COMPRESSED:
            step = num_bytes
        if len(body) < num_bytes or num_bytes > step:
            raise _damaged("a part is longer than what holds it")
        self._at = start + step
        return kind, body

    def numbers(self, kind: int) -> list[int]:
        """The next part, which must be 32-bit integers of this type."""
        found, body = self.next()
        if found != kind or len(body) % 4:
            raise _damaged(f"type {found} of {len(body)} bytes stands in the place of type {kind}")
        return [self._number(body[i : i + 4]) for i in range(0, len(body), 4)]

    def values(self, num: int) -> None:
        """The next parts, which must be numbers or text."""
        for _ in range(num):
            kind, _body = self.next()
            if kind not in _VALUES:
                raise _damaged(f"type {kind} stands in the place of numbers")

    def _number(self, data: memoryview) -> int:
        return int.from_bytes(data, self.order)


def _look_at_array(kind: int, parts: _Parts, levels: int) -> None:
    """ValueError unless a part of type `kind` is an array, of arrays within arrays `levels` deep at most."""
    if kind != _MATRIX:
        raise _damaged(f"type {kind} stands in an array's place")
    if parts.at_end():  # an array without anything
        return
    if not levels:
        raise _damaged(f"cells within cells, more than {_MOST_LEVELS} deep")
    flags, sizes = parts.numbers(_UINT32), parts.numbers(_INT32)
    if len(flags) != 2 or not 2 <= len(sizes) <= _MOST_DIMENSIONS or max(sizes) >= 1 << 31:
        raise _damaged(f"{len(sizes)} dimensions, {sizes[:4]}")
    parts.values(1)  # its name
    which, of_complex, num_arrays = flags[0] & 0xFF, bool(flags[0] & _IS_COMPLEX), 0
    if which == _CHAR or which in _NUMBERS:
        parts.values(1 + of_complex)
    elif which == _SPARSE:
        parts.values(3 + of_complex)
    elif which == _CELL:
        num_arrays = math.prod(sizes)
    elif which == _STRUCT:
        num_arrays = math.prod(sizes) * _num_fields(parts)
    else:
        raise ValueError(
            f"holds an array of class {which}; only numbers, text, cells and structures are read here"
        )
    for _ in range(num_arrays):
        kind, body = parts.next()
        _look_at_array(kind, _Parts(body, parts.order), levels - 1)
    if not parts.at_end():
        raise _damaged("more parts than an array of its class has")


def _num_fields(parts: _Parts) -> int:
    (num_bytes, *more), (_, names) = parts.numbers(_INT32), parts.next()
    if not num_bytes or more or len(names) % num_bytes or not names:
        raise _damaged("a structure without fields")
    return len(names) // num_bytes


def _inflated(body: memoryview, most_bytes: int) -> memoryview:
    try:
        data = zlib.decompressobj().decompress(body, most_bytes + 1)  # 0 would be no limit
    except zlib.error as error:
        raise _damaged(str(error)) from None
    if len(data) > most_bytes:
        raise ValueError(
            f"inflates to more than {_MOST_TIMES} times its size, which no sound file does; fetch it again"
        )
    return memoryview(data)
