"""Rows of a table on disk equal those of the whole table in memory, and a file cut short is an error."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton import shard
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import Shard, Table, TruncatedError
from tests.faults.runs import beton

ROW = np.dtype([("a", "u1"), ("b", "<u8"), ("c", "<u2")], align=True)
START, NUM = 13, 1000


@pytest.fixture(params=["C", "Python"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test by the C library, where it was built, and without it."""
    if request.param == "Python":
        monkeypatch.setattr(shard, "library", lambda: None)
    elif shard.library() is None:
        pytest.skip("the C library was not built")
    return str(request.param)


def test_rows_are_those_of_the_file(by: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(START + NUM * ROW.itemsize)
    (tmp_path / "file").write_bytes(data)
    expected = np.frombuffer(data, ROW, offset=START)
    indices = np.random.default_rng(1).integers(0, NUM, 300)
    with open(tmp_path / "file", "rb") as file:
        rows = Table(file.fileno(), START, ROW, NUM)
        assert len(rows) == NUM
        for which in (slice(None), slice(3, 90), slice(NUM - 1, NUM + 5), slice(7, 7), indices, indices[:0]):
            got = rows[which]
            assert got.dtype == ROW and got.tolist() == expected[which].tolist()


def test_a_file_cut_short_is_an_error(by: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(START + NUM * ROW.itemsize))
    with open(tmp_path / "file", "r+b") as file:
        rows = Table(file.fileno(), START, ROW, NUM)
        file.truncate(START + 500 * ROW.itemsize - 1)
        assert len(rows[:499]) == len(rows[np.arange(499)]) == 499
        for which in (slice(None), np.array([0, 499])):
            with pytest.raises(TruncatedError):
                rows[which]


def test_an_error_of_the_disk_is_told_apart(by: str, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        Table(folder, 0, ROW, NUM)[np.array([0])]
    os.close(folder)


def test_a_beton_cut_short_after_the_check_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = beton(tmp_path / "x.beton")
    monkeypatch.setattr(Shard, "check_unchanged", lambda self: None)
    with Beton(path) as data:
        os.truncate(path, path.stat().st_size * 2 // 3)
        with pytest.raises(ValueError, match=r"x\.beton: was truncated while it was in use"):
            data.rows(np.arange(8))
