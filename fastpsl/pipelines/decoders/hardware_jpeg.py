"""The proof that a GPU's JPEG engines work: nvJPEG opens its hardware decoder.

A100, H100, H200, B200, Ada's server cards and others have engines. nvJPEG reaches them by libnvcuvid, which
belongs to the driver, and DALI decodes on the CPU's cores without a word where that is missing.
"""

import ctypes
import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SUCCESS, _ARCH_MISMATCH = 0, 7  # nvjpegStatus_t (nvjpeg.h)
_HARDWARE = 3  # nvjpegBackend_t: NVJPEG_BACKEND_HARDWARE
_NVCUVID = "libnvcuvid.so.1"
# Names of slices of a GPU: "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "GRID A100-10C", "NVIDIA H100-80C".
_SLICE = re.compile(r"\bMIG\b|\bGRID\b|-\d+[ABCQ]$")

_NO_VIDEO = (
    'driver capability "video" is missing in this container: start it with '
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video "
    "(docker --gpus 'all,\"capabilities=compute,utility,video\"')"
)
_NO_NVCUVID = (
    f"{_NVCUVID} of the driver is missing, by which the JPEG engines are reached: install the driver's "
    "decode package (such as libnvidia-decode-580, of the driver's number)"
)
# What container programs leave in a container: Docker, Podman, Kubernetes, and what systemd notes of others.
_CONTAINER_FILES = (
    "/.dockerenv",
    "/run/.containerenv",
    "/run/secrets/kubernetes.io",
    "/run/systemd/container",
)
_CONTAINER_VARIABLES = (
    "container",
    "KUBERNETES_SERVICE_HOST",
    "APPTAINER_CONTAINER",
    "SINGULARITY_CONTAINER",
)


@cache
def why_slower(device: torch.device) -> str:
    """Return why a GPU's JPEG engines cannot be used, with the remedy; empty if they can, or on a CPU."""
    if device.type != "cuda":
        return ""
    with torch.cuda.device(device):
        torch.cuda.init()
        return why_idle(nvjpeg_library(), torch.cuda.get_device_name(device))


def why_idle(library: Any, name: str) -> str:
    """Return why the JPEG engines of the current device cannot be used, with the remedy; empty if they can.

    Args:
        library: The nvJPEG library, or None.
        name: The device's name.
    """
    if not loads(_NVCUVID):
        remedy = _NO_VIDEO if is_in_container() else _NO_NVCUVID
        if num_engines(library) != 0:
            return remedy
        # Whether nvJPEG counts rightly without this library is not known.
        return f"{name} has no JPEG engines, as far as nvJPEG can tell. If it should have some: {remedy}"
    status = _open_engines(library)
    if status == _SUCCESS:
        return ""
    if status is None:
        return (
            "whether the JPEG engines work is unknown, because nvJPEG is missing or too old: "
            "install the DALI of torch's CUDA anew"
        )
    if _SLICE.search(name):
        return (
            f"{name} has no JPEG engine in this slice of a GPU (nvJPEG: status {status}): "
            "choose a MIG profile with media engines (such as 1g.10gb+me), or the whole GPU"
        )
    if status == _ARCH_MISMATCH:
        return f"{name} has no JPEG engines: the host's cores take a part of each image"
    return f"nvJPEG cannot open the JPEG engines of {name} (status {status}): update the driver"


def loads(name: str) -> bool:
    """Return whether a shared library can be loaded."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def is_in_container() -> bool:
    """Return whether this process seems to run in a container."""
    return any(map(os.path.exists, _CONTAINER_FILES)) or any(map(os.environ.get, _CONTAINER_VARIABLES))


def _open_engines(library: Any) -> int | None:
    """Open the hardware decoder and close it again; return nvJPEG's status, or None if it has no answer.

    Source: nvJPEG's documentation, nvjpegCreateEx.
    """
    handle = ctypes.c_void_p()
    try:
        status = library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle))
    except AttributeError:  # no library, or an older one
        return None
    if status == _SUCCESS:
        library.nvjpegDestroy(handle)
    return int(status)


def num_engines(library: Any) -> int | None:
    """Return the number of JPEG engines of the current device; None if nvJPEG does not report it.

    Source: nvJPEG's documentation, nvjpegGetHardwareDecoderInfo.

    Args:
        library: The nvJPEG library, or None.
    """
    handle, num, num_cores = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_uint(0)
    if library is None or library.nvjpegCreateSimple(ctypes.byref(handle)) != _SUCCESS:
        return None
    try:
        ask = library.nvjpegGetHardwareDecoderInfo
        status = ask(handle, ctypes.byref(num), ctypes.byref(num_cores))
    except AttributeError:  # an older nvJPEG
        return None
    finally:
        library.nvjpegDestroy(handle)
    if status == _ARCH_MISMATCH:
        return 0
    return int(num.value) if status == _SUCCESS else None


def nvjpeg_library() -> Any:
    """Load the nvJPEG that is installed beside DALI, else the system's; return None without either."""
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"libnvjpeg.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    paths = [folder / part / "lib" / name for folder in folders for part in (f"cu{major}", "nvjpeg")]
    for path in (*(str(path) for path in paths if path.exists()), name):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None
