"""A safe reader of untrusted MATLAB files (version 5, which MATLAB 5 to 7.2 write).

scipy's reader is compiled and trusts its input: an unknown type of data ends the process, nested cells
exhaust its stack, and compressed parts fill the memory. So the structure of a file is checked first.

https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

import io
import itertools
import math
import zlib
from collections.abc import Collection
from typing import Any, Literal

_HEADER_BYTES, _TAG_BYTES = 128, 8
# The types of data in a part's tag; numbers and UTF text are values.
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_VALUES = {1, 2, 3, 4, _INT32, _UINT32, 7, 9, 12, 13, 16, 17, 18}
# The classes of arrays, and the flag of complex numbers.
_CELL, _STRUCT, _CHAR, _SPARSE, _NUMBERS = 1, 2, 4, 5, range(6, 16)
_IS_COMPLEX = 0x800
_MOST_LEVELS, _MOST_DIMENSIONS = 32, 32
_MOST_TIMES, _SPARE_BYTES = 64, 1 << 26


def read_mat(data: bytes, names: Collection[str]) -> dict[str, Any]:
    """Read variables of a MATLAB file.

    Args:
        data: The file's bytes.
        names: The variables; missing ones are left out.

    Returns:
        For each variable, what `scipy.io.loadmat` returns.

    Raises:
        ValueError: The file has another version, is damaged, holds MATLAB's objects or functions, or would
            inflate to more than 64 times its size and 64 MiB.
    """
    from scipy.io import loadmat  # the import takes a second

    _check_structure(data)
    try:
        return loadmat(io.BytesIO(data), variable_names=list(names))
    except Exception as error:
        raise _damage_error(" ".join(str(error).split())) from error


def _damage_error(what: str) -> ValueError:
    return ValueError(f"cannot be read as a MATLAB file ({what}); download it again")


def _check_structure(data: bytes) -> None:
    """Raise ValueError unless the file holds only arrays, each with the parts of its class."""
    mark = data[124:_HEADER_BYTES]
    if mark in (b"\0\2IM", b"\2\0MI"):
        raise ValueError("is a file of MATLAB 7.3 (HDF5), which is not read here; save it in MATLAB with -v7")
    if mark not in (b"\0\1IM", b"\1\0MI"):
        raise _damage_error("it does not begin as one of version 5 does")
    parts = _Parts(memoryview(data)[_HEADER_BYTES:], "little" if mark.endswith(b"IM") else "big")
    bytes_left = _MOST_TIMES * len(data) + _SPARE_BYTES
    while not parts.at_end():
        kind, body = parts.next()
        if kind == _COMPRESSED:
            array_data = _inflated(body, bytes_left)
            bytes_left -= len(array_data)
            kind, body = _Parts(array_data, parts.order).next()
        _check_array(kind, _Parts(body, parts.order), _MOST_LEVELS)


class _Parts:
    """The parts of a file or an array: each a tag with type and size, and a body padded to 8 bytes."""

    def __init__(self, data: memoryview, order: Literal["little", "big"]):
        self.order = order
        self._data, self._at = data, 0

    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def next(self) -> tuple[int, memoryview]:
        """Return the type and the body of the next part."""
        tag = self._data[self._at : self._at + _TAG_BYTES]
        if len(tag) < _TAG_BYTES:
            raise _damage_error("a part is missing or cut off")
        kind, num_bytes = self._number(tag[:4]), self._number(tag[4:])
        start, step = self._at + _TAG_BYTES, -(-num_bytes // 8) * 8
        if kind >> 16:  # up to 4 bytes lie within the tag
            kind, num_bytes = kind & 0xFFFF, kind >> 16
            start, step = self._at + 4, 4
        body = self._data[start : start + num_bytes]
        if kind == _COMPRESSED:
            step = num_bytes
        if len(body) < num_bytes or num_bytes > step:
            raise _damage_error("a part is longer than what holds it")
        self._at = start + step
        return kind, body

    def numbers(self, kind: int) -> list[int]:
        """Return the next part's 32-bit integers; raise ValueError unless it has this type."""
        part_kind, body = self.next()
        if part_kind != kind or len(body) % 4:
            raise _damage_error(f"type {part_kind} of {len(body)} bytes instead of type {kind}")
        return [self._number(body[i : i + 4]) for i in range(0, len(body), 4)]

    def values(self, num: int) -> None:
        """Skip the next `num` parts; raise ValueError unless they are numbers or text."""
        for _ in range(num):
            kind, _body = self.next()
            if kind not in _VALUES:
                raise _damage_error(f"type {kind} instead of numbers")

    def _number(self, data: memoryview) -> int:
        return int.from_bytes(data, self.order)


def _check_array(kind: int, parts: _Parts, levels: int) -> None:
    """Raise ValueError unless a part is an array, with arrays nested at most `levels` deep."""
    if kind != _MATRIX:
        raise _damage_error(f"type {kind} instead of an array")
    if parts.at_end():  # an empty array
        return
    if not levels:
        raise _damage_error(f"cells within cells, more than {_MOST_LEVELS} deep")
    flags, sizes = parts.numbers(_UINT32), parts.numbers(_INT32)
    if len(flags) != 2 or not 2 <= len(sizes) <= _MOST_DIMENSIONS or max(sizes) >= 1 << 31:
        raise _damage_error(f"{len(sizes)} dimensions, {sizes[:4]}")
    parts.values(1)  # its name
    array_class, is_complex, num_arrays = flags[0] & 0xFF, bool(flags[0] & _IS_COMPLEX), 0
    if array_class == _CHAR or array_class in _NUMBERS:
        parts.values(2 if is_complex else 1)
    elif array_class == _SPARSE:
        _check_sparse(parts, sizes)
        parts.values(2 if is_complex else 1)
    elif array_class == _CELL:
        num_arrays = math.prod(sizes)
    elif array_class == _STRUCT:
        num_arrays = math.prod(sizes) * _num_fields(parts)
    else:
        raise ValueError(
            f"holds an array of class {array_class}; only numbers, text, cells and structures are read here"
        )
    for _ in range(num_arrays):
        kind, body = parts.next()
        _check_array(kind, _Parts(body, parts.order), levels - 1)
    if not parts.at_end():
        raise _damage_error("more parts than an array of its class has")


def _check_sparse(parts: _Parts, sizes: list[int]) -> None:
    """Raise ValueError unless a sparse matrix's values lie within it; scipy 1.15 writes them anywhere."""
    rows, starts = parts.numbers(_INT32), parts.numbers(_INT32)
    rises = all(first <= second for first, second in itertools.pairwise([0, *starts, len(rows)]))
    if len(sizes) != 2 or len(starts) != sizes[1] + 1 or not rises or any(row >= sizes[0] for row in rows):
        raise _damage_error("values outside a sparse matrix")


def _num_fields(parts: _Parts) -> int:
    (num_bytes, *more), (_, names) = parts.numbers(_INT32), parts.next()
    if not num_bytes or more or len(names) % num_bytes or not names:
        raise _damage_error("a structure without fields")
    return len(names) // num_bytes


def _inflated(body: memoryview, most_bytes: int) -> memoryview:
    try:
        data = zlib.decompressobj().decompress(body, most_bytes + 1)  # 0 would mean no limit
    except zlib.error as error:
        raise _damage_error(str(error)) from None
    if len(data) > most_bytes:
        raise ValueError(
            f"inflates to more than {_MOST_TIMES} times its size, which no sound file does; download it again"
        )
    return memoryview(data)
