"""How fast storage, decoder and loader deliver the images of a recipe."""

import errno
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastpsl.doctor.measurements import BETON_WRITE, CACHED, Alternative, DecoderCost, ReadRate
from fastpsl.doctor.setup import DoctorSetup
from fastpsl.engine.gpu import milliseconds
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.run import open_loader
from fastpsl.engine.stage_bench import loader_rate
from fastpsl.files.caches import cache_folder
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.remote import remote_pages
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.dataset import MODE_RAW, Dataset, SampleTable, read_bytes, spread_indices
from fastpsl.pipelines.data.source import Sample
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders import dali, libffcv, resident
from fastpsl.pipelines.decoders.choose import READS
from fastpsl.pipelines.decoders.memory import pinned_empty
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.loader.order import num_steps, step_indices, training_order
from fastpsl.pipelines.loader.quasi_random import QuasiRandom
from fastpsl.pipelines.views import ViewSpec, short_side_px

# Training never reaches these epochs, so that its most recent reads do not favour this measurement.
FIRST_EPOCH = 1 << 30
_CHUNK = 16  # samples per task of a thread
_NUM_PROBED = 512


def measure_read(
    data: Dataset, options: TrainingOptions, batch_size: int, seconds: float
) -> tuple[ReadRate, np.ndarray]:
    """Read for `seconds`, at least two batches, with as many threads as the loader.

    Samples that cannot be read are not an error here; --on-bad-sample tells the loader what to do with them.
    """
    assert options.workers is not None
    probed = spread_indices(data.num_samples, _NUM_PROBED)
    rows = data.rows(probed)
    remote = remote_pages(data)
    cached = cached_share(rows) if remote is None else remote.share_here(probed)
    bytes_per_image = float(rows.num_bytes.mean())
    # A buffer per thread, because fresh memory costs more than a cached read.
    read_all, chunks_read = partial(_read, data, threading.local()), list[np.ndarray]()
    num_read, start = 0, time.perf_counter()
    chunks = _chunks(data, options, batch_size)
    reads = map_in_order(read_all, chunks, options.workers, "fastpsl-doctor-read")
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


def _read(data: Dataset, of_thread: threading.local, indices: np.ndarray) -> None:
    """Read the samples' bytes and discard them; errors are ignored."""
    data.wait(indices)
    rows = data.rows(indices)
    max_bytes = int(rows.num_bytes.max())
    if len(getattr(of_thread, "memory", b"")) < max_bytes:
        of_thread.memory = bytearray(max_bytes)
    memory = memoryview(of_thread.memory)
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


_WORTH_WRITING = 1.2  # least ratio of the images' shorter side to the needed one
_NUM_WRITTEN = 512


