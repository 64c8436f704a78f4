"""The job array of docs/how_to/clusters.md, one of whose tasks is killed."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.cluster import LIMIT_S, fastpsl, processes, slurm, submit, wait_for, why_not
from tests.pipelines.photos import jpeg, photo
from tests.programs import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]

NUM = 2400


def script() -> str:
    """Return the array's script as the page has it, with 4 parts, and a core for each."""
    (text,) = (
        part for part in (ROOT / "docs/how_to/clusters.md").read_text().split("```") if "--array=0-63" in part
    )
    for old, new in (("0-63", "0-3"), ("/64", "/4"), ("--cpus-per-task=8", "--cpus-per-task=1")):
        assert old in text
        text = text.replace(old, new)
    return text.removeprefix("bash\n")


def write_all(folder: Path) -> str:
    return submit("--chdir", str(folder), str(folder / "pack.sh"))


def wait_for_array(number: str) -> None:
    wait_for(lambda: not slurm("squeue", "--noheader", f"--jobs={number}"))


def test_an_array_of_which_a_task_is_killed_is_completed_by_the_same_call(tmp_path: Path) -> None:
    files = [jpeg(photo(i, 800, 1000)) for i in range(4)]
    for i in range(NUM):
        path = tmp_path / "photos" / "train" / str(i % 4) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[i % 4])
    (tmp_path / "pack.sh").write_text(script())
    number = write_all(tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while not (tmp_path / ".train-2.beton.journal").exists():  # the task writes for about a second
        assert time.monotonic() < deadline
    for pid in processes(f"SLURM_ARRAY_JOB_ID={number}", "SLURM_ARRAY_TASK_ID=2"):
        os.kill(pid, signal.SIGKILL)
    wait_for_array(number)
    wholes = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.beton")}
    assert wholes.keys() == {"train-0.beton", "train-1.beton", "train-3.beton"}
    verified = fastpsl("data", "verify", "train-*.beton", cwd=tmp_path)
    assert verified.returncode == 2
    assert "photos/train is missing; write it with --shard 2/4" in verified.stdout
    wait_for_array(write_all(tmp_path))
    verified = fastpsl("data", "verify", "train-*.beton", cwd=tmp_path)
    assert verified.returncode == 0 and verified.stdout.count("all sound") == 4, verified
    assert verified.stdout.count(f"{NUM // 4} samples") == 4
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in wholes} == wholes
