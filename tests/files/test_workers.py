"""The loader's threads where the process may have no more."""

import os
import threading
from pathlib import Path

import pytest

from fastpsl.files import workers
from fastpsl.files.workers import Workers, default_num_threads, usable_cores


def refuse_thread(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the thread of that name not start, as where the system's limit is reached."""
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)


def test_too_few_threads_are_said_in_one_line_and_those_that_started_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_thread(monkeypatch, "many-3")
    words = r"64 threads many were asked for, and 3 could be started \(can't start new thread\): .*--workers"
    with pytest.raises(ValueError, match=words) as error:
        Workers(64, "many")
    assert "\n" not in str(error.value)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("many-")]


def test_where_growing_is_refused_some_threads_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_thread(monkeypatch, "some-20")
    some = Workers(4, "some")
    some.grow(30)
    assert some.num_threads == 12
    done = threading.Semaphore(0)
    for _ in range(100):
        some.submit(done.release)
    assert all(done.acquire(timeout=60) for _ in range(100))
    some.grow(30)
    assert some.num_threads == 12
    some.close(60)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("some-")]


def test_a_fork_closes_without_the_lock() -> None:
    some = Workers(1, "forked")
    with some._lock:
        child = os.fork()
        if not child:
            some.close(5)
            os._exit(0 if some.closed else 1)
    assert os.waitpid(child, 0)[1] == 0
    some.close(60)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/user.slice/run.scope", {"user.slice/run.scope/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000", "cpu.max": "4 1"}, 2.5),
        ("0::/a/b", {"c/cpu.max": "100000 100000", "a/b/c/cpu.max": "100000 100000"}, None),  # of others
        ("0::/docker/1f", {"cpu.max": "50000 100000"}, 0.5),  # the host's path, and the container's root
        ("0::/../../b", {"cpu.max": "200000 100000", "b/cpu.max": "100000 100000"}, 2.0),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a/b:c\n0::/",
            {
                "cpu/a/b:c/cpu.cfs_quota_us": "-1", "cpu/a/b:c/cpu.cfs_period_us": "100000",
                "cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000",
                "cpu/m/cpu.cfs_quota_us": "100000", "cpu/m/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ("", {"cpu.max": "max 100000"}, None),
        (None, {"cpu/cpu.cfs_quota_us": "75000", "cpu/cpu.cfs_period_us": "50000"}, 1.5),
    ],
)  # fmt: skip
def test_the_least_quota_of_a_group_and_those_above_it_counts(
    own: str | None, files: dict[str, str], quota: float | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    if own is not None:
        (tmp_path / "own").write_text(f"{own}\n")
    monkeypatch.setattr(workers, "_GROUPS", tmp_path)
    monkeypatch.setattr(workers, "_OWN_GROUPS", tmp_path / "own")
    assert workers.cpu_quota() == quota


@pytest.mark.parametrize(("quota", "num"), [(None, 12), (3.5, 3), (0.2, 1), (40.0, 12)])
def test_a_containers_quota_bounds_the_cores(
    quota: float | None, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr(workers, "cpu_quota", lambda: quota)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert usable_cores() == default_num_threads() == num
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_num_threads() == {None: 6, 3.5: 1, 0.2: 1, 40.0: 6}[quota]


@pytest.mark.parametrize(
    ("launchers", "own", "num_ranks", "num"),
    [
        (128, 128, 1, 128),
        (128, 128, 8, 16),  # nothing is bound
        (128, 16, 8, 16),  # each rank has cores of its own
        (128, 10, 8, 10),
        (128, 64, 8, 16),  # four ranks share the cores of a NUMA node
        (16, 16, 2, 8),  # a part of a machine, by Slurm or a container, and nothing is bound
        (None, 16, 2, 8),  # the launcher has ended
        (1, 16, 2, 8),  # another process has taken its place
        (4, 4, 8, 1),
    ],
)
def test_a_rank_has_its_share_of_the_launchers_cores(
    launchers: int | None, own: int, num_ranks: int, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def affinity(pid: int) -> set[int]:
        if pid == 0:
            return set(range(own))
        assert pid == os.getppid()
        if launchers is None:
            raise ProcessLookupError
        return set(range(launchers))

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    monkeypatch.setattr(workers, "cpu_quota", lambda: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_ranks))
    assert default_num_threads() == num
