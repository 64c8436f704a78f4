"""The device: whether there is one, its settings, seed, clock, copies to the host, and memory.

The settings belong to the process. A run sets them by these functions, and `restore_flags` restores the
process's own values.
"""

import ctypes
import functools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastpsl.files.digest import blake2b
from fastpsl.pipelines.decoders.memory import pinned_like

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_CPU_FILE = Path("/proc/cpuinfo")
# Values of oneDNN's variable for its highest instruction set under which torch does not use those of bf16.
_ISA_WITHOUT_BF16 = {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"}
# glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, the bytes from which memory goes back to Linux, and
# M_MMAP_MAX, how many tensors may be mapped. Each has its value in a run and the value after it. glibc does
# not tell the values before a run, so the later ones are its defaults, or the largest that it chooses itself.
# Some versions of glibc refuse a larger M_MMAP_THRESHOLD.
_MALLOC = {-3: (32 << 20, 32 << 20), -1: ((1 << 31) - 1, 64 << 20), -4: (0, 65536)}
# The driver's errors that mean: it is older than torch's CUDA.
DRIVER_TOO_OLD = (
    "driver on your system is too old", "driver version is insufficient",
    "forward compatibility was attempted",
)  # fmt: skip
UPDATE_DRIVER = "update it, or install a torch for the CUDA that it serves (nvidia-smi tells; pytorch.org)"
# The beginnings of CUDA's advice to developers, which follows the error in the same text.
_ADVICE = (
    " Search for `", " CUDA kernel errors might", " For debugging consider", ". Please",
    ". This is typically caused", ". This may indicate", " Exception raised from",
)  # fmt: skip


def why_no_cuda() -> tuple[str, str]:
    """Return why torch finds no CUDA device, and a remedy besides --device cpu."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for the CPU", "install one with CUDA (pytorch.org)"
    text = "there is none"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        text = without_advice(error)
    if any(words in text for words in DRIVER_TOO_OLD):
        return text, UPDATE_DRIVER
    return text, "look whether nvidia-smi and CUDA_VISIBLE_DEVICES show one"


def without_advice(error: Exception) -> str:
    """Return an error's text in one line of at most 200 characters, without CUDA's advice to developers."""
    text = " ".join(str(error).split())
    for advice in _ADVICE:
        text = text.split(advice)[0]
    return text[:200].rstrip(" .")


def unused_gpu() -> bool:
    """Return whether NVIDIA's driver is installed and CUDA_VISIBLE_DEVICES does not hide all GPUs."""
    return _DRIVER_FILE.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")


def cpu_has_bf16() -> bool:
    """Return whether torch computes faster in bf16 on this CPU: by AMX, or by AVX-512 BF16 of AMD.

    Intel's AVX-512 BF16 multiplies no more numbers in a cycle than float32, and the conversions come on top
    (bench/results/training-cpu-folder.json; AMD's: training-cpu-epyc.json). Other CPUs convert each number.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower() in _ISA_WITHOUT_BF16:
        return False
    flags, is_amd = _of_cpu(_CPU_FILE, "flags").split(), _of_cpu(_CPU_FILE, "vendor_id") == "AuthenticAMD"
    return "amx_bf16" in flags or ("avx512_bf16" in flags and is_amd)


def cpu_name() -> str:
    """Return the processor's name, as Linux has it, or else its architecture."""
    return _of_cpu(_CPU_FILE, "model name") or platform.machine()


@functools.cache
def _of_cpu(path: Path, field: str) -> str:
    """Return a field of the first core, as Linux tells it; nothing elsewhere."""
    with suppress(OSError), path.open(encoding="utf-8") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
    return ""


_restore = ExitStack()  # global, as the flags are


def set_cudnn_benchmark(enabled: bool) -> None:
    """Set whether cuDNN times its algorithms for each new shape, which pays if there are few shapes."""
    cudnn = torch.backends.cudnn
    _restore.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
    cudnn.benchmark = enabled


def allow_tf32() -> None:
    """Allow TF32 for matrix products of float32."""
    _restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high")


def keep_freed_memory() -> None:
    """Have glibc's malloc keep the memory of large tensors that are freed, for the next ones.

    It would give each back to Linux, which maps and clears the pages of the next one anew.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc
        return
    _restore.callback(libc.malloc_trim, 0)  # at last, what was kept goes back
    for parameter, (kept, usual) in _MALLOC.items():
        libc.mallopt(parameter, kept)
        _restore.callback(libc.mallopt, parameter, usual)


def restore_flags() -> None:
    """Restore the values that the process had before the first call of the other functions."""
    _restore.close()


def torch_seed(*numbers: int) -> int:
    """Return a 63-bit seed for `torch.manual_seed`, derived from `numbers`."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def samples_per_s(
    work: Callable[[], int], seconds: float, device: torch.device | str, min_calls: int = 1
) -> float:
    """Measure the samples per second of repeated calls."""
    synchronise(device)
    start, num_samples, num_calls = time.perf_counter(), 0, 0
    while num_calls < min_calls or time.perf_counter() - start < seconds:
        num_samples += work()
        num_calls += 1
    synchronise(device)
    return num_samples / (time.perf_counter() - start)


def synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device | str, repeats: int = 10) -> list[float]:
    """Return the milliseconds of each of `repeats` calls, by the device's clock, after one untimed call."""
    work()
    if torch.device(device).type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        return times
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    synchronise(device)
    for begin, end in events:
        begin.record()
        work()
        end.record()
    synchronise(device)
    return [begin.elapsed_time(end) for begin, end in events]


Item = TypeVar("Item")


class AsyncCopy:
    """A transfer of a tensor to the host, queued behind the device's work. `values` waits for it.

    If `values` is called after the next step was launched, the device computes that step during the wait.
    """

    def __init__(self, values: Tensor):
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = pinned_like(values).copy_(values, non_blocking=True)
            # With blocking=True the wait sleeps. torch's default would occupy a core.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def values(self) -> Tensor:
        """Return the tensor on the host. From a GPU it may be pinned memory, so copy it to keep it long."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after the next one was drawn, so that the device works on that one meanwhile."""
    items_held: list[Item] = []
    for item in items:
        items_held.append(item)
        if len(items_held) > 1:
            yield items_held.pop(0)
    yield from items_held


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of `peak_memory`. It does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak of torch's tensors since the last reset, and the bytes in use on the device now.

    The latter include torch's cache, which does not shrink, the decoder, libraries and other processes. On
    the CPU, the dict is empty.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return {"peak_allocated_bytes": peak, "device_used_bytes": total - free}


def memory_held(device: torch.device) -> int | None:
    """Return the bytes that torch holds on the device, with its cache; None on the CPU.

    It is torch's own count, for which the device is not asked. Decoders and libraries hold more.
    """
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


@contextmanager
def nvml(device: torch.device) -> Iterator[Callable[..., bool]]:
    """Yield a function that asks NVML about a device.

    `ask("nvmlDeviceGet…", *arguments)` fills the arguments that are values of ctypes, and passes plain
    integers on. It returns False for a CPU, and where the driver or the GPU does not know the value.
    """
    library, handle = _nvml() if device.type == "cuda" else None, ctypes.c_void_p()

    def ask(question: str, *arguments: Any) -> bool:
        function = getattr(library, question, None)
        given = [each if isinstance(each, int) else ctypes.byref(each) for each in arguments]
        return function is not None and function(handle, *given) == 0

    if library is None or library.nvmlInit_v2() != 0:
        yield lambda *_: False
        return
    try:
        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", "")).removeprefix("GPU-")
        is_found = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)) == 0
        yield ask if is_found else lambda *_: False
    finally:
        library.nvmlShutdown()


def _nvml() -> Any:
    """Return the driver's NVML, or None."""
    with suppress(OSError):
        return ctypes.CDLL("libnvidia-ml.so.1")
    return None
