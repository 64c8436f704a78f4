"""Memory of this process, and the peak of a script in one of its own."""

import subprocess
import sys
from pathlib import Path

# Not getrusage: its ru_maxrss starts at that of the process that forked.
PEAK = """
def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
"""


def own_memory(name: str) -> int:
    """A line of /proc/self/status, in bytes: VmRSS, VmHWM, VmSize."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def printed_by(script: str, *arguments: object) -> list[float]:
    """The numbers that `script`, which may call peak_mib(), prints."""
    command = [sys.executable, "-c", PEAK + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]
