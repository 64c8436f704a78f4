"""Failures of the GPU, driver, compiler or another rank, explained in one line with a remedy."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from fastpsl.console.terminal import own_rank
from fastpsl.console.words import gibibytes
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.run import Run
from fastpsl.models.names import LESS_MEMORY

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


class Fault(NamedTuple):
    """A fault with its remedy.

    Attributes:
        words: Any of them in an error of CUDA, Triton, DALI, NCCL or Gloo indicates the fault.
        what: The fault, for people.
        remedy: What to do.
    """

    words: tuple[str, ...]
    what: str
    remedy: str


# Faults that keep torch from using an existing GPU.
_OF_DRIVERS = (
    Fault(
        (
            "driver on your system is too old",
            "driver version is insufficient",
            "forward compatibility was attempted",
        ),
        "the driver is older than torch's CUDA",
        "update it, or install a torch for the CUDA that it serves (nvidia-smi tells; pytorch.org)",
    ),
    Fault(
        ("unsupported display driver", "cudaErrorSystemDriverMismatch", "Driver/library version mismatch"),
        "the driver's parts are of different versions",
        "restart the machine, as after an update of the driver",
    ),
    Fault(
        ("system not yet initialized", "cudaErrorSystemNotReady"),
        "the machine's GPUs are not ready",
        "start the service that links them (systemctl start nvidia-fabricmanager), of the driver's own "
        "version",
    ),
    Fault(
        ("busy or unavailable", "cudaErrorDevicesUnavailable", "exclusive-"),
        "the GPU is taken",
        "nvidia-smi names the processes on it; take another one (CUDA_VISIBLE_DEVICES), or let several "
        "share it (nvidia-smi -c DEFAULT)",
    ),
)  # fmt: skip
_IN_A_RUN = (
    Fault(
        (
            "illegal memory access",
            "misaligned address",
            "device-side assert",
            "unspecified launch failure",
            "illegal instruction",
            "invalid program counter",
            "invalid address space",
            "_STATUS_EXECUTION_FAILED",
        ),
        "a kernel failed on the GPU",
        "with CUDA_LAUNCH_BLOCKING=1 before the command, error.txt names the kernel; --augment-backend "
        "unfused --compile off does without fastpsl's own; if it comes and goes, test the GPU (nvidia-smi "
        "-q -d ECC)",
    ),
    Fault(
        ("ECC error", "NVLink error", "nvlink or a hardware error", "hardware stack error"),
        "the GPU's memory or its links fail",
        "nvidia-smi -q -d ECC,ROW_REMAPPER tells more; reset it (nvidia-smi --gpu-reset), or take another "
        "one (CUDA_VISIBLE_DEVICES)",
    ),
    Fault(
        ("launch timed out",),
        "a kernel took longer than a GPU with a display may",
        "take a GPU without a display, or lower --batch-size",
    ),
    Fault(
        (
            "device lost",
            "device is lost",
            "GPU is lost",
            "fallen off the bus",
            "Xid",
            "no CUDA-capable device",
            "No CUDA GPUs are available",
            "CUDA error: unknown error",
        ),
        "the GPU has gone",
        "nvidia-smi tells whether it is there, and dmesg | grep Xid why not; restart the machine, or take "
        "another one (CUDA_VISIBLE_DEVICES)",
    ),
    Fault(
        ("Duplicate GPU detected",),
        "two ranks have one GPU",
        "give torchrun's --nproc-per-node no more than there are GPUs (nvidia-smi -L)",
    ),
    Fault(
        ("NCCL", "nccl", "/gloo/"),
        "the ranks cannot talk: another one has gone or hangs, or the network does not let them",
        "look at the first rank's error; NCCL_DEBUG=INFO before the command tells more, "
        "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the network",
    ),
)  # fmt: skip
# Only errors that name one of these count, because other libraries may use the same words.
_SPEAKERS = ("cuda", "cublas", "cudnn", "nccl", "nvml", "/gloo/")
# Errors of a rank that lost its connection to another one or waited in vain: those of Gloo, which names its
# file, of NCCL, and of the ranks' store.
_GLOOS_LOST_RANK = (
    "Connection closed by peer",
    "reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Read error",
)
_LOST_RANK = (
    "remote process exited",
    "ncclRemoteError",
    "collective operation timeout",
    "NCCL communicator was aborted",
    "wait timeout after",
    "Failed to recv, got 0 bytes",
)
# The beginnings of CUDA's advice to developers, which follows the error in the same text.
_ADVICE = (
    " Search for `",
    " CUDA kernel errors might",
    " For debugging consider",
    ". Please",
    ". This is typically caused",
    ". This may indicate",
    " Exception raised from",
)
_LONGEST = 200


def device_fault(text: str) -> str | None:
    """Return one line for a fault in an error's text without line breaks, or None for other texts."""
    if any(word in text.lower() for word in _SPEAKERS):
        for fault in (*_OF_DRIVERS, *_IN_A_RUN):
            if any(words in text for words in fault.words):
                return f"{fault.what} ({_first_words(text)}): {fault.remedy}"
    return None


