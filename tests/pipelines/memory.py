"""Peak memory of a script in a process of its own."""

import subprocess
import sys

# Not getrusage: its ru_maxrss starts at that of the process that forked.
PEAK = """
def peak_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
"""


def printed_by(script: str, *arguments: object) -> list[float]:
    """The numbers that `script`, which may call peak_mib(), prints."""
    command = [sys.executable, "-c", PEAK + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]
