"""The memory of this process, files in the page cache, and numbers that a script prints by itself."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

# Not by getrusage, because its ru_maxrss starts at the value of the parent process.
PEAK = """
def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
"""


def own_memory(name: str) -> int:
    """Return a value of /proc/self/status in bytes, such as VmRSS, VmHWM or VmSize."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def printed_by(script: str, *arguments: object) -> list[float]:
    """Run a script, which may call peak_mib(), and return the numbers that it prints."""
    command = [sys.executable, "-c", PEAK + script, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stderr
    return [float(number) for number in process.stdout.split()]


def drop_from_cache(path: Path) -> float:
    """Drop a file from the page cache, and return the share of its pages that remains, told by mincore."""
    with open(path, "rb") as file:
        os.fsync(file)  # because only pages that are on disk can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    mapped = np.memmap(path, np.uint8, "r")
    flags = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    if libc.mincore(mapped.ctypes.data, len(mapped), flags.ctypes.data):
        raise OSError(ctypes.get_errno(), "mincore failed")
    return float((flags & 1).mean())
