"""MATLAB files: read as scipy reads them, in both byte orders; files that would crash scipy are refused."""

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from fastpsl.pipelines.datasets.voc.annotations import _inflated, read_mat


def cells(*items: object) -> np.ndarray:
    row = np.empty((1, len(items)), object)
    row[0, :] = items
    return row


ARRAYS: dict[str, Any] = {
    "boxes": cells(np.arange(8.0, dtype=np.float32).reshape(2, 4), np.zeros((0, 4)), cells("a name", "")),
    "mask": np.arange(35, dtype=np.uint8).reshape(5, 7),
    "whole": np.array([[-(2**40), 2**62]]),
    "complex": np.array([[1 + 2j, 3]]),
    "true": np.array([[True, False]]),
    "text": np.array(["one row", "another"]),
    "parts": {"Segmentation": np.ones((3, 3, 2), np.uint16), "deep": {"deeper": cells(1.5)}},
    "rows": np.array([(1, "x"), (2, "yy")], [("first", object), ("second", object)]),
    "few": csc_array(([1.0, 2.0], ([0, 3], [1, 2])), shape=(4, 5)),
}


def written(arrays: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and a.dtype.names:
        return a.dtype == b.dtype and all(same(a[name], b[name]) for name in a.dtype.names)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return a.shape == b.shape and all(map(same, a.flat, b.flat))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and ((a != b).nnz == 0 if hasattr(a, "nnz") else bool(a == b))


def turned(data: bytes) -> bytes:
    """Convert a file of numbers to the other byte order: tags, sizes and values."""
    row = bytearray(data[:124] + b"\1\0MI")
    at = 128
    kind, num_bytes = struct.unpack_from("<II", data, at)
    row += struct.pack(">II", kind, num_bytes)
    at += 8
    while at < len(data):
        kind, num_bytes = struct.unpack_from("<II", data, at)
        if kind >> 16:  # the tag holds a short name
            row += struct.pack(">I", kind) + data[at + 4 : at + 8]
            at += 8
            continue
        body, width = data[at + 8 : at + 8 + num_bytes], {1: 1, 5: 4, 6: 4, 9: 8}[kind]
        row += struct.pack(">II", kind, num_bytes)
        row += b"".join(body[i : i + width][::-1] for i in range(0, num_bytes, width)) + bytes(-num_bytes % 8)
        at += 8 + num_bytes + -num_bytes % 8
    return bytes(row)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read_as_scipy_reads_it(compressed: bool) -> None:
    data = written(ARRAYS, compressed)
    expected = loadmat(io.BytesIO(data))
    arrays = read_mat(data, ARRAYS)
    assert set(ARRAYS) <= set(arrays)
    for name in ARRAYS:
        assert same(arrays[name], expected[name]), name
    assert arrays["boxes"][0, 2][0, 0].item() == "a name"
    only = read_mat(data, ("mask", "none"))
    assert "boxes" not in only and "none" not in only and np.array_equal(only["mask"], ARRAYS["mask"])


def test_the_other_order_of_bytes() -> None:
    values = np.arange(6.0).reshape(2, 3)
    data = turned(written({"a": values}))
    assert np.array_equal(read_mat(data, ("a",))["a"], values)
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file"):
        read_mat(data[:-20], ("a",))


@pytest.mark.parametrize("name", ["boxes", "parts", "few", "complex"])
def test_any_byte_may_be_wrong(name: str) -> None:
    """Wrong types, missing parts or sizes of 0, which can crash the process in scipy, are errors."""
    data = written({name: ARRAYS[name]})
    numbers = (0, 1, 2, 8, 14, 15, 17, 255)
    refused = 0
    for at, number in itertools.product(range(124, len(data)), numbers):
        changed = bytearray(data)
        changed[at] = number
        try:
            read_mat(bytes(changed), (name,))
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(data)


@pytest.mark.parametrize("cut", [0, 5, 127, 128, 133, 200, -1, -9])
def test_cut_off(cut: int) -> None:
    data = written({"boxes": ARRAYS["boxes"]})
    if cut == 128:
        assert "boxes" not in read_mat(data[:cut], ("boxes",))
        return
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file"):
        read_mat(data[:cut], ("boxes",))


def part(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def array(which: int, sizes: tuple[int, ...], rest: bytes) -> bytes:
    head = (
        part(6, struct.pack("<II", which, 0))
        + part(5, struct.pack(f"<{len(sizes)}i", *sizes))
        + part(1, b"a")
    )
    return part(14, head + rest)


NUMBER = array(6, (1, 1), part(9, bytes(8)))
DEEP = NUMBER
for _ in range(40):
    DEEP = array(1, (1, 1), DEEP)
REFUSED = {
    "numbers in an array's place": part(9, bytes(8)),
    "an array in the numbers' place": array(6, (1, 1), NUMBER),
    "no numbers": array(6, (1, 1), b"") + NUMBER,
    "more than a cell has": array(1, (1, 1), NUMBER * 2),
    "cells that are not there": array(1, (1 << 30, 1 << 30), NUMBER),
    "a negative size": array(1, (-1, 1), b""),
    "one dimension": array(6, (1,), part(9, bytes(8))),
    "a hundred dimensions": array(6, (1,) * 100, part(9, bytes(8))),
    "cells within cells, more than 32 deep": DEEP,
    "an object": array(3, (1, 1), NUMBER),
    "a function": array(16, (1, 1), NUMBER),
    "a structure with names of 0 bytes": array(2, (1, 1), part(5, bytes(4)) + part(1, b"ab") + NUMBER),
    "a structure without fields": array(2, (1 << 20, 1 << 20), part(5, b"\1\0\0\0") + part(1, b"")),
    "half of a compressed part": part(15, zlib.compress(NUMBER)[:20]),
    "no compressed part": part(15, b"nonsense"),
    "compressed twice": part(15, zlib.compress(part(15, zlib.compress(NUMBER)))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_sound_file_holds(what: str) -> None:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    assert read_mat(head + NUMBER, ("a",))["a"].item() == 0
    with pytest.raises(ValueError, match="download it again|are read here"):
        read_mat(head + REFUSED[what], ("a",))


def test_other_versions() -> None:
    for head, words in (
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", "7.3 .* with -v7"),
        (b"no such thing" * 20, "download it again"),
        (bytes(200), "download it again"),
    ):
        with pytest.raises(ValueError, match=words):
            read_mat(head + bytes(64), ("a",))


def test_compressed_parts_inflate_to_a_limit() -> None:
    """134 MB from 130 kB, in one part or in two."""
    for arrays in ({"a": np.zeros(1 << 24)}, {"a": np.zeros(1 << 23), "b": np.zeros(1 << 23)}):
        data = written(arrays, compressed=True)
        with pytest.raises(ValueError, match="inflates to more than 64 times its size"):
            read_mat(data, ("b",))


@pytest.mark.parametrize("left", [0, 1, 999, 1000])
def test_what_is_left_of_the_limit_is_a_limit(left: int) -> None:
    """Also if nothing is left, although 0 means no limit to zlib."""
    packed = memoryview(zlib.compress(bytes(1000)))
    if left == 1000:
        assert _inflated(packed, left) == bytes(1000)
        return
    with pytest.raises(ValueError, match="inflates to more"):
        _inflated(packed, left)
