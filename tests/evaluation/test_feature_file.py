"""Test the file of features itself: its size, what is on the disk when, and what an interruption leaves."""

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.engine.distributed import World
from fastpsl.evaluation import feature_file
from fastpsl.evaluation.feature_file import FORMAT, PartialFeatures, read_features
from fastpsl.files.atomic import partial_path
from tests.engine.tiny import one_process

WANTED = {"shape": [5, 2], "dtype": "float32"}
ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)


def publish(path: Path, rows: np.ndarray, **record: Any) -> None:
    """Write a file of five rows as three batches of three, the last of which is padding alone."""
    file = PartialFeatures(path, "digest", WANTED, one_process())
    for first in (0, 3, 6):
        part = np.full((3, 2), np.nan, np.float32)
        part[: max(0, 5 - first)] = rows[first : first + 3]
        file.write(first, part)
    file.save(5)
    file.publish(WANTED | {"format": FORMAT, "labels": None} | record, None)
    file.close()


def test_a_file_has_its_rows_and_nothing_else(tmp_path: Path) -> None:
    """Padding after the last row is dropped, and so is a larger file that another extraction left."""
    path = tmp_path / "F.npy"
    partial_path(path).write_bytes(b"x" * 10_000)
    publish(path, ROWS)
    np.save(tmp_path / "plain.npy", ROWS)
    assert path.read_bytes() == (tmp_path / "plain.npy").read_bytes()


def test_features_never_stand_beside_the_record_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "F.npy", feature_file.write_atomically
    publish(path, ROWS, weights="old")

    def killed(target: Path, *arguments: Any) -> None:
        if target == feature_file.record_path(path):
            raise KeyboardInterrupt
        write(target, *arguments)

    monkeypatch.setattr(feature_file, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(path, ROWS + 1, weights="new")
    assert np.array_equal(np.load(path), ROWS + 1) and read_features(path) is None


def test_rows_are_on_the_disk_before_they_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, write, sync = list[str](), feature_file.write_atomically, os.fsync
    path = tmp_path / "F.npy"

    def note(target: Path, *arguments: Any) -> None:
        done.append(f"wrote {target.name}")
        write(target, *arguments)

    def synced(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(partial_path(path))):
            done.append("rows")
        sync(descriptor)

    monkeypatch.setattr(feature_file, "write_atomically", note)
    monkeypatch.setattr(feature_file.os, "fsync", synced)
    file = PartialFeatures(path, "digest", WANTED, one_process())
    for num_rows in (2, 5):
        file.write(0, ROWS[:num_rows])
        file.save(num_rows)
    file.close()
    assert done == ["rows", "wrote .F.npy.progress"] * 2


def partial(out: Path, world: World) -> PartialFeatures:
    wanted = {"shape": [10, 3], "dtype": "float32"}
    return PartialFeatures(out, "digest", wanted, world)


def test_broken_samples_of_all_ranks_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks have told of samples 3 and 8; rank 0's note and rank 0 itself know both."""
    others: list[set[int]] = [{8}]
    monkeypatch.setattr(feature_file, "gather_objects", lambda world, own: [own, *others])
    with closing(partial(tmp_path / "F.npy", one_process())) as file:
        file.bad.add(3)
        file.save(6)
        assert file.bad == {3, 8}
    assert json.loads((tmp_path / ".F.npy.progress").read_text()) == {
        "digest": "digest", "num_rows": 6, "bad": [3, 8],
    }  # fmt: skip


def test_rows_past_the_last_one_are_dropped(tmp_path: Path) -> None:
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    with closing(partial(tmp_path / "F.npy", one_process())) as file:
        size = file.partial.stat().st_size
        file.write(8, rows)
        file.write(10, rows)
        assert file.partial.stat().st_size == size
        assert file.partial.read_bytes()[-2 * 12 :] == rows[:2].tobytes()


@pytest.mark.parametrize("change", [{"shape": [10, 4]}, {"shape": [9, 3]}, {"format": 2}, {"format": None}])
def test_a_record_of_other_rows_or_of_another_format_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    np.save(tmp_path / "F.npy", np.zeros((10, 3), np.float32))
    record = {"format": 1, "shape": [10, 3]}
    (tmp_path / "F.json").write_text(json.dumps(record))
    assert read_features(tmp_path / "F.npy") is not None
    (tmp_path / "F.json").write_text(json.dumps(record | change))
    assert read_features(tmp_path / "F.npy") is None


def test_a_partial_file_that_was_cut_is_begun_anew(tmp_path: Path) -> None:
    rows = np.ones((6, 3), np.float32)
    with closing(partial(tmp_path / "F.npy", one_process())) as file:
        file.write(0, rows)
        file.save(6)
        path, size = file.partial, file.partial.stat().st_size
    with closing(partial(tmp_path / "F.npy", one_process())) as file:
        assert file.num_rows == 6
    os.truncate(path, size - 12)
    with closing(partial(tmp_path / "F.npy", one_process())) as file:
        assert file.num_rows == 0 and path.stat().st_size == size
