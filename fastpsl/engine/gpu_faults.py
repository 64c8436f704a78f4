"""Faults of a GPU, its driver and the talk of ranks by the words that tell of them, each with what to do; and why there is no CUDA."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


class Fault(NamedTuple):
    """words: any of them tells of it, in CUDA's, Triton's, DALI's, NCCL's and gloo's errors. what: for people; remedy: what to do."""

    words: tuple[str, ...]
    what: str
    remedy: str


# What keeps torch from a GPU that is there.
_OF_DRIVERS = (
    Fault(
        ("driver on your system is too old", "driver version is insufficient", "forward compatibility was attempted"),
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
        "start what links them (systemctl start nvidia-fabricmanager), of the driver's own version",
    ),
    Fault(
        ("busy or unavailable", "cudaErrorDevicesUnavailable", "exclusive-"),
        "the GPU is taken",
        "nvidia-smi names the processes on it; take another one (CUDA_VISIBLE_DEVICES), or let several share it (nvidia-smi -c DEFAULT)",
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
        "CUDA_LAUNCH_BLOCKING=1 before the command names it in error.txt, and --augment kornia --step eager does without ours; where it "
        "comes and goes, look at the GPU (nvidia-smi -q -d ECC)",
    ),
    Fault(
        ("ECC error", "NVLink error", "nvlink or a hardware error", "hardware stack error"),
        "the GPU's memory or its links fail",
        "nvidia-smi -q -d ECC,ROW_REMAPPER tells more; reset it (nvidia-smi --gpu-reset), or take another one (CUDA_VISIBLE_DEVICES)",
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
        "nvidia-smi says whether it is there, and dmesg | grep Xid why not; restart the machine, or take another one (CUDA_VISIBLE_DEVICES)",
    ),
    Fault(
        ("Duplicate GPU detected",),
        "two ranks have one GPU",
        "give torchrun's --nproc-per-node no more than there are GPUs (nvidia-smi -L)",
    ),
    Fault(
        ("NCCL", "nccl", "/gloo/"),
        "the ranks cannot talk: another one has gone or hangs, or the network does not let them",
        "look at the first rank's error; NCCL_DEBUG=INFO before the command tells more, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the network",
    ),
)  # fmt: skip
# Whose errors these are; others may say such words of their own business.
_SPEAKERS = ("cuda", "cublas", "cudnn", "nccl", "nvml", "/gloo/")
# Of a rank that found no other at the end of the line, or waited for it in vain: gloo's, which names its file, NCCL's, and those of the
# ranks' store.
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
# CUDA's advice to developers follows in the same breath.
_ADVICE = (
    " Search for `",
    " CUDA kernel errors might",
    " For debugging consider",
    ". Please ",
    ". This is typically caused",
    ". This may indicate",
    " Exception raised from",
)
_LONGEST = 200


def device_fault(text: str) -> str | None:
    """One line of what an error's text tells of, None where it is no such fault. text: without line breaks."""
    if any(word in text.lower() for word in _SPEAKERS):
        for fault in (*_OF_DRIVERS, *_IN_A_RUN):
            if any(words in text for words in fault.words):
                return f"{fault.what} ({_first_words(text)}): {fault.remedy}"
    return None


def lost_rank(text: str) -> str | None:
    """What an error's text tells of another rank ("has gone ..."), else None. text: without line breaks."""
    known = _GLOOS_LOST_RANK if "/gloo/" in text else _LOST_RANK
    if not any(words in text for words in known):
        return None
    said = re.sub(r"^\[[^ ]*\] ", "", _first_words(text))  # the file of gloo's that says it
    return f"has gone or hangs ({said}): look for its error in the log, or at its machine"


def why_no_cuda() -> tuple[str, str]:
    """Why torch sees no CUDA device, in torch's own words or ours; and what to do about it, besides --device cpu."""
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
    """Whether the machine has NVIDIA's driver, and no wish of the user's hides its GPUs."""
    return _DRIVER_FILE.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")


def _first_words(text: str) -> str:
    for advice in _ADVICE:
        text = text.split(advice)[0]
    return text[:_LONGEST].rstrip(" .")
