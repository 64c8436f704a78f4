"""Checks of the machine: cores, threads, open files, shared memory, disk and page cache."""

import os
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from fastpsl.console.words import number_of
from fastpsl.doctor.advice import MAX_SPREAD
from fastpsl.doctor.measurements import ReadRate, StageRates, gigabytes
from fastpsl.doctor.report import Check
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import TrainingOptions
from fastpsl.files.workers import cpu_quota, usable_cores

_MIN_OPEN_FILES = 1024
_BESIDE_SHARDS = 256  # for libraries, sockets and TensorBoard
_MIN_SHARED_BYTES = 256 << 20  # per rank; Docker gives a container 64 MiB by default
_STATE_BYTES = 4 * 2  # a parameter and its momentum, float32


def check_machine(
    options: TrainingOptions,
    num_ranks: int,
    device: torch.device,
    experiment: Experiment | None,
    num_files: int,
) -> list[Check]:
    """Run all checks of the machine except that of the page cache."""
    checks = [
        _cores(options.workers or 1, num_ranks),
        _openmp(device, num_ranks),
        _open_files(num_files),
        _shared_memory(num_ranks),
    ]
    if experiment is not None:
        checks.append(_disk(options, experiment))
    return checks


def check_page_cache(read: ReadRate) -> Check:
    """Check whether the data fits into memory, or into --cache-dir if they live elsewhere."""
    name = "cache on disk" if read.is_remote else "page cache"
    cached = "unknown how much is there" if read.cached is None else f"{read.cached:.0%} of it there now"
    text = f"{read.fitting}, {cached}"
    if read.fits:
        return Check(name, "ok", text)
    larger = "a larger --cache-gb, " if read.is_remote else ""
    remedy = f"{larger}--order quasi_random reads whole pages; or write smaller images"
    return Check(name, "warning", text, remedy)


def check_noise(stages: Sequence[StageRates]) -> list[Check]:
    """Check whether the repeats agree; other work on the machine makes them differ."""
    worst = max((stage.spread for stage in stages), default=0.0)
    if worst <= MAX_SPREAD:
        return []
    text = f"repeats of one measurement differ by {worst:.0%}"
    return [Check("noise", "warning", text, "is other work on this machine? --seconds NUM measures longer")]


def _cores(num_threads: int, num_ranks: int) -> Check:
    """Check that each decoding thread has a core."""
    allowed, quota, usable = len(os.sched_getaffinity(0)), cpu_quota(), usable_cores()
    text = f"{usable} usable of {os.cpu_count()}, {num_ranks} x {number_of(num_threads, 'decoding thread')}"
    if quota is not None and usable < allowed:
        text += f", the container's quota is {quota:.1f}"
    if num_ranks * num_threads > usable:
        return Check("cores", "warning", text, f"give --workers {max(1, usable // num_ranks)}")
    return Check("cores", "ok", text)


def _openmp(device: torch.device, num_ranks: int) -> Check:
    """Check torch's threads, which share the CPU with the decoder's and spin while they wait."""
    threads, policy = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY")
    text = f"{number_of(torch.get_num_threads(), 'thread')} in torch, OMP_NUM_THREADS {threads or 'unset'}"
    text += f", OMP_WAIT_POLICY {policy or 'unset'}"
    if device.type == "cpu" and torch.get_num_threads() > 1 and str(policy).upper() != "PASSIVE":
        return Check(
            "openmp",
            "warning",
            text,
            "set OMP_WAIT_POLICY=PASSIVE, which keeps idle threads off the decoder's cores",
        )
    if num_ranks > 1 and _first_number(threads) * num_ranks > usable_cores():
        return Check("openmp", "warning", text, f"set OMP_NUM_THREADS={max(1, usable_cores() // num_ranks)}")
    return Check("openmp", "ok", text)


def _first_number(threads: str | None) -> int:
    """Return 4 for "4" or, with nested regions, for "4,2"; 0 without a number, as OpenMP does."""
    first = (threads or "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def _open_files(num_files: int) -> Check:
    """Check that the process may open the data's files and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(_MIN_OPEN_FILES, num_files + _BESIDE_SHARDS)
    text = f"{soft:,} allowed (ulimit -n), the data has {number_of(num_files, 'file')} open"
    if soft < needed:
        remedy = (
            f"raise it by ulimit -n {needed}"
            if hard < 0 or hard >= needed
            else f"ask for more than {hard:,} (limits.conf)"
        )
        return Check("open files", "warning", text, remedy)
    return Check("open files", "ok", text)


def _shared_memory(num_ranks: int) -> Check:
    """Check /dev/shm, which NCCL uses between ranks of a machine; the loader does not need it."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = 0
    text = f"{gigabytes(free)} in /dev/shm"
    if num_ranks > 1 and free < num_ranks * _MIN_SHARED_BYTES:
        return Check("shared memory", "warning", f"{text}, of which NCCL takes", "docker run --shm-size 8g")
    return Check("shared memory", "ok", text)


def _disk(options: TrainingOptions, experiment: Experiment) -> Check:
    """Check the space for the checkpoints that are kept, and for one that is being written."""
    folder = (options.out or Path("runs")).absolute()
    while not folder.exists():
        folder = folder.parent
    checkpoint_bytes = _STATE_BYTES * sum(parameter.numel() for parameter in experiment.backbone.parameters())
    needed = checkpoint_bytes * (options.keep_checkpoints + 1)
    free = shutil.disk_usage(folder).free
    text = f"{gigabytes(free)} free in {folder}, checkpoints need about {gigabytes(needed)}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "broken", f"{folder} cannot be written", "give --out a folder that can")
    if free < checkpoint_bytes:
        return Check("disk", "broken", text, "make room, or give --out a folder elsewhere")
    if free < needed:
        return Check(
            "disk", "warning", text, "make room, lower --keep-checkpoints, or give --out a folder elsewhere"
        )
    return Check("disk", "ok", text)
