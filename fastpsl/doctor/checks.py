"""Checks of the installation and of the machine, without timing."""

import ctypes
import os
import platform
import re
import resource
import shutil
import sysconfig
from collections.abc import Sequence
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from fastpsl.console.words import gigabytes, number_of
from fastpsl.doctor.measurements import MAX_SPREAD, ReadRate, StageRates
from fastpsl.doctor.report import Check, State
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import TrainingOptions
from fastpsl.files.workers import cpu_quota, usable_cores
from fastpsl.kernels.fused import fused_modules
from fastpsl.pipelines.decoders import dali, libffcv
from fastpsl.scripts import distribution

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
    checks = [_cores(options.workers or 1, num_ranks), _openmp(device, num_ranks)]
    checks += [_open_files(num_files), _shared_memory(num_ranks)]
    return checks if experiment is None else [*checks, _disk(options, experiment)]


def check_page_cache(read: ReadRate) -> Check:
    """Check whether the data fits into memory, or into --cache-dir if they live elsewhere."""
    name = "cache on disk" if read.is_remote else "page cache"
    cached = "unknown how much is there" if read.cached is None else f"{read.cached:.0%} of it there now"
    larger = "a larger --cache-gb, " if read.is_remote else ""
    remedy = f"{larger}--order quasi_random reads whole pages; or write smaller images"
    return Check.of(name, f"{read.fitting}, {cached}", "" if read.fits else remedy)


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
    remedy = f"give --workers {max(1, usable // num_ranks)}"
    return Check.of("cores", text, remedy if num_ranks * num_threads > usable else "")


def _openmp(device: torch.device, num_ranks: int) -> Check:
    """Check torch's threads, which share the CPU with the decoder's and spin while they wait."""
    threads, policy = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY")
    text = f"{number_of(torch.get_num_threads(), 'thread')} in torch, OMP_NUM_THREADS {threads or 'unset'}"
    text += f", OMP_WAIT_POLICY {policy or 'unset'}"
    first, remedy = (threads or "").partition(",")[0].strip(), ""  # of "4,2", for nested regions
    if device.type == "cpu" and torch.get_num_threads() > 1 and str(policy).upper() != "PASSIVE":
        remedy = "set OMP_WAIT_POLICY=PASSIVE, which keeps idle threads off the decoder's cores"
    elif num_ranks > 1 and first.isdecimal() and int(first) * num_ranks > usable_cores():
        remedy = f"set OMP_NUM_THREADS={max(1, usable_cores() // num_ranks)}"
    return Check.of("openmp", text, remedy)


def _open_files(num_files: int) -> Check:
    """Check that the process may open the data's files and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(_MIN_OPEN_FILES, num_files + _BESIDE_SHARDS)
    text = f"{soft:,} allowed (ulimit -n), the data has {number_of(num_files, 'file')} open"
    may_raise = hard < 0 or hard >= needed
    remedy = f"raise it by ulimit -n {needed}" if may_raise else f"ask for more than {hard:,} (limits.conf)"
    return Check.of("open files", text, remedy if soft < needed else "")


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
        remedy = "make room, lower --keep-checkpoints, or give --out a folder elsewhere"
        return Check("disk", "warning", text, remedy)
    return Check("disk", "ok", text)


_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def check_software(device: torch.device, num_ranks: int) -> list[Check]:
    """Check the libraries for training on `device`; the CPU does not need those that only a GPU uses."""
    is_cuda = device.type == "cuda"
    fastpsl = Check("fastpsl", "ok", distribution.version_line())
    if stranger := distribution.stranger():  # which has installed files into our package's folder
        fastpsl = Check("fastpsl", "broken", stranger, distribution.REMEDY)
    built_for = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    others = ", ".join(f"{name} {metadata.version(name)}" for name in ("torchvision", "numba"))
    of_torch = Check("torch", "ok", f"{torch.__version__} {built_for}, {others}")
    checks = [fastpsl, Check("python", "ok", platform.python_version()), of_torch, *_gpu(device)]
    if not is_cuda:
        return [*checks, *_decoders(device), _compiler(is_cuda)]
    return [*checks, _nccl(device, num_ranks), *_decoders(device), _triton(device), _compiler(is_cuda)]


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, such as 580.65.06, or None without a driver."""
    try:
        version = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text())
    except OSError:
        return None
    return version[0] if version else "of an unknown version"


