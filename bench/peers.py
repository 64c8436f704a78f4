"""Loaders in processes of their own: the peers', and ours from an empty process to its first batch.

ffcv sets thread counts where it is imported and DataLoader forks, so neither shares a process with what is measured
beside it. What they load, and how: bench/peer_batches.py.
"""

import io
import json
import os
import select
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is a program, too
from fastpsl.engine.timing import samples_per_s

TITLES = {
    "ffcv_loader": "ffcv Loader",
    "dali_reader": "DALI's reader",
    "dataloader": "torchvision + DataLoader",
    "webdataset": "WebDataset",
}
AHEAD = 4  # batches thrown away before a timed region: more than our loaders hold ready
MAX_FILES = 10_000  # pictures that are copied out of a beton for peers that read none
NEED_FILES = ("dali_reader", "webdataset")
_WITH_PROCESSES = ("dataloader", "webdataset")
_PACKAGES = {"ffcv_loader": "ffcv", "dali_reader": "nvidia.dali", "webdataset": "webdataset"}
_TIMEOUT_S = 120.0  # compiling included; ffcv's Loader can hang for ever


@dataclass(frozen=True)
class Work:
    """What is to be loaded, and how."""

    kind: str  # of TITLES, or one of our decoders
    data: str  # a beton or a glob
    files: str  # a folder made by `copy_out`, for those of NEED_FILES
    batch_size: int
    num_threads: int
    size_px: int
    device: str
    hw_decoder_load: float | None = None  # of DALI on a GPU; None: the default


def why_missing(kind: str, data: str) -> str | None:
    """Why a peer cannot be measured on a beton, None where it can."""
    from fastpsl.pipelines.beton.reader import Beton

    if kind in _PACKAGES and not _is_installed(_PACKAGES[kind]):
        return "not installed"
    with Beton(data) as opened:
        if kind == "ffcv_loader" and len(opened.paths) > 1:
            return f"it reads one file, and these are {len(opened.paths)} shards"
        if kind in NEED_FILES and opened.rows(_copied(opened.num_samples)).mode.any():
            return "it reads JPEGs, and these are raw pictures"
    return None


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _copied(num_samples: int) -> np.ndarray:
    """Which samples are copied out: all, or MAX_FILES of them in even steps."""
    return np.unique(np.linspace(0, num_samples - 1, min(num_samples, MAX_FILES)).round().astype(np.int64))


def copy_out(data: str, folder: Path, num_shards: int) -> int:
    """The JPEGs of a beton as files (images/LABEL/NUMBER.jpg) and as WebDataset's shards (shards/*.tar); how many."""
    from fastpsl.pipelines.beton.reader import Beton

    (folder / "shards").mkdir(parents=True)
    shards = [tarfile.open(folder / "shards" / f"{i:04}.tar", "w") for i in range(num_shards)]  # noqa: SIM115
    with Beton(data) as opened:
        indices = _copied(opened.num_samples)
        labels = opened.rows(indices).label
        for place, (index, label) in enumerate(zip(indices.tolist(), labels.tolist(), strict=True)):
            jpeg = opened.read(index)
            path = folder / "images" / f"{label:06}" / f"{index:09}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
            for suffix, content in (("jpg", jpeg), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{index:09}.{suffix}")
                member.size = len(content)
                shards[place % num_shards].addfile(member, io.BytesIO(content))
    for shard in shards:
        shard.close()
    return len(indices)


class Peer:
    """A loader in its own process. Raises RuntimeError with its last words where it ends or hangs."""

    def __init__(self, work: Work) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asdict(work))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
        )  # fmt: skip
        self._has_processes = work.kind in _WITH_PROCESSES
        self.cores_used: float | None = None
        self._answer()
        self.first_batch_s = time.perf_counter() - start

    def samples_per_s(self, num_views: int, seconds: float) -> float:
        """And sets `cores_used`: CPU seconds a second of its process; None where it has workers that are processes."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_views} {seconds}\n".encode())
        rate, cores = map(float, self._answer().split())
        self.cores_used = None if self._has_processes else cores
        return rate

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._end()
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            self._errors.close()
            raise RuntimeError(words[-1] if ready and words else f"no batch within {_TIMEOUT_S:g} s")
        return line

    def close(self) -> None:
        self._end()
        self._errors.close()

    def _end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # the end of its commands
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve(work: Work) -> None:
    """In the process: a line at the first batch; then, for each "num_views seconds" on stdin, samples/s."""
    from bench.peer_batches import OPEN, batches_of_ours

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    open_batches = OPEN.get(work.kind, batches_of_ours)
    ahead = max(AHEAD, 2 * work.num_threads + 1)  # each of DataLoader's processes has two under way
    running: dict[int, Iterator[int]] = {1: open_batches(work, 1)}
    next(running[1])
    print("first batch", file=answers, flush=True)
    for line in sys.stdin:
        num_views, seconds = int(line.split()[0]), float(line.split()[1])
        if num_views not in running:
            running[num_views] = open_batches(work, num_views)
        batches = running[num_views]
        for _ in range(ahead):
            next(batches)
        cpu_s, start = time.process_time(), time.perf_counter()
        rate = samples_per_s(lambda: next(batches), seconds, work.device, min_calls=ahead)  # noqa: B023
        cores = (time.process_time() - cpu_s) / (time.perf_counter() - start)
        # What it reads ahead must not disturb others.
        time.sleep(min(2 * ahead * work.batch_size / rate, 2.0))
        print(rate, cores, file=answers, flush=True)
    answers.close()
    running.clear()  # ends DataLoader's processes
    os._exit(0)  # ffcv's threads are waited for by nobody


if __name__ == "__main__":
    serve(Work(**json.loads(sys.argv[1])))
