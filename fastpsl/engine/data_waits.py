"""The waits of a stage's steps for the loader. If they are long over a minute, a stage tells it once.

On a CPU a step waits as long as `next(batches)` takes. On a GPU the host runs ahead, and its own waits say
little. There a wait is the time in which the device had nothing to do before a batch was on it: the host
waited for the batch, or the batch's copy had not ended.
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from fastpsl.console.words import number_of
from fastpsl.engine.run import BatchSource
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.remote import remote_pages
from fastpsl.pipelines.data.dataset import spread_indices
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders.choose import SLOWER, is_packed
from fastpsl.pipelines.decoders.dali import why_slower
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import short_side_px

LONG_SHARE = 0.05
WINDOW_S = 60.0
_BLOCK_BYTES = 512  # of ru_inblock
Item = TypeVar("Item")


class Usage(NamedTuple):
    """The use of the machine by this process since its start."""

    cpu_s: float  # of all threads
    read_bytes: int  # that came from storage, not from the page cache


def usage_now() -> Usage:
    """Return the use of the machine up to now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_inblock * _BLOCK_BYTES)


@dataclass
class Waits:
    """The waits of a number of batches, from one batch's arrival to the next."""

    num_batches: int = 0
    seconds: float = 0.0  # that they took
    idle_s: float = 0.0  # the part in which the step waited for them
    host_s: float = 0.0  # the part in which the host waited for them
    # On a GPU, the part in which the step waited for what the host had: copies, and decoding on the GPU.
    copy_s: float = 0.0
    cpu_s: float = 0.0  # of this process, while the host waited
    read_bytes: int = 0  # that came from storage

    @property
    def share(self) -> float:
        """The share of the time in which the step waited."""
        return self.idle_s / self.seconds

    @property
    def batch_ms(self) -> float:
        """The time from one batch to the next."""
        return 1e3 * self.seconds / self.num_batches

    @property
    def step_ms(self) -> float:
        """The part of it in which the step did not wait."""
        return 1e3 * (self.seconds - self.idle_s) / self.num_batches

    @property
    def busy_cores(self) -> float:
        """The cores that this process kept busy while the host waited."""
        return self.cpu_s / max(self.host_s, 1e-9)


_NUM_LOOKED_AT = 256  # samples, spread over the data
_HERE = 0.95  # at this share of remote data or above, the network is not what is waited for
_IDLE = 0.5  # of the threads: if fewer are busy, they wait for bytes
_FROM_STORAGE = 0.5  # of the bytes of the batches
_BY_COPIES = 0.5  # of the waits
_LARGE = 2.0  # times the shorter side that the crops need
_DOCTOR = "fastpsl doctor, with the same options, measures each part"
_UNKNOWN = "unknown", f"The cause is not known: {_DOCTOR}"


def line_of(stage: str, waits: Waits, loader: BatchSource) -> tuple[str, str]:
    """Return the cause in one word, and the line for people. No error in naming it ends a training."""
    try:
        cause, words = cause_of(waits, loader)
    except Exception:  # noqa: BLE001  (of files, libraries or the network)
        cause, words = _UNKNOWN
    decoder = f"the decoder {loader.decoder_name}"
    if isinstance(loader, Loader):
        decoder += f" with {number_of(loader.num_threads, 'thread')}"
    return cause, (
        f"{stage} waits for its data {waits.share:.0%} of the time: {decoder} needs {_ms(waits.batch_ms)} "
        f"for a batch, and the step {_ms(waits.step_ms)}. {words}"
    )


def _ms(value: float) -> str:
    return f"{value:{',.0f' if value >= 10 else '.2g'}} ms"


def cause_of(waits: Waits, loader: BatchSource) -> tuple[str, str]:
    """Return the cause in one word, and in a sentence with what helps."""
    if not isinstance(loader, Loader) or loader.decoder_name in ("resident", "synthetic"):
        return _UNKNOWN
    if waits.copy_s > _BY_COPIES * waits.idle_s:
        if loader.decoder_name == "dali":
            return _of_engines(loader)
        return "copy", f"The batches are ready, and their copies to the GPU are too slow: {_DOCTOR}"
    some = spread_indices(loader.data.num_samples, _NUM_LOOKED_AT)
    num_cores = default_num_threads()
    if waits.busy_cores < _IDLE * min(loader.num_threads, num_cores):
        return _of_bytes(waits, loader, some) or _of_engines(loader)
    return _of_decoding(loader, some, num_cores)


def _of_engines(loader: Loader) -> tuple[str, str]:
    """Return why threads are idle that do not wait for bytes."""
    if loader.decoder_name != "dali" or loader.device.type == "cpu":
        return "unknown", f"The decoding threads are mostly idle, and why is not known: {_DOCTOR}"
    if found := _of_idle_engines(loader):
        return found
    return "busy engines", (
        "The GPU decodes too slowly: try --decoder turbo with all cores "
        f"(--workers {default_num_threads()}), or write smaller images (fastpsl data write SRC OUT "
        f"--short-side {short_side_px(loader.views) or 'PX'})"
    )


def _of_idle_engines(loader: Loader) -> tuple[str, str] | None:
    """Return why the GPU's JPEG engines do not decode for `dali`; None if they do, or another decodes."""
    remark = loader.decoder.remark
    return ("engines", f"The GPU's JPEG engines do not help: {remark}") if remark else None


