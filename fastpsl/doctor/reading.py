"""Timing of reading the samples' bytes in training order, without decoding."""

import errno
import os
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import numpy as np

from fastpsl.doctor.measurements import CACHED, ReadRate
from fastpsl.engine.options import TrainingOptions
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.beton.remote import remote_pages
from fastpsl.pipelines.data.dataset import Dataset, SampleTable, spread_indices
from fastpsl.pipelines.loader.order import num_steps, step_indices, training_order
from fastpsl.pipelines.loader.quasi_random import QuasiRandom

# Training never reaches these epochs, so that its most recent reads do not favour this measurement.
FIRST_EPOCH = 1 << 30
_CHUNK = 16  # samples per task of a thread
_NUM_PROBED = 512


def measure_read(
    data: Dataset, options: TrainingOptions, batch_size: int, seconds: float
) -> tuple[ReadRate, np.ndarray]:
    """Read for `seconds`, at least two batches, with as many threads as the loader.

    Samples that cannot be read are not an error here; --on-bad-sample tells the loader what to do with them.

    Args:
        data: The data to read.
        options: Options of the run: order, seed, threads and prefetching.
        batch_size: Samples per batch.
        seconds: Length of the measurement.

    Returns:
        The rate, and the indices of the samples that are now in the page cache.
    """
    assert options.workers is not None
    probed = spread_indices(data.num_samples, _NUM_PROBED)
    rows = data.rows(probed)
    remote = remote_pages(data)
    cached = cached_share(rows) if remote is None else remote.share_here(probed)
    bytes_per_image = float(rows.num_bytes.mean())
    reader, chunks_read = _Reader(data), list[np.ndarray]()
    num_read, start = 0, time.perf_counter()
    chunks = _chunks(data, options, batch_size)
    reads = map_in_order(reader.read, chunks, options.workers, "fastpsl-doctor-read")
    for indices, _ in reads:
        num_read += len(indices)
        if num_read - len(indices) < data.num_samples:
            chunks_read.append(indices)
        if time.perf_counter() - start >= seconds and num_read >= min(2 * batch_size, data.num_samples):
            break
        # A second pass would read from the page cache.
        if cached is not None and cached < CACHED and num_read >= data.num_samples - batch_size:
            break
    rate = num_read / (time.perf_counter() - start)
    reads.close()
    chunks.close()
    data_bytes = round(bytes_per_image * data.num_samples)
    capacity = page_cache_bytes() if remote is None else remote.cache.max_bytes
    read = ReadRate(rate, bytes_per_image, data_bytes, capacity, cached, remote is not None)
    return read, np.unique(np.concatenate(chunks_read))


class _Reader:
    """A reader with a reusable buffer per thread, because fresh memory costs more than a cached read."""

    def __init__(self, data: Dataset):
        self._data, self._of_thread = data, threading.local()

    def read(self, indices: np.ndarray) -> None:
        """Read the samples' bytes and discard them; errors are ignored."""
        self._data.wait(indices)
        rows = self._data.rows(indices)
        max_bytes = int(rows.num_bytes.max())
        if len(getattr(self._of_thread, "memory", b"")) < max_bytes:
            self._of_thread.memory = bytearray(max_bytes)
        memory = memoryview(self._of_thread.memory)
        for i, num_bytes in enumerate(rows.num_bytes.tolist()):
            with suppress(OSError):
                if rows.path[i]:
                    with open(rows.path[i], "rb", buffering=0) as file:
                        file.readinto(memory[:num_bytes])
                else:
                    os.preadv(int(rows.fd[i]), [memory[:num_bytes]], int(rows.offset[i]))


def _chunks(data: Dataset, options: TrainingOptions, batch_size: int) -> Generator[np.ndarray, None, None]:
    """Yield indices in training order, epoch after epoch, with the read-ahead of a quasi-random order."""
    quasi_random = None
    if options.order == "quasi_random":
        quasi_random = QuasiRandom(
            data, lanes=options.lanes, batch_size_per_rank=batch_size, seed=options.seed
        )
    for epoch in range(FIRST_EPOCH, FIRST_EPOCH + 1_000_000):
        readahead = None
        if quasi_random is None:
            order = training_order(options.seed, epoch, data.num_samples)
        else:
            order, readahead = quasi_random.epoch(epoch, 0, options.prefetch_batches)
        try:
            for step in range(max(1, num_steps(len(order), batch_size, train=True))):
                if readahead is not None:
                    readahead.advance(step)
                indices = step_indices(order, step, batch_size, 0, 1)
                indices = indices[indices >= 0]
                yield from (indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK))
        finally:
            if readahead is not None:
                readahead.close()


def cached_share(rows: SampleTable) -> float | None:
    """Return the share of the samples' bytes in the page cache, or None if the file system cannot tell."""
    num_cached = 0
    for i, num_bytes in enumerate(rows.num_bytes.tolist()):
        fd = int(rows.fd[i])
        try:
            opened = os.open(rows.path[i], os.O_RDONLY | os.O_CLOEXEC) if rows.path[i] else fd
        except OSError:
            continue
        try:
            num_cached += os.preadv(opened, [bytearray(num_bytes)], int(rows.offset[i]), os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return None
        finally:
            if rows.path[i]:
                os.close(opened)
    return num_cached / max(1, int(rows.num_bytes.sum()))


def page_cache_bytes() -> int:
    """Return the capacity of the page cache: free and reclaimable memory, within the container's limit."""
    with open("/proc/meminfo") as file:
        table = dict(line.split(":", 1) for line in file)
    available = int(table["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError, KeyError):  # no cgroup, or one without a limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        available = min(available, limit - int(used["anon"]))
    return available
