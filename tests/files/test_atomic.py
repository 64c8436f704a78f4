"""Files that several processes write at one moment, what a killed one leaves, and damaged lines of JSON."""

import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from fastpsl.engine.reporter import MetricsFile
from fastpsl.files import atomic
from fastpsl.files.atomic import atomic_file, remove_leftovers, write_atomically
from fastpsl.files.run_folder import read_lines
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.plots.charts import draw_curve
from fastpsl.tasks.pseudo_labels.scores import draw_label_curves
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


LINES = [
    f'{{"run_step": {n}, "stage": "S1", "level": 1, "step": {n}, "lr": 0.1, "loss": {n}.5}}\n'.encode()
    for n in range(1, 7)
]
DAMAGE = {
    "zeros within": bytes(20) + LINES[2][20:],
    "zeros": bytes(80) + b"\n",
    "another encoding": b"\xff\xfe" + LINES[2],
    "a number": b"7\n",
    "a list": b"[]\n",
    "nested": b"[" * 100_000 + b"\n",
    "digits": b'{"run_step": ' + b"9" * 5000 + b', "stage": "S1"}\n',
    "no step": b'{"stage": "S1"}\n',
    "a step that is no number": b'{"run_step": "3", "stage": "S1"}\n',
    "two in one": LINES[2][:-1] + LINES[3],
    "too long": b" " * (1 << 20) + LINES[2],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_comes_before_the_damage_is_kept_and_the_rest_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join([*LINES[:2], DAMAGE[damage], *LINES[3:]]))
    with pytest.warns(UserWarning, match="line 3 cannot be read") as warned:
        file = MetricsFile(path, 5)
    assert path.read_bytes() == b"".join(LINES[:2])
    copy = tmp_path / "metrics.jsonl.damaged"
    assert copy.read_bytes() == b"".join([*LINES[:2], DAMAGE[damage], *LINES[3:]])
    num_lost = 5 if damage == "too long" else 4
    assert str(warned[0].message).startswith(f"{path}: ") and f"{num_lost} lines" in str(warned[0].message)
    assert len(str(warned[0].message).splitlines()) == 1
    file.append([json.loads(LINES[2])])
    assert file.losses("S1") == [1.5, 2.5, 3.5]


def test_what_would_be_cut_off_anyway_and_half_a_line_are_no_news(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path.write_bytes(b"".join(LINES[:4]) + b"7\n")
        MetricsFile(path, 3)
        assert path.read_bytes() == b"".join(LINES[:3])
        path.write_bytes(b"".join(LINES[:4]) + LINES[4][:30])
        assert [line.row["run_step"] for line in read_lines(path)] == [1, 2, 3, 4]
        assert [line.end for line in read_lines(path)][-1] == os.path.getsize(path) - 30
        assert list(read_lines(tmp_path / "absent.jsonl")) == []
        MetricsFile(path, 4)
        assert path.read_bytes() == b"".join(LINES[:4]) and list(tmp_path.iterdir()) == [path]


def test_images_are_drawn_of_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES[:3]) + b"\x00\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 4"):
        assert draw_curve(tmp_path).read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "epochs.jsonl").write_bytes(b"{\n")
    with pytest.warns(UserWarning, match=r"epochs\.jsonl: line 1 "):
        assert draw_label_curves(tmp_path) is None
