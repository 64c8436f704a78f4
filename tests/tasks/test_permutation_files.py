"""Test files of permutations: every layout that is read, and the errors for others."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from fastpsl.tasks import jigsaw
from fastpsl.tasks.jigsaw import permutations_digest, read_permutations

ROWS = np.array([[2, 0, 1], [0, 1, 2], [1, 2, 0], [1, 0, 2]])


def test_npy_counted_from_0_or_1(tmp_path: Path) -> None:
    for array in (ROWS.astype(np.int32), ROWS.astype(np.uint8), ROWS + 1):  # bbrattoli's files count from 1
        np.save(tmp_path / "p.npy", array)
        rows = read_permutations(tmp_path / "p.npy")
        assert (rows == ROWS).all() and rows.dtype == np.int64


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.array([[0, 1, 1]]), "row 0 is no permutation of 3"),
        (np.array([[1, 2, 3], [0, 1, 2]]), "row 0 is no permutation"),
        (np.array([[2, 3, 4], [4, 2, 3]]), "row 0 is no permutation of 3: .2, 3, 4."),
        (np.array([[0, 1], [1, 0], [0, 1]]), "1 of 3 permutations repeat another"),
        (np.zeros((0, 9), np.int64), "wanted"),
        (np.arange(9), "wanted"),
        (np.array([[0.0, 1.0]]), "wanted"),
        (np.array([[None]]), "Python objects"),
    ],
)
def test_npy_of_something_else(bad: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", bad)
    with pytest.raises(ValueError, match=words):
        read_permutations(tmp_path / "p.npy")


def noroozi(rows: list[list[int]]) -> bytes:
    """Return the layout of permutations_701.bin, which begins with the int32 701, 9, 1, 8, 3, 6, 9, 7."""
    values = [len(rows), len(rows[0])] + [value for row in rows for value in row]
    return struct.pack(f"<{len(values)}i", *values)


def test_noroozis_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "permutations_4_max.bin"
    path.write_bytes(noroozi((ROWS + 1).tolist()))
    assert path.stat().st_size == 4 * (2 + 4 * 3)
    rows = read_permutations(path)
    assert (rows == ROWS).all() and rows.dtype == np.int64
    monkeypatch.setattr(jigsaw, "_MAX_BYTES", 56)
    assert (read_permutations(path) == ROWS).all()
    path.write_bytes(noroozi([[2, 3, 1], [2, 2, 1]]))
    with pytest.raises(ValueError, match="row 1 is no permutation of 3: .2, 2, 1.;"):
        read_permutations(path)
    monkeypatch.setattr(jigsaw, "_MAX_BYTES", 31)
    with pytest.raises(ValueError, match="its size is 32 bytes"):
        read_permutations(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        noroozi((ROWS + 1).tolist())[:-4],
        noroozi((ROWS + 1).tolist()) + b"\0",
        (ROWS + 1).astype("<i4").tobytes(),
        struct.pack(">14i", 4, 3, *(ROWS + 1).flatten()),
        struct.pack("<2i", -1, -1) + b"\0\0\0\0",
        struct.pack("<2i", 0, 9),
    ],
    ids=["empty", "text", "cut short", "too long", "without a header", "big-endian", "negative", "no rows"],
)
def test_other_files_are_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.bin").write_bytes(data)
    with pytest.raises(ValueError, match="neither an .npy file of numbers nor a .bin") as refused:
        read_permutations(tmp_path / "p.bin")
    assert f"{len(data):,} bytes" in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_permutations(tmp_path / "none.npy")
    np.save(tmp_path / "p.npy", ROWS)
    (tmp_path / "p.npy").write_bytes((tmp_path / "p.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="p.npy: cannot be read"):
        read_permutations(tmp_path / "p.npy")


def test_a_digest_is_of_the_numbers_alone() -> None:
    """Checkpoints record it, so it may not change: the first 16 digits of int64's SHA-256."""
    rows = np.array([[0, 1, 2], [2, 0, 1]])
    expected = hashlib.sha256(struct.pack("<6q", 0, 1, 2, 2, 0, 1)).hexdigest()[:16]
    for same in (rows, rows.astype(np.int32), np.asfortranarray(rows)):
        assert permutations_digest(same) == expected
    assert permutations_digest(rows[::-1]) != expected
