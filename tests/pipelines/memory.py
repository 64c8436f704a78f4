"""The memory of this process, and the numbers that a script prints in a process of its own."""

import subprocess
import sys
from pathlib import Path

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
