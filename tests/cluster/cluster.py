"""The cluster that toolchain/slurm.sh starts: jobs, waits with a limit, and nodes that die."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.programs import ROOT

T = TypeVar("T")
LIMIT_S = 300.0  # of each wait; the longest takes 70 s: Slurm looks at time limits twice a minute
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


def slurm(*command: str, **environment: str) -> str:
    """Run a command of Slurm and return what it prints."""
    done = subprocess.run(
        command, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done
    return done.stdout.strip()


def fastpsl(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command of `fastpsl` to its end."""
    return subprocess.run(
        ["fastpsl", *arguments],
        env=ENVIRONMENT,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


def submit(*arguments: str, **environment: str) -> str:
    """Give arguments to sbatch, and return the job's number."""
    return slurm("sbatch", "--parsable", *arguments, **environment)


def job(number: str) -> dict[str, str]:
    """Return what scontrol tells of a job, such as JobState and Restarts."""
    words = slurm("scontrol", "show", "job", "--oneliner", number).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_for(what: Callable[[], T | None], why: Callable[[], object] = lambda: None) -> T:
    """Return the first value of `what` that is true.

    Args:
        what: It is called five times a second, for LIMIT_S at most.
        why: Returns what is shown where the time is over.
    """
    deadline = time.monotonic() + LIMIT_S
    while not (value := what()):
        assert time.monotonic() < deadline, why()
        time.sleep(0.2)
    return value


def wait_for_end(number: str) -> dict[str, str]:
    """Return what scontrol tells of a job that has ended."""

    def ended() -> dict[str, str] | None:
        found = job(number)
        return None if found["JobState"] in ("PENDING", "RUNNING", "COMPLETING") else found

    return wait_for(ended, lambda: job(number))


def kill_node(name: str) -> None:
    """Kill a node's slurmd and all processes of its jobs, with the daemons that look after these."""
    tasks = processes(f"SLURMD_NODENAME={name}")
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in tasks}
    daemons = [pid for pid in parents if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"slurmstepd")]
    assert daemons, "nothing of a job runs there"
    slurmd = int((Path(os.environ["SLURM_CONF"]).parent / f"{name}.pid").read_text())
    for pid in (slurmd, *daemons, *tasks):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(*variables: str) -> list[int]:
    """Return the processes that have all these variables, such as RANK=1, in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if set(map(str.encode, variables)) <= set(path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
    return found


def start_nodes() -> None:
    """Start the daemons that are gone, and wait until both nodes can be used."""
    script, folder = ROOT / "toolchain" / "slurm.sh", Path(os.environ["SLURM_CONF"]).parent
    subprocess.run(["bash", str(script), "start", str(folder)], check=True, timeout=120)


def why_not() -> str | None:
    """Return why the tests cannot run; None if they can."""
    if shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ:
        return "there is no Slurm cluster to try: `make cluster` starts one"
    return None
