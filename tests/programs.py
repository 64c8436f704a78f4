"""Recipes started as by a user, in processes of their own, and the checkpoints that they leave."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from tests import cheaper
from tests.warm import Running

ROOT = Path(__file__).resolve().parents[1]
SMALL_NET = f"{ROOT}/bench/evidence/networks.py:SmallResNet"  # a backbone or teacher of a Python file
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(script: Path, *arguments: object, ranks: int = 0) -> list[str]:
    """Return the command line: plain python for ranks=0, else torchrun with that many ranks."""
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, str(script), *map(str, arguments)]


def run(
    script: Path,
    *arguments: object,
    ranks: int = 0,
    environment: dict[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = 1200,
    prepare: Callable[[], object] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end and capture its output. No import reads what `environment` has.

    `ranks` processes find each other without an agent (see `warm.Running`); 0 is one plain process.
    `prepare` is called in each process first.
    """
    words = [str(script), *map(str, arguments)]
    variables = ENVIRONMENT | (environment or {})
    code, out, err = Running(words, variables, cwd, ranks, prepare=prepare).wait(timeout)
    return subprocess.CompletedProcess(words, code, out, err)


def run_fresh(
    script: Path,
    *arguments: object,
    ranks: int = 0,
    environment: dict[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = 1200,
) -> subprocess.CompletedProcess[str]:
    """Run a script as `run` does, but in fresh interpreters, and under torchrun itself if there are ranks.

    `environment` may have variables that imports read.
    """
    return subprocess.run(
        command(script, *arguments, ranks=ranks), check=False, env=ENVIRONMENT | (environment or {}), cwd=cwd,
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def interpreted(code: str, *arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter to its end, and capture its output."""
    command, settings = [sys.executable, "-c", code, *map(str, arguments)], {"timeout": 300, **settings}
    return subprocess.run(command, check=False, capture_output=True, text=True, **settings)


def said_at_once(code: str, environment: dict[str, str], num: int = 3, timeout: float = 280) -> set[str]:
    """Return the outputs of fresh interpreters that start at the same time, as ranks do."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(num)
    ]
    return {process.communicate(timeout=timeout)[0] for process in processes}


def torchrun(ranks: int | str, script: Path, *arguments: object) -> list[str]:
    """Return the words of a torchrun with some ranks, or some options, whose ranks are forks of it."""
    options = ranks if isinstance(ranks, str) else f"--standalone --nproc-per-node={ranks}"
    by_fork = ["--run-path", "--start-method=fork"]
    return ["torchrun", *options.split(), *by_fork, str(script), *map(str, arguments)]


def run_until(
    script: Path,
    *arguments: object,
    folder: Path,
    step: int,
    number: signal.Signals,
    ranks: int = 0,
    delay_s: float = 0.0,
    timeout: float = 1200,
) -> tuple[int, str]:
    """Send a signal to a script once it has written a checkpoint, and return its exit code and output.

    `ranks` processes run under torchrun, which gets the signal. SIGKILL goes to all processes. Networks are
    as cheap as those of the tests' process.
    """
    words = torchrun(ranks, script, *arguments) if ranks else [str(script), *map(str, arguments)]
    running = Running(words, ENVIRONMENT, ROOT, together=True, prepare=cheaper.for_good)
    wait_for_step(folder, step, lambda: running.code, timeout)
    time.sleep(delay_s)
    with contextlib.suppress(ProcessLookupError):  # it has already ended
        (os.killpg if number == signal.SIGKILL else os.kill)(running.pid, number)
    code, output, _ = running.wait(timeout)
    return code, output


def wait_for_step(folder: Path, step: int, code: Callable[[], int | None], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while newest_step(folder) < step and code() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint in a run's folder, or 0 if there is none."""
    return max(
        (int(path.stem.split("-")[1]) for path in (folder / "checkpoints").glob("step-*.pt")), default=0
    )


def newest_checkpoint(folder: Path) -> dict[str, Any]:
    path = max((folder / "checkpoints").glob("step-*.pt"))
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def records(path: Path) -> list[Any]:
    """Return the values of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def epoch_records(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's epochs.jsonl."""
    return records(folder / "epochs.jsonl")


def digests(state: Any, prefix: str = "") -> dict[str, str]:
    """Return digests of a checkpoint's leaves, except those that depend on the clock or machine."""
    leaves: dict[str, str] = {}
    items: Iterable[tuple[Any, Any]]
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        data = (
            state.contiguous().numpy().tobytes() if isinstance(state, torch.Tensor) else repr(state).encode()
        )
        return {prefix: hashlib.sha256(data).hexdigest()[:16]}
    for key, value in items:
        if key not in ("seconds", "joules", "machine"):
            leaves |= digests(value, f"{prefix}/{key}")
    return leaves
