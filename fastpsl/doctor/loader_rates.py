"""How fast storage, decoder and loader deliver the images of a recipe, and a GPU's JPEG engines meanwhile."""

import contextlib
import ctypes
import errno
import itertools
import os
import statistics
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

from fastpsl.doctor.measurements import BETON_WRITE, CACHED, Alternative, DecoderCost, JpegEngines, ReadRate
from fastpsl.doctor.report import Check, Limit, Log
from fastpsl.doctor.setup import DoctorSetup
from fastpsl.engine.gpu import milliseconds, nvml
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.run import open_loader
from fastpsl.engine.stage_bench import loader_rate
from fastpsl.files.caches import cache_folder
from fastpsl.files.workers import control_groups, map_in_order
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.remote import remote_pages
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders import dali, libffcv, resident
from fastpsl.pipelines.decoders.choose import decoders_of, is_packed
from fastpsl.pipelines.decoders.dali import num_engines, nvjpeg_library, why_slower
from fastpsl.pipelines.decoders.dali_pipeline import HW_DECODER_LOAD
from fastpsl.pipelines.decoders.memory import pinned_empty
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.interface.dataset import (
    MODE_JPEG,
    MODE_RAW,
    Dataset,
    SampleTable,
    spread_indices,
)
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.loader.order import num_steps, step_indices, training_order
from fastpsl.pipelines.loader.quasi_random import QuasiRandom
from fastpsl.pipelines.readers.dataset_files import stored_image
from fastpsl.pipelines.views import ViewSpec, short_side_px

# Training never reaches these epochs, so that its most recent reads do not favour this measurement.
FIRST_EPOCH = 1 << 30
_CHUNK = 16  # samples per task of a thread
_NUM_PROBED = 512


def measure_read(
    data: Dataset, options: TrainingOptions, batch_size: int, seconds: float
) -> tuple[ReadRate, np.ndarray]:
    """Read for `seconds`, at least two batches, by the loader's threads; unreadable samples are skipped."""
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
    for group in control_groups("memory"):
        with suppress(OSError, ValueError, KeyError):  # no cgroup, or one without a limit
            limit = int((group / "memory.max").read_text())
            used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            available = min(available, limit - int(used["anon"]))
    return available


