"""A query of nvJPEG for hardware JPEG decoders.

A100, H100, H200, B200, Ada's server cards and others have them.
"""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SUCCESS, _ARCH_MISMATCH = 0, 7  # nvjpegStatus_t (nvjpeg.h); the mismatch means no decoder in the device


@cache
def why_slower(device: torch.device) -> str:
    """Return a remark on a GPU without a hardware decoder; empty if it has one or it is unknown."""
    if device.type != "cuda":
        return ""
    with torch.cuda.device(device):
        torch.cuda.init()
        num = num_engines(nvjpeg_library())
    if num != 0:
        return ""
    return (
        f"{torch.cuda.get_device_name(device)} has no hardware JPEG decoder: "
        "the host's cores take a part of each image"
    )


def num_engines(library: Any) -> int | None:
    """Return the number of hardware decoders of the current device; None if nvJPEG does not report it.

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
