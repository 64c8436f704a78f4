import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import override

from fastpsl.files import atomic
from fastpsl.files.atomic import write_atomically
from fastpsl.models.checkpoint import CheckpointManager, read_checkpoint


def state(value: float) -> dict[str, object]:
    return {"weights": torch.full((1000,), float(value)), "position": {"step": int(value)}}


def test_the_last_few_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    for step in (5, 10, 100_000):
        checkpoints.save(step, state(step))
    assert [p.name for p in checkpoints.paths()] == ["step-00000010.pt", "step-00100000.pt"]
    result = checkpoints.newest()
    assert result and result[0].name == "step-00100000.pt" and result[1]["position"] == {"step": 100_000}
    assert torch.equal(result[1]["weights"], torch.full((1000,), 100_000.0)) and not result[2]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_corrupt_newest_gives_way_to_the_one_before_and_is_named(tmp_path: Path, damage: str) -> None:
    checkpoints = CheckpointManager(tmp_path, keep=3)
    checkpoints.save(1, state(1))
    newest = checkpoints.save(2, state(2))
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[data.index(torch.full((8,), 2.0).numpy().tobytes()) + 9] ^= 1  # in the weights
    newest.write_bytes({"empty": b"", "text": b"hello"}.get(damage, bytes(data)))
    with pytest.raises(ValueError, match=newest.name):
        read_checkpoint(newest)
    result = checkpoints.newest()
    assert result and result[0].name == "step-00000001.pt"
    assert len(result[2]) == 1 and newest.name in result[2][0]
    for path in checkpoints.paths():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="can be read"):
        checkpoints.newest()


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "resnet50.pt"
    torch.save({"conv1.weight": torch.zeros(3)}, foreign)
    with pytest.raises(ValueError, match="not a fastpsl checkpoint"):
        read_checkpoint(foreign)
    with pytest.raises(ValueError, match="no checkpoint"):
        read_checkpoint(tmp_path / "absent.pt")


FULL_DISK = """
import errno, os, resource, signal, sys, torch
from pathlib import Path
from fastpsl.models.checkpoint import CheckpointManager
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints, state = CheckpointManager(Path(sys.argv[1])), {"a": torch.zeros(500), "b": torch.ones(30_000)}
size = checkpoints.save(1, state).stat().st_size
for limit in sorted({*range(0, size, 3000), *range(size - 900, size, 30)}):  # bytes left
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoints.save(2, state)
    except OSError as error:
        print(error.errno == errno.EFBIG, Path(error.filename).name, os.listdir(sys.argv[1]))
    else:
        print("written", limit)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
checkpoints.save(3, state)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """Any write may fail. For some of them, torch reports an unexpected position."""
    process = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], check=True, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert set(process.stdout.splitlines()) == {"True step-00000002.pt ['step-00000001.pt']"}
    assert process.stdout.count("\n") > 70
    result = CheckpointManager(tmp_path).newest()
    assert result and result[0].name == "step-00000003.pt" and torch.equal(result[1]["b"], torch.ones(30_000))


def test_replacing_a_file_shows_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["status.json"]


def test_what_could_not_be_read_again_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="tensors, numbers"):
        CheckpointManager(tmp_path).save(1, {"task": {"labels": np.zeros(3)}})
    assert not os.listdir(tmp_path)


def test_no_memory_for_a_write_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        @override
        def write(self, data: Any) -> int:
            raise MemoryError

    monkeypatch.setattr(atomic, "open", Full, raising=False)
    with pytest.raises(MemoryError):
        CheckpointManager(tmp_path).save(1, state(1))
    assert not os.listdir(tmp_path)


def test_a_checkpoint_of_an_older_step_is_kept_beside_newer_ones(tmp_path: Path) -> None:
    checkpoints = CheckpointManager(tmp_path, keep=1)
    checkpoints.save(9, state(9))
    assert checkpoints.save(3, state(3)).exists()