def lost_rank(text: str) -> str | None:
    """Return a text about a lost rank ("has gone ..."), or None if the error has another cause."""
    known = _GLOOS_LOST_RANK if "/gloo/" in text else _LOST_RANK
    if not any(words in text for words in known):
        return None
    message = re.sub(r"^\[[^ ]*\] ", "", _first_words(text))  # without Gloo's source file
    return f"has gone or hangs ({message}): look for its error in the log, or at its machine"


def why_no_cuda() -> tuple[str, str]:
    """Return why torch finds no CUDA device, and a remedy besides --device cpu."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for the CPU", "install one with CUDA (pytorch.org)"
    text = "there is none"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        text = _first_words(" ".join(str(error).split()))
    for fault in _OF_DRIVERS:
        if any(words in text for words in fault.words):
            return text, fault.remedy
    return text, "look whether nvidia-smi and CUDA_VISIBLE_DEVICES show one"


def unused_gpu() -> bool:
    """Return whether NVIDIA's driver is installed and CUDA_VISIBLE_DEVICES does not hide all GPUs."""
    return _DRIVER_FILE.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")


def _first_words(text: str) -> str:
    for advice in _ADVICE:
        text = text.split(advice)[0]
    return text[:_LONGEST].rstrip(" .")


# Errors of allocations outside torch's allocator: by the driver, cuBLAS, cuDNN, DALI and Triton. If a few MiB
# are missing, cuBLAS and cuDNN only report that they could not be initialised.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "cudaErrorMemoryAllocation",
    "Triton Error [CUDA]: out of memory",
)


def explained(error: Exception, runs: Sequence[Run]) -> str | None:
    """Explain an error in one line for people, or return None for an error of another kind.

    Args:
        error: The error.
        runs: The runs in progress, of which the last one counts.
    """
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return _out_of_memory(runs[-1] if runs else None)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return (
            f"out of this machine's memory ({text[:_LONGEST] or 'no more is known'}): lower "
            f"--prefetch-batches, --workers or --batch-size{resume_hint(runs)}"
        )
    if (lost := lost_rank(text)) is not None:
        return f"a rank other than {own_rank()} {lost}{resume_hint(runs)}"
    if (fault := device_fault(text)) is not None:
        return fault + resume_hint(runs)
    if "Triton Error [CUDA]" in text:
        return (
            f"Triton's kernels do not run here ({text[:_LONGEST]}): its CUDA may be newer than the "
            "driver's; update the driver, or give --compile off --augment-backend unfused"
        )
    if "no kernel image is available" in text:
        return (
            f"this torch {torch.__version__} was built without kernels for this GPU: install one that was, "
            "or give --device cpu"
        )
    if compiler_failed(error):
        return f"torch.compile failed on this stage's blocks ({text[:_LONGEST]}): give --compile off"
    return None


def of_another_rank(error: Exception) -> bool:
    """Return whether this rank failed because another one did."""
    return lost_rank(" ".join(str(error).split())) is not None


def resume_hint(runs: Sequence[Run]) -> str:
    """Return a text with the checkpoint from which the same command resumes."""
    if not runs:
        return ""
    paths = runs[-1].checkpoints.paths()
    begins = f"goes on from {paths[-1].name}" if paths else "starts anew, as there is no checkpoint yet"
    return f"; the same command with --out {runs[-1].folder} {begins}"


def compiler_failed(error: Exception) -> bool:
    """Return whether torch.compile, or a compiler that it calls, failed."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)


def _out_of_memory(run: Run | None) -> str:
    if run is None:
        return "out of GPU memory: lower --batch-size"
    options, position, device = run.options, run.position, run.world.device
    line = (
        f"out of GPU memory in stage {position.stage + 1}, step {position.step}, with "
        f"{run.data.batch_size} images per pass on each GPU in {run.precision}{_in_use(device)}; what takes "
        "less: "
    )
    return line + ", ".join(_less(options, run.precision, run.world.size))


def _in_use(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
    except RuntimeError:  # the device no longer responds
        return ""
    others = total - free - reserved
    return (
        f" ({gibibytes(total)} on the device, {gibibytes(reserved)} held by torch, {gibibytes(others)} by "
        "all else)"
    )


def _less(options: TrainingOptions, precision: str, num_ranks: int) -> Iterator[str]:
    """Yield options that need less memory, first those that do not change the experiment."""
    if options.graph == "on" or (options.graph == "auto" and num_ranks == 1):
        yield "--graph off"
    try:
        parts = replace(options, accumulate=2 * options.accumulate)
        images = parts.rank_batch(num_ranks)
        yield f"--accumulate {parts.accumulate} (the same batch, {images} images per pass)"
    except ValueError:
        pass  # the task needs the whole batch, or the batch is not divisible
    if precision == "fp32":
        yield "--precision fp16"
    if lighter := LESS_MEMORY.get(getattr(options, "backbone", "")):
        yield "--backbone {} ({})".format(*lighter)
    yield f"or --batch-size {max(options.batch_size // 2, 1)} with the learning rate in proportion"
