"""The cache of remote files: held parts stay, others make room, and a killed process leaves no lock."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.files.remote import cache as cache_module
from fastpsl.files.remote.address import RemoteObject
from fastpsl.files.remote.cache import Cache, CachedFile, CacheFullError

PART = 64 << 10
NUM = 8
PARTS = np.stack([np.arange(NUM) * PART, np.arange(1, NUM + 1) * PART], 1)


def opened(folder: Path, max_parts: float = 100, name: str = "a") -> CachedFile:
    remote = RemoteObject(f"s3://images/{name}", f"images/{name}", NUM * PART, "1", None)
    # A little more, for the list of parts, and for what is freed beside a part that is needed.
    return Cache(folder, (max_parts * PART + 5 * 4096) / 1e9).open(remote, PARTS)


def data_of(part: int) -> bytes:
    return bytes([part + 1]) * PART


def fill(file: CachedFile, *parts: int) -> None:
    for part in parts:
        assert file.claim(part)
        file.fill(part, data_of(part), 1.0)


def read(file: CachedFile, part: int) -> bytes:
    return os.pread(file.fd, PART, part * PART)


def test_what_one_process_fetched_another_has(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    assert not second.hold(3) and first.claim(3) and not second.claim(3) and not second.hold(3)
    first.fill(3, data_of(3), 1.0)
    assert first.is_present(3) and second.hold(3) and read(second, 3) == data_of(3)
    first.close()
    assert second.is_present(3) and opened(tmp_path).hold(3)
    assert not opened(tmp_path, name="b").is_present(3)
    second.close()


def test_the_oldest_that_nobody_holds_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1, 100))
    monkeypatch.setattr(cache_module, "_now", lambda: next(clock))
    file, other = opened(tmp_path, 4), opened(tmp_path, 4)
    fill(file, 0, 1, 2, 3)
    assert other.hold(0)
    for part in (0, 1, 2):
        file.give_back(part)
    fill(file, 4)
    there = [part for part in range(NUM) if file.is_present(part)]
    assert there == [0, 2, 3, 4]  # 0 is held by the other, 3 by this one, and 1 is the oldest of the rest
    assert read(file, 1) == bytes(PART) and read(file, 2) == data_of(2)
    other.give_back(0)
    fill(file, 5, 6)
    assert [part for part in range(NUM) if file.is_present(part)] == [3, 4, 5, 6]
    assert file.claim(7)
    with pytest.raises(CacheFullError, match="are in use"):
        file.fill(7, data_of(7), 1.0)
    assert not file.is_present(7) and file._cache.num_bytes() <= file._cache.max_bytes
    file.close()
    other.close()


def test_a_file_that_nobody_opens_is_removed_when_it_is_empty(tmp_path: Path) -> None:
    old = opened(tmp_path, 4, "old")
    fill(old, 0, 1)
    old.close()
    for name in ("gone", "begun"):  # as a killed process leaves them
        left = opened(tmp_path, 4, name)
        left.close()
        left.path.unlink() if name == "gone" else os.truncate(f"{left.path}.parts", 0)
    file = opened(tmp_path, 4, "new")
    fill(file, 0, 1, 2, 3)
    assert {str(path) for path in tmp_path.glob("files/*/*")} == {str(file.path), f"{file.path}.parts"}
    file.close()


def test_a_cache_is_good_until_the_machine_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = opened(tmp_path)
    fill(file, 0)
    file.close()
    monkeypatch.setattr(cache_module, "_boot", lambda: "another")
    assert not opened(tmp_path).is_present(0)


def _claim_and_wait(folder: Path, ready: Any) -> None:
    file = opened(folder)
    fill(file, 1)
    assert file.claim(2)
    os.pwrite(file.fd, data_of(2)[: PART // 2], 2 * PART)
    ready.set()
    signal.pause()


def test_a_killed_process_leaves_no_lock_and_no_half_part(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=_claim_and_wait, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    file = opened(tmp_path)
    assert file.hold(1) and not file.claim(2)
    process.kill()
    process.join(60)
    assert not file.is_present(2) and file.claim(2)
    file.fill(2, data_of(2), 1.0)
    assert read(file, 2) == data_of(2)
    file.close()