@contextlib.contextmanager
def tried(option: str, untried: dict[str, str], beginning: str = "") -> Iterator[None]:
    """Record an error of an alternative in `untried`, and go on."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        untried[option] = f"{beginning}{' '.join(str(error).split())[:300]}"


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

    def other_decoders(self, untried: dict[str, str], limit: Limit, log: Log) -> list[Alternative]:
        """Time the other decoders briefly; `untried` gets the reasons of those that do not run."""
        data, device = self.setup.opened.train, self.setup.world.device
        alternatives = []
        missing = {
            "turbo": libturbo.why_missing(), "ffcv": libffcv.why_missing(), "dali": dali.why_missing(device),
        }  # fmt: skip
        for name in decoders_of(data):
            is_large = name == "resident" and not resident.is_small(data)
            if is_large or name in (self.setup.options.decoder, "synthetic"):
                continue
            option = f"--decoder {name}"
            if reason := missing.get(name):
                untried[option] = reason
                continue
            if not limit.allows(option):
                continue
            log(f"decode by {name}")
            with tried(option, untried, "does not run here: "):
                rate = self.rate(self.warm, self.seconds / 2, decoder=name)
                alternatives.append(Alternative(option, rate, self.decode))
        return alternatives

    def all_cores(self, num_cores: int, limit: Limit) -> list[Alternative]:
        """Time one thread per core, if there are fewer threads now."""
        option = f"--workers {num_cores}"
        if num_cores <= self.setup.num_threads or not limit.allows(option):
            return []
        return [Alternative(option, self.rate(self.warm, workers=num_cores), self.decode)]

    def written(self, limit: Limit, log: Log) -> list[Alternative]:
        """Time some images written as a dataset file, beside the same images as they are.

        They are shrunk if the crops allow it. At full size, a folder's images are also tried as JPEGs, and
        all that are not packed yet as packed coefficients. The file is written into the cache folder and
        removed.
        """
        rows = self.warm.rows(np.arange(self.warm.num_samples))
        sides = np.minimum(rows.height, rows.width)
        short_side = short_side_px(self.views)
        mode = "coefficients" if is_packed(self.warm) else "jpg"
        targets = [Target(mode=mode)] if self.warm.kind == "folder" else []
        if not (rows.mode == MODE_RAW).any():
            decoder = self.setup.opened.options.decoder
            if mode == "jpg" and decoder in ("auto", "turbo") and not libturbo.why_missing():
                targets.append(Target(mode="coefficients"))
            if short_side and np.median(sides) >= _WORTH_WRITING * short_side:
                targets.append(Target(short_side=short_side, mode=mode))
        if not targets or not limit.allows(BETON_WRITE):
            return []
        log("decode what is written anew")
        num = min(self.warm.num_samples, max(_NUM_WRITTEN, 4 * self.batch_size))
        part = Subset(self.warm, np.arange(num))
        unchanged_rate = self.rate(part)
        pixels = rows.height[:num].astype(float) * rows.width[:num]
        parent = cache_folder()
        parent.mkdir(parents=True, exist_ok=True)
        alternatives = []
        for target in targets:
            samples = (Sample(str(i), stored_image(rows, i), int(rows.label[i])) for i in range(num))
            with tempfile.TemporaryDirectory(dir=parent, prefix="doctor-") as folder:
                out = Path(folder) / "tried.beton"
                write_beton(samples, out, num_samples=num, target=target)
                with Beton(out) as beton:
                    rate = self.rate(beton, decoder=self.setup.opened.options.decoder)
            option, note = BETON_WRITE, f"tried with {num:,} of the images"
            if target.mode != mode:
                option += f" --mode {target.mode}"
            if target.short_side:
                shrunk = pixels * np.minimum(1, target.short_side / sides[:num]) ** 2
                option += f" --short-side {target.short_side}"
                note = f"costs detail: {shrunk.sum() / pixels.sum():.0%} of the pixels stay; {note}"
            alternatives.append(Alternative(option, rate, unchanged_rate, note))
        return alternatives


def copy_rate(views: Sequence[ViewSpec], batch_size: int, device: torch.device) -> float:
    """Return images/s of copying a batch's crops from pinned memory to the device."""
    crops = [pinned_empty(batch_size, view.crop.size_px, view.crop.size_px, 3) for view in views]
    times = milliseconds(lambda: [crop.to(device, non_blocking=True) for crop in crops], device)
    return batch_size / (sorted(times)[len(times) // 2] / 1e3)


SHARES = (0.0, 0.5, 0.65, 0.8, 0.9, 1.0)
IDLE_PERCENT = 5  # below it, no image of a batch seems to have reached the engines
_ROUNDS = 2
_PERIOD_S = 0.05
NVML_S = 1.0  # a reading is the average over up to so long
_NO_NEED = "--decoder turbo needs none"
_IDLE_REMEDY = (
    "they read baseline JPEGs, which `fastpsl data write` makes of others; "
    "DALI_NVIMGCODEC_LOG_LEVEL=3 before the command tells which decoder is used"
)


def measure_engines(feed: Feed, seconds: float, limit: Limit, log: Log) -> JpegEngines | None:
    """Time decoding by DALI with several shares of a batch for the engines, in turn."""
    device = feed.setup.world.device
    if device.type != "cuda" or dali.why_missing(device):
        return None
    rows = feed.warm.rows(np.arange(feed.warm.num_samples))
    if is_packed(feed.warm) or not (rows.mode == MODE_JPEG).any() or not limit.allows("--hw-decoder-load"):
        return None
    with torch.cuda.device(device):
        num = num_engines(nvjpeg_library())
    given = feed.setup.options.hw_decoder_load
    share = HW_DECODER_LOAD if given is None else given
    if why := why_slower(device):
        return JpegEngines(num, why, share)
    rates: dict[float, list[float]] = {each: [] for each in sorted({*SHARES, share})}
    busy: list[int] = []
    with jpeg_utilisation(device) as read:
        for round_number in range(_ROUNDS):
            for each in sorted(rates, reverse=round_number % 2 == 1):
                log(f"decode by dali, {each:g} of a batch for the JPEG engines")
                # The share that trains is decoded long enough for a reading of it alone.
                region_s = max(seconds / len(rates), 2 * NVML_S if each == share else 0.0)
                with sampled(read, after_s=NVML_S) as samples:
                    rate = feed.rate(feed.warm, region_s, decoder="dali", hw_decoder_load=each)
                rates[each].append(rate)
                busy += samples if each == share else []
    means = {each: statistics.mean(values) for each, values in rates.items()}
    return JpegEngines(num, "", share, max(busy, default=None), means)


def best_share(engines: JpegEngines | None, decoder: str, decode: float) -> list[Alternative]:
    """Return the fastest share as an alternative, if it is not the one that trains."""
    if engines is None or engines.best_share == engines.share:
        return []
    option, rate = f"--hw-decoder-load {engines.best_share:g}", engines.rates[engines.best_share]
    if decoder != "dali":
        return [Alternative(f"--decoder dali {option}", rate, decode)]
    return [Alternative(option, rate, engines.rates[engines.share])]


def check_engines(engines: JpegEngines | None, decoder: str) -> list[Check]:
    """Check that the engines work and have something to do, if `dali` is the decoder that trains."""
    if engines is None:
        return []
    is_idle = engines.busy_percent is not None and engines.busy_percent < IDLE_PERCENT and engines.share > 0
    remedy = _NO_NEED if engines.why_idle else _IDLE_REMEDY if is_idle else ""
    return [Check.of("jpeg engines", engines.why_idle or engines.text, remedy if decoder == "dali" else "")]


@contextlib.contextmanager
def jpeg_utilisation(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yield a function that reads how busy the engines are (NVML), in percent; None if it is not told."""
    percent, period_us = ctypes.c_uint(), ctypes.c_uint()
    with nvml(device) as ask:
        yield lambda: percent.value if ask("nvmlDeviceGetJpgUtilization", percent, period_us) else None


@contextlib.contextmanager
def sampled(read: Callable[[], int | None], *, after_s: float = 0.0) -> Iterator[list[int]]:
    """Yield a list that gets what `read` returns every 50 ms, without None, until the context ends."""
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        ended.wait(after_s)
        while not ended.wait(_PERIOD_S):
            if (value := read()) is not None:
                samples.append(value)

    thread = threading.Thread(target=sample, name="fastpsl-jpeg-engines", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join(_PERIOD_S + 1)