def _of_bytes(waits: Waits, loader: Loader, some: np.ndarray) -> tuple[str, str] | None:
    """Return why threads that are mostly idle get no bytes; None if they do not seem to wait for them."""
    whole, samples = loader.data, some
    if isinstance(loader.data, Subset):
        whole, samples = loader.data.data, loader.data.indices[some]
    remote = remote_pages(whole)
    if remote is not None and (here := remote.share_here(samples)) < _HERE:
        text = f"The network is too slow, and {here:.0%} of the data is in --cache-dir"
        if remote.room_bytes() is None:
            return "network", f"{text}. Later epochs are faster, because all of it has room there"
        return "network", f"{text}: give more --cache-gb"
    batch_bytes = float(loader.data.rows(some).num_bytes.mean()) * loader.batch_size_per_rank
    if waits.read_bytes >= _FROM_STORAGE * batch_bytes * waits.num_batches:
        return "storage", (
            "The storage is too slow, and the data does not come from memory: copy it to a local disk, or "
            "write smaller images (fastpsl data write SRC OUT --max-side PX)"
        )
    return None


def _of_decoding(loader: Loader, some: np.ndarray, num_cores: int) -> tuple[str, str]:
    """Return why the threads, which are busy, are too slow."""
    data, name = loader.data, loader.decoder_name
    if name in SLOWER or (name == "dali" and loader.device.type == "cpu"):
        if reason := libturbo.why_missing():
            return "decoder", f"{name} decodes slowly, because {reason}: {libturbo.remedy()}"
        return "decoder", f"{name} decodes slowly: give --decoder turbo"
    if found := _of_idle_engines(loader):
        return found
    needed, rows = short_side_px(loader.views), data.rows(some)
    median = float(np.median(np.minimum(rows.height, rows.width)))
    source = "FOLDER" if data.kind == "folder" else "SRC"
    if needed and median >= _LARGE * needed:
        return "size", (
            f"The images are large, {median:,.0f} px at their shorter side, and the crops need {needed}: "
            f"fastpsl data write {source} OUT --max-side {2 * needed}, and --data OUT"
        )
    if loader.num_threads < num_cores:
        return "threads", f"There are few decoding threads: give --workers {num_cores}"
    if loader.device.type == "cuda":
        # The GPU's JPEG engines may decode some of the images.
        has_jpegs = not getattr(data, "is_raw", False) and not is_packed(data)
        engines = name == "turbo" and has_jpegs and not why_slower(loader.device)
        others = ", try --decoder dali" if engines else ""
        also = " or packed coefficients (--mode coefficients)" if name == "turbo" and has_jpegs else ""
        return "cores", (
            f"Decoding takes all {number_of(num_cores, 'core')} of this process: give it more{others}, or "
            f"write smaller images (fastpsl data write {source} OUT --short-side {needed or 'PX'}){also}"
        )
    return "cores", f"Decoding needs the {number_of(num_cores, 'core')} on which the step runs: {_DOCTOR}"


class DataWaits:
    """A watch over the waits of a stage."""

    def __init__(
        self,
        device: torch.device,
        num_ahead: int,
        tell: Callable[[Waits], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
        usage: Callable[[], Usage] = usage_now,
    ):
        self._is_cuda, self._num_ahead, self._tell = device.type == "cuda", num_ahead, tell
        self._clock, self._usage = clock, usage
        self._has_told = False
        self._waits = Waits()
        # Waits whose events the device has not reached: with the events before and after each.
        self._pending: deque[tuple[Waits, torch.cuda.Event | None, torch.cuda.Event | None]] = deque()
        self._free: list[torch.cuda.Event] = []

    def track(self, batches: Iterator[Item], num_left: int) -> Iterator[Item]:
        """Yield batches, and watch the time between them."""
        last_s, last_use = 0.0, Usage(0.0, 0)
        for i in count():
            counts = self._num_ahead < i < num_left - self._num_ahead and not self._has_told
            launched = self._mark() if counts else None
            asked_s, asked_use = self._clock(), self._usage()
            try:
                batch = next(batches)
            except StopIteration:
                return
            came_s, came_use = self._clock(), self._usage()
            if counts:
                waits = Waits(num_batches=1, seconds=came_s - last_s, host_s=came_s - asked_s)
                waits.cpu_s = came_use.cpu_s - asked_use.cpu_s
                waits.read_bytes = came_use.read_bytes - last_use.read_bytes
                self._pending.append((waits, launched, self._mark()))
                self._judge()
            last_s, last_use = came_s, came_use
            yield batch

    def _mark(self) -> torch.cuda.Event | None:
        """Return an event behind the work that is launched so far; None on a CPU."""
        if not self._is_cuda:
            return None
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _judge(self) -> None:
        """Add up the waits that the device has reached, and tell them if they are long."""
        while self._pending and (self._pending[0][2] is None or self._pending[0][2].query()):
            wait, launched, came = self._pending.popleft()
            idle_s = wait.host_s
            if launched is not None and came is not None:
                idle_s = launched.elapsed_time(came) / 1e3
                self._free += [launched, came]
            total = self._waits
            total.num_batches += 1
            total.seconds += wait.seconds
            total.idle_s += idle_s
            total.host_s += wait.host_s
            total.copy_s += max(0.0, idle_s - wait.host_s)
            total.cpu_s += wait.cpu_s
            total.read_bytes += wait.read_bytes
        if self._waits.seconds < WINDOW_S:
            return
        waits, self._waits = self._waits, Waits()
        if waits.share > LONG_SHARE:
            self._has_told = True
            self._pending.clear()
            self._free.clear()
            self._tell(waits)