def driver_cuda() -> str | None:
    """Return the newest CUDA version that the driver supports, or None without a driver."""
    try:
        library, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _gpu(device: torch.device) -> list[Check]:
    """Check driver and GPU; no GPU at all is fine, but one that torch cannot use is not."""
    driver, driver_for = driver_version(), driver_cuda()
    if driver is None and driver_for is None:
        return [Check("gpu", "ok", "no GPU: the CPU does everything")]
    driver_check = Check("driver", "ok", f"{driver or 'unknown'}, for CUDA up to {driver_for or 'unknown'}")
    if torch.version.cuda is None:
        remedy = "install torch with CUDA (pytorch.org), or let the CPU do everything"
        return [driver_check, Check("gpu", "warning", "torch is built for the CPU", remedy)]
    try:
        torch.cuda.init()
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        (torch.zeros(1, device="cuda") + 1).item()  # raises if this torch has no code for the GPU
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
            text = "GPU hidden by CUDA_VISIBLE_DEVICES: the CPU does everything"
            return [driver_check, Check("gpu", "ok", text)]
        remedy = f"install a driver for CUDA {torch.version.cuda}, or a torch for CUDA {driver_for}"
        return [driver_check, Check("gpu", "broken", f"torch cannot use it: {reason[:300]}", remedy)]
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    number = f"{len(names)} x " if len(names) > 1 else ""
    text = f"{number}{names[0]}, {gib:.0f} GiB"
    if device.type != "cuda":
        text += "; --device cpu leaves it idle"
    return [driver_check, Check("gpu", "ok", text)]


def _nccl(device: torch.device, num_ranks: int) -> Check:
    """Check NCCL by a sum in a group of one rank; only several ranks need it."""
    if not dist.is_available() or not dist.is_nccl_available():
        remedy = "several GPUs need a torch that has it" if num_ranks > 1 else ""
        return Check("nccl", "warning" if num_ranks > 1 else "ok", "this torch has no NCCL", remedy)
    version = ".".join(map(str, torch.cuda.nccl.version()))
    if dist.is_initialized():
        return Check("nccl", "ok", version)
    try:
        dist.init_process_group(
            "nccl", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60)
        )
        dist.all_reduce(torch.zeros(1, device=device))
        torch.cuda.synchronize(device)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        state: State = "broken" if num_ranks > 1 else "warning"
        remedy = "start it with NCCL_DEBUG=INFO, which tells more"
        return Check("nccl", state, f"{version} makes no group of one rank: {reason}", remedy)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return Check("nccl", "ok", f"{version}, a group of one rank works")


def _decoders(device: torch.device) -> list[Check]:
    """Return the decoders that can run; where one is missed, the loader's own warning says what to do."""
    found = []
    if not libffcv.why_missing():
        found.append(Check("ffcv", "ok", version_of("ffcv")))
    if not dali.why_missing(device):
        found.append(Check("dali", "ok", version_of("nvidia-dali-cuda130", "nvidia-dali-cuda120")))
    return found


def _triton(device: torch.device) -> Check:
    """Check whether Triton can build the fused kernels."""
    modules, reason = fused_modules(device)
    if modules:
        return Check("triton", "ok", f"{reason}, the fused kernels run")
    remedy = "views are made in torch instead, slower (--augment-backend torch)"
    return Check("triton", "warning", reason, remedy)


def _compiler(is_cuda: bool) -> Check:
    """Check torch.compile's compiler: C++ on the CPU, C and Python's headers on CUDA (Triton's launchers)."""
    variable, usual = ("CC", ("gcc", "clang")) if is_cuda else ("CXX", ("g++", "clang++"))
    names = (os.environ.get(variable) or usual[0], *usual)
    compiler = next((path for name in names if (path := shutil.which(name))), None)
    if compiler is None:
        text = f"no {'C' if is_cuda else 'C++'} compiler on the PATH: --compile on cannot be"
        return Check("compiler", "warning" if is_cuda else "ok", text, f"apt-get install {usual[0]}")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if is_cuda and not headers.is_file():
        return Check("compiler", "warning", f"{compiler}, but no {headers}", "apt-get install python3-dev")
    return Check("compiler", "ok", compiler)


def version_of(*packages: str) -> str:
    """Return the version of the first of `packages` that is installed."""
    found = (each.version for name in packages for each in metadata.distributions(name=name))
    return next(found, "of an unknown version")
