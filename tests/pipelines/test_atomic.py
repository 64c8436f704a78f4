"""Files that several processes write at one moment, and what a killed one leaves."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fastpsl.files import atomic
from fastpsl.files.atomic import atomic_file, remove_leftovers, write_atomically
from fastpsl.models.checkpoint import CheckpointManager
from tests.engine.tiny import tiny_run
from tests.warm import CONTEXT

ROUNDS, WRITERS = 20, 4


def write_in_rounds(path: Path, number: int, barrier: Any) -> None:
    for _ in range(ROUNDS):
        barrier.wait(60)
        write_atomically(path, bytes([number]) * 100_000, durable=False)


def test_writers_of_one_moment_all_succeed(tmp_path: Path) -> None:
    path, barrier = tmp_path / "x.beton.json", CONTEXT.Barrier(WRITERS)
    writers = [
        CONTEXT.Process(target=write_in_rounds, args=(path, number, barrier)) for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    data = path.read_bytes()
    assert data in [bytes([number]) * 100_000 for number in range(WRITERS)]
    assert os.listdir(tmp_path) == [path.name]


def test_threads_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, replaced = threading.Barrier(2), list[str]()

    def replace(old: Path, new: Path) -> None:
        replaced.append(str(old))
        both.wait(60)  # both are written, and neither has its name
        os.rename(old, new)

    monkeypatch.setattr(atomic.os, "replace", replace)
    writers = [threading.Thread(target=write_atomically, args=(tmp_path / "a", b"x")) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(set(replaced)) == 2 and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "\U0001f984" * 63], ids=["1", "2", "4 bytes"])
def test_names_may_be_as_long_as_the_disk_allows(name: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


def test_a_checkpoint_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / ".step-00000007.pt.4321-0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".curve.png.4321-0123abcd.tmp").write_bytes(b"another's")
    checkpoints = CheckpointManager(tmp_path)
    assert checkpoints.newest() is None
    checkpoints.save(8, {})
    assert sorted(os.listdir(tmp_path)) == [".curve.png.4321-0123abcd.tmp", "step-00000008.pt"]


def test_a_run_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    for name in ("config.json", "epochs.jsonl", "labels.npz", "curve.png"):
        (tmp_path / f".{name}.4321-0123abcd.tmp").write_bytes(b"half")
    tiny_run(tmp_path).close()
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".curve.png.4321-0123abcd.tmp"]


@pytest.mark.parametrize("name", ["a", "x" * 60])
def test_leftovers_of_other_names_stay(name: str, tmp_path: Path) -> None:
    with atomic_file(tmp_path / name) as own, atomic_file(tmp_path / f"{name}.json") as others:
        remove_leftovers(tmp_path, name)
        assert os.listdir(tmp_path) == [os.path.basename(others.name)]
        Path(own.name).touch()  # for the end of the block