class Feed:
    """The loaders of one set of views.

    `warm` is data in memory, because it was read before. `costs` are those of the decoders that were timed on
    it, by name. `decode` is the rate on it, and `loader` the rate on the data as it is stored.
    """

    decode: float
    loader: float

    def __init__(
        self, setup: DoctorSetup, views: Sequence[ViewSpec], batch_size: int, warm: Dataset, seconds: float
    ):
        self.setup, self.views, self.batch_size = setup, tuple(views), batch_size
        self.warm, self.seconds = warm, seconds
        self.costs: dict[str, DecoderCost] = {}
        self._epochs: Iterator[int] = itertools.count(FIRST_EPOCH + 1_000_000)

    def rate(self, data: Dataset, seconds: float | None = None, **changes: object) -> float:
        """Return images/s on the device before augmentation."""
        options = self.setup.options
        # Quasi-random order needs whole pages, which a part of the data does not fill.
        if data is not self.setup.opened.train:
            options = replace(options, order="random")
        options = replace(options, **changes)  # type: ignore[arg-type]
        with open_loader(
            data, self.views, options, self.setup.world, batch_size_per_rank=self.batch_size, train=True
        ) as loader:
            rate, cores = loader_rate(loader, self._epochs, seconds or self.seconds)
            if data is self.warm and changes.keys() <= {"decoder"}:
                self.costs[loader.decoder_name] = DecoderCost(rate, 1e3 * cores / rate)
        return rate

    def other_decoders(
        self, chosen: str, log: Callable[[str], None]
    ) -> tuple[list[Alternative], dict[str, str]]:
        """Time the other decoders briefly."""
        data, device = self.setup.opened.train, self.setup.world.device
        alternatives, untried = [], {}
        missing = {
            "turbo": libturbo.why_missing(), "ffcv": libffcv.why_missing(), "dali": dali.why_missing(device),
        }  # fmt: skip
        for name in READS[data.kind]:
            if name in (chosen, "synthetic") or (name == "resident" and not resident.is_small(data)):
                continue
            option = f"--decoder {name}"
            if reason := missing.get(name):
                untried[option] = reason
                continue
            log(f"decode by {name}")
            try:
                rate = self.rate(self.warm, self.seconds / 2, decoder=name)
                alternatives.append(Alternative(option, rate, self.decode))
            except (ValueError, RuntimeError, OSError) as error:
                untried[option] = f"does not run here: {' '.join(str(error).split())[:300]}"
        return alternatives, untried

    def all_cores(self, num_cores: int) -> list[Alternative]:
        """Time one thread per core, if there are fewer threads now."""
        if num_cores <= self.setup.num_threads:
            return []
        rate = self.rate(self.warm, workers=num_cores)
        return [Alternative(f"--workers {num_cores}", rate, self.decode, num_threads=num_cores)]

    def written(self, views: Sequence[ViewSpec]) -> list[Alternative]:
        """Time some images written as a dataset file, beside the same images as they are.

        They are shrunk if the crops allow it; a folder's images are also tried at full size. The file is
        written into the cache folder and removed.
        """
        rows = self.warm.rows(np.arange(self.warm.num_samples))
        sides = np.minimum(rows.height, rows.width)
        short_side = short_side_px(views)
        targets: list[int | None] = [None] if self.warm.kind == "folder" else []
        are_large = short_side and np.median(sides) >= _WORTH_WRITING * short_side
        if are_large and not (rows.mode == MODE_RAW).any():
            targets.append(short_side)
        if not targets:
            return []
        num = min(self.warm.num_samples, max(_NUM_WRITTEN, 4 * self.batch_size))
        part = Subset(self.warm, np.arange(num))
        unchanged_rate = self.rate(part)
        pixels = rows.height[:num].astype(float) * rows.width[:num]
        parent = cache_folder()
        parent.mkdir(parents=True, exist_ok=True)
        alternatives = []
        for target in targets:
            samples = (Sample(str(i), read_bytes(rows, i), int(rows.label[i])) for i in range(num))
            with tempfile.TemporaryDirectory(dir=parent, prefix="doctor-") as folder:
                out = Path(folder) / "tried.beton"
                write_beton(samples, out, num_samples=num, target=Target(short_side=target))
                with Beton(out) as beton:
                    rate = self.rate(beton, decoder=self.setup.opened.options.decoder)
            option, note = BETON_WRITE, f"tried with {num:,} of the images"
            if target is not None:
                shrunk = pixels * np.minimum(1, target / sides[:num]) ** 2
                option += f" --short-side {target}"
                note = f"costs detail: {shrunk.sum() / pixels.sum():.0%} of the pixels stay; {note}"
            alternatives.append(Alternative(option, rate, unchanged_rate, note))
        return alternatives


def copy_rate(views: Sequence[ViewSpec], batch_size: int, device: torch.device) -> float:
    """Return images/s of copying a batch's crops from pinned memory to the device."""
    crops = [pinned_empty(batch_size, view.crop.size_px, view.crop.size_px, 3) for view in views]
    times = milliseconds(lambda: [crop.to(device, non_blocking=True) for crop in crops], device)
    return batch_size / (sorted(times)[len(times) // 2] / 1e3)
