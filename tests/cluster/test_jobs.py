"""A training as a job of two nodes: it finishes, and is interrupted in all ways that Slurm knows.

Each interrupted job goes on, and ends as one that was left alone, bit for bit.
"""

import getpass
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpsl.commands.launch import Slurm
from tests.cluster.cluster import (
    fastpsl,
    job,
    kill_node,
    processes,
    slurm,
    start_nodes,
    submit,
    wait_for,
    wait_for_end,
    why_not,
)
from tests.programs import ROOT, digests, newest_checkpoint, newest_step

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]

NUM_STEPS = 12  # of each of three stages
PACED = str(ROOT / "tests" / "cluster" / "paced_recipe.py")
OPTIONS = (
    *("--checkpoint-steps", "2", "--batch-size", "8", "--workers", "1", "--no-tensorboard"),
    *("--size-px", "54", "--counts", "4", "8", "16"),
    *("--backbone", "resnet18", "--max-steps-per-stage", str(NUM_STEPS)),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a job that is left alone, whose script `fastpsl launch slurm` has printed."""
    folder = tmp_path_factory.mktemp("cluster")
    script, out = folder / "job.sh", folder / "a whole run"
    job = ("--nodes", "2", "--gpus", "0", "--time", "5")
    done = fastpsl("launch", "slurm", "jigsaw", *job, *OPTIONS, "--out", str(out))
    assert done.returncode == 0, done
    script.write_text(done.stdout)
    ended = wait_for_end(submit(str(script)))
    assert ended["JobState"] == "COMPLETED", log(out)
    return out


@pytest.fixture(autouse=True)
def no_job_is_left() -> Iterator[None]:
    yield
    slurm("scancel", f"--user={getpass.getuser()}")
    wait_for(lambda: not slurm("squeue", "--noheader"))
    start_nodes()


def script(tmp_path: Path, *more: str, time: str = "5", signal_s: int = 60) -> tuple[str, Path]:
    """Write the script of a job of two nodes, and return its path and the run's folder."""
    out = tmp_path / "out"
    slow = Slurm(recipe=PACED, nodes=2, gpus=0, time=time, signal_s=signal_s)
    text, _ = slow.script((*OPTIONS, *more, "--out", str(out)))
    out.mkdir()
    (out / "slurm.sh").write_text(text)
    return str(out / "slurm.sh"), out


def state(out: Path) -> str:
    return str(json.loads((out / "status.json").read_text())["state"])


def log(out: Path) -> str:
    return "\n".join(path.read_text() for path in out.glob("slurm-*.log"))


def assert_equal_runs(out: Path, whole: Path) -> None:
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole))
    metrics = [(path / "metrics.jsonl").read_text() for path in (out, whole)]
    assert metrics[0] == metrics[1] and metrics[0].count("\n") == 3 * NUM_STEPS


def test_a_job_on_two_nodes_finishes(whole: Path) -> None:
    assert "S3 (level G3)" in log(whole)
    assert state(whole) == "finished" and newest_checkpoint(whole)["machine"]["world_size"] == 2


@pytest.mark.parametrize("by", ["scancel", "time limit", "urgent job"])
def test_a_preempted_job_is_requeued_and_ends_as_one_left_alone(whole: Path, tmp_path: Path, by: str) -> None:
    by_time = by == "time limit"  # the signal comes 45 to 75 s after the start
    path, out = script(tmp_path, time="2" if by_time else "5", signal_s=45 if by_time else 60)
    number = submit(path, PAUSE_S="3" if by_time else "0.5")
    wait_for(lambda: newest_step(out) >= 4, lambda: (job(number), log(out)))
    if by == "scancel":
        slurm("scancel", "--signal=TERM", number)
    elif by == "urgent job":
        submit("--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 2")
    wait_for(lambda: job(number)["JobState"] == "PENDING", lambda: (job(number), log(out)))
    assert state(out) == "preempted" and newest_step(out) < 3 * NUM_STEPS
    ended = wait_for_end(number)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", log(out)
    assert state(out) == "finished" and "resuming" in log(out) and "Traceback" not in log(out)
    assert_equal_runs(out, whole)


@pytest.mark.parametrize("name", ["node2", "node1"])
def test_where_a_node_dies_the_job_ends_with_a_reason_and_goes_on_when_it_is_back(
    whole: Path, tmp_path: Path, name: str
) -> None:
    """The script itself runs on node1.

    Slurm may repeat to the node, when it is back, the SIGTERM that was meant for the processes before. Then
    the job is requeued once more.
    """
    path, out = script(tmp_path)
    number = submit(path, PAUSE_S="0.5")
    wait_for(lambda: newest_step(out) >= 4, lambda: (job(number), log(out)))
    kill_node(name)
    wait_for(lambda: job(number)["JobState"] == "PENDING", lambda: (job(number), log(out)))
    reason = json.loads((out / "status.json").read_text())
    assert reason["state"] == "failed" and "has gone or hangs" in reason["reason"], reason
    assert slurm("sinfo", "--noheader", "--format=%E", f"--nodes={name}") == "Not responding"
    start_nodes()
    ended = wait_for_end(number)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] in ("1", "2"), log(out)
    assert_equal_runs(out, whole)


def test_a_start_that_fails_is_not_requeued(tmp_path: Path) -> None:
    path, out = script(tmp_path, "--data", str(tmp_path / "nothing.beton"))
    (out / "status.json").write_text('{"state": "preempted", "stage": 1, "step": 4, "reason": "interrupted"}')
    ended = wait_for_end(submit(path))
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0")
    assert "no such file" in log(out) and not (out / "status.json").exists()


def test_a_rank_that_is_killed_fails_the_job_with_a_reason(tmp_path: Path) -> None:
    path, out = script(tmp_path)
    number = submit(path, PAUSE_S="0.5")
    wait_for(lambda: newest_step(out) >= 4, lambda: (job(number), log(out)))
    started = time.monotonic()
    for pid in processes(f"SLURM_JOB_ID={number}", "RANK=1"):
        os.kill(pid, signal.SIGKILL)
    ended = wait_for_end(number)
    assert ended["JobState"] == "FAILED" and ended["Restarts"] == "0", log(out)
    assert "has gone or hangs" in log(out) and time.monotonic() - started < 60
