"""Faults of a GPU, its driver and the communication of ranks, recognised by error texts, with remedies."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

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
        "kornia --compile off does without fastpsl's own; if it comes and goes, test the GPU (nvidia-smi "
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
