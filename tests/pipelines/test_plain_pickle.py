"""Pickles of plain data, by Python 2 and 3 and every protocol, and hostile ones."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from fastpsl.pipelines.sources.published import load_plain

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_lists_of_them(protocol: int) -> None:
    read_only = ARRAY.copy()
    read_only.flags.writeable = False
    by_columns = ARRAY[:, (1, 0, 3, 2)]
    assert by_columns.flags.f_contiguous and not by_columns.flags.c_contiguous
    arrays: list[np.ndarray] = [ARRAY, by_columns, ARRAY[::2], read_only, np.zeros((0, 4), np.float32)]
    arrays += [ARRAY.astype(kind) for kind in (np.float64, np.int64, np.uint8, np.uint16, np.int32)]
    whole: dict[str, Any] = {
        "boxes": arrays,
        "ids": [7, np.int64(9), "000005", np.float64(0.5)],
        "one": ARRAY,
        "text": "A: b",
    }
    loaded = load_plain(pickle.dumps(whole, protocol))
    assert loaded.keys() == whole.keys() and loaded["text"] == "A: b"
    assert loaded["ids"] == [7, 9, "000005", 0.5] and type(loaded["ids"][1]) is int
    for expected, array in zip([*arrays, ARRAY], [*loaded["boxes"], loaded["one"]], strict=True):
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert np.array_equal(array, expected)


def of_python_2(array: np.ndarray, kind: bytes, order: bytes = b"<") -> bytes:
    """Pickle {"boxes": [array]} like cPickle's second protocol, with strings as bytes."""
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R(K\x03U\x01" + order
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(b"K" + bytes([side]) for side in array.shape) + b"t"
    data = b"T" + struct.pack("<i", array.nbytes) + array.tobytes()
    return b"\x80\x02}U\x05boxes](" + head + b"(K\x01" + shape + dtype + b"\x89" + data + b"tbes."


def test_python_2s() -> None:
    loaded = load_plain(of_python_2(ARRAY, b"f4"))
    assert list(loaded) == [b"boxes"] and np.array_equal(loaded[b"boxes"][0], ARRAY)
    assert loaded[b"boxes"][0].dtype == np.float32


class Evil:
    def __init__(self, *reduced: Any):
        self.reduced = reduced

    @override
    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_refused(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    arrays: list[np.ndarray] = [
        np.array([[1], "x"], object), np.array(["text"]), np.zeros(3, np.complex64), np.zeros(3, ">f4"),
        np.zeros(3, [("a", "f4")]), np.array(["2020"], "M8[Y]"),
    ]  # fmt: skip
    for array in arrays:
        with pytest.raises(ValueError, match="an array of another kind"):
            load_plain(pickle.dumps({"boxes": [array]}, protocol))
    hostile = (Evil(os.mkdir, (str(mark),)), Evil(eval, ("1",)), Evil(bytes.fromhex, ("00",)))
    for value in (*hostile, {1}.__class__, os.getcwd):
        with pytest.raises(ValueError, match="is not let in"):
            load_plain(pickle.dumps({"boxes": [value]}, protocol))
    assert not mark.exists()


def test_damaged_arrays_are_refused() -> None:
    whole = of_python_2(ARRAY, b"f4")
    shape = b"(K\x03K\x04t"
    for damaged in (
        of_python_2(ARRAY, b"f8"),
        of_python_2(ARRAY, b"f4", b">"),
        of_python_2(ARRAY, b"O8"),
        of_python_2(ARRAY, b"V4"),
        whole.replace(shape, b"(K\x03K\x05t"),
        whole.replace(shape, b"(J\xfd\xff\xff\xffJ\xfc\xff\xff\xfft"),
        whole.replace(shape, b"(NK\x04t"),
        whole.replace(b"\x89T", b"NT"),
    ):
        assert damaged != whole
        with pytest.raises(ValueError, match="an array of another kind"):
            load_plain(damaged)
    for end in range(len(whole)):
        with pytest.raises(ValueError, match="a pickle that is not of plain data"):
            load_plain(whole[:end])
