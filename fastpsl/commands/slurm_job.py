"""A job of Slurm: its submission, its state in the queue, and its log."""

import json
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from fastpsl.console.progress import note_output, operation

LOOK_EVERY_S = 1.0  # for new lines of the log
ASK_EVERY_S = 5.0  # squeue, which all users of a cluster ask
_ANSWER_S = 60.0
_LEFT = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


class State(NamedTuple):
    """A job's state in the queue: in words, and whether it has ended."""

    words: str
    has_ended: bool = False


def require_slurm(*, has_environment: bool) -> None:
    """Check that a job can be submitted, and that it will find `fastpsl`.

    Args:
        has_environment: Whether the script sets up an environment of its own.

    Raises:
        ValueError: There is no sbatch, or no `fastpsl` on PATH.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "there is no sbatch here: give this command on a login node of a Slurm cluster; "
            "--print shows the script"
        )
    if not has_environment and shutil.which("fastpsl") is None:
        raise ValueError(
            "the job would not find fastpsl, which is not on PATH: activate its environment first, or let "
            "--setup do it"
        )


def submit(script: Path) -> str:
    """Give a script to sbatch, and return the job's number.

    Raises:
        ValueError: sbatch refuses it.
    """
    done = _ask("sbatch", "--parsable", str(script.absolute()))  # whose name may begin as an option does
    if done.returncode:
        raise ValueError(f"sbatch does not take the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def state_of(job: str) -> State:
    """Return a job's state as squeue tells it."""
    done = _ask("squeue", "--noheader", "--states=all", "--format=%T|%r|%N|%S", f"--jobs={job}")
    if done.returncode and "Invalid job id" not in done.stderr:
        return State(f"squeue does not answer ({' '.join(done.stderr.split())})")
    if not done.stdout.strip():
        return State("no longer in the queue", has_ended=True)
    state, reason, nodes, start = done.stdout.splitlines()[0].split("|")
    words = state + (f" on {nodes}" if nodes else "") + (f" ({reason})" if reason != "None" else "")
    if state == "PENDING" and start != "N/A":
        words += f", to start by {start}"
    return State(words, state in _LEFT)


def follow(job: str, out: Path) -> int:
    """Print a job's log as it grows, and its state beside the run's status.json, until it has ended.

    Args:
        job: The job's number.
        out: The run's folder.

    Returns:
        0 if the run finished, else 1.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message tells how to follow the job again, and how to cancel it.
    """
    log, position, line, asked = out / f"slurm-{job}.log", 0, "", float("-inf")
    try:
        with operation(f"job {job}") as progress:
            while True:
                if time.monotonic() - asked >= ASK_EVERY_S:
                    state, asked = state_of(job), time.monotonic()
                position = _print_from(log, position)
                if (now := f"job {job}: {state.words}; {_status(out)}") != line:
                    line = now
                    print(line, flush=True)
                    progress.rename(line)
                    note_output()
                if state.has_ended:
                    return 0 if _status(out).startswith("status.json finished") else 1
                time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"job {job} goes on; `tail -f -- {shlex.quote(str(log))}` and `squeue --jobs {job}` show it, "
            f"`scancel {job}` ends it"
        ) from None


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {_ANSWER_S:.0f} s")


def _status(out: Path) -> str:
    """Return status.json in words."""
    try:
        status = json.loads((out / "status.json").read_text())
    except (OSError, ValueError):
        return "no status.json yet"
    where = f"status.json {status['state']}, stage {status['stage']}, step {status['step']}"
    return where + (f": {status['reason']}" if status["reason"] else "")


def _print_from(log: Path, position: int) -> int:
    """Print what a log has behind a position, and return the position of its end."""
    if not log.exists():
        return position
    with log.open("rb") as file:
        file.seek(position)
        new = file.read()
    if new:
        print(new.decode(errors="replace"), end="", flush=True)
        note_output()
    return position + len(new)
