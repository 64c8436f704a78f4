"""Small runs of each kind, seconds long, that the harness starts, strikes and judges.

They are forks of the warm server (`tests.warm`). Tests of the interpreter itself (imports, a broken pipe at
its exit) need a process of their own: `fresh`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.source import Sample
from tests.faults.report import ROOT, Outcome
from tests.pipelines.photos import jpeg, photo
from tests.programs import digests
from tests.warm import rank_variables, spawn

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": str(ROOT), "COLUMNS": "200",
}  # fmt: skip
LIMIT_S = 300.0
NOT_HERE = "not here"
NUM_SAMPLES = 80
Command = Sequence[object]  # (recipe's file, its options...), or ("fastpsl", a command...)
Environment = Mapping[str, str | None]  # variables to set, or with None to remove


class ProcessEnd(NamedTuple):
    """The end of a process.

    Attributes:
        code: The exit code; below 0 the signal that ended it, None if it was killed at its time limit.
    """

    code: int | None
    output: str  # its standard output, then its errors
    seconds: float  # the time that it ran


class RunningProcess:
    """A running process, with its errors in the file `log` and its output in a file beside it."""

    def __init__(self, process: ForkServerProcess | subprocess.Popen[bytes], log: Path):
        self._process, self.log, self._since = process, log, time.monotonic()
        assert process.pid
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its whole group; do nothing if none is left."""
        for kill in (os.killpg, os.kill):  # its session may not exist yet
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, number)
                return

    def wait(self, limit_s: float = LIMIT_S) -> ProcessEnd:
        """Wait for the end; after `limit_s` seconds kill the group and return the code None."""
        self.wait_until(lambda: False, limit_s, 0.01)
        code, seconds = self.poll(), time.monotonic() - self._since
        if code is None:
            self.send(signal.SIGKILL)
            self.wait_until(lambda: False, 10, 0.01)
        files = (self.log.with_suffix(".out"), self.log)
        texts = [path.read_text(errors="backslashreplace") for path in files if path.exists()]
        return ProcessEnd(code, "".join(texts), seconds)

    def wait_until(
        self, happened: Callable[[], object], limit_s: float = LIMIT_S, step_s: float = 1e-3
    ) -> bool:
        """Poll `happened` until it is true; return False if the process or the time ended first."""
        deadline = time.monotonic() + limit_s
        while self.poll() is None and time.monotonic() < deadline:
            if happened():
                return True
            time.sleep(step_s)
        return bool(happened())

    def others_left(self) -> bool:
        """Return whether a process of its group is still alive."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 0)
            return True
        return False


def start(
    command: Command,
    log: Path,
    environment: Environment | None = None,
    prepare: Callable[[], object] | None = None,
) -> RunningProcess:
    """Run a command in a fork of the warm server, with its errors in the file `log`.

    `prepare` is called in the fork before the command (limits, mounts). It must be picklable.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words, output = list(map(str, command)), log.with_suffix(".out")
    return RunningProcess(spawn(words, _variables(environment), ROOT, output, log, prepare), log)


def fresh(
    command: Command,
    log: Path,
    environment: Environment | None = None,
    before: Sequence[str] = (),
    **settings: Any,
) -> RunningProcess:
    """Run a command in an interpreter of its own, with words `before` it, and settings of Popen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    script, *options = map(str, command)
    program = ["-c", "from fastpsl.cli import main; main()"] if script == "fastpsl" else [script]
    words = [*before, sys.executable, *program, *options]
    with open(log.with_suffix(".out"), "ab") as output, open(log, "ab") as errors:
        settings = {"stdout": output, "stderr": errors, "cwd": ROOT, "start_new_session": True, **settings}
        return RunningProcess(subprocess.Popen(words, env=_variables(environment), **settings), log)


def _variables(environment: Environment | None) -> dict[str, str]:
    """Return all variables of a process."""
    variables = {**os.environ, **ENVIRONMENT, **(environment or {})}
    return {name: value for name, value in variables.items() if value is not None}


class Kind(NamedTuple):
    """A recipe with options that make it small."""

    name: str
    recipe: str
    options: tuple[object, ...]
    num_ranks: int = 1

    def command(self, out: Path, *more: object) -> list[object]:
        """Return the recipe's command for the folder `out`; `more` options come last and override others."""
        data = sample_paths().train if self.recipe == "jigsaw_r50" else sample_paths().train_32
        shared = ("--workers", 1, "--no-tensorboard", "--checkpoint-steps", 1, "--keep-checkpoints", 2)
        options = (*shared, "--log-steps", 2, "--data", data, *self.options, "--out", out, *more)
        return [ROOT / "recipes" / f"{self.recipe}.py", *options]

    def start(
        self, out: Path, log: Path, *more: object, prepare: Mapping[int, Callable[[], object]] | None = None
    ) -> list[RunningProcess]:
        """Start a process per rank, as torchrun does, but without its supervision.

        Rank 0 writes to `log`, rank N to `log` with its number added. `prepare` is as in `start`, by rank.
        """
        variables: list[dict[str, str]] = rank_variables(self.num_ranks) if self.num_ranks > 1 else [{}]
        return [
            start(
                self.command(out, *more),
                log.with_name(f"{log.stem}-{rank}{log.suffix}") if rank else log,
                each,
                (prepare or {}).get(rank),
            )
            for rank, each in enumerate(variables)
        ]


JIGSAW = Kind("jigsaw", "jigsaw_r50", (
    *("--backbone", "nin3", "--batch-size", 4, "--grid", 2, "--size-px", 36),
    *("--counts", 4, 8, 16, "--embedding-width", 16, "--permutations-per-image", 2),
    *("--max-steps-per-stage", 6),
))  # fmt: skip
MOCO = Kind("MoCo v2", "mocov2_r50", (
    *("--backbone", "nin3", "--size-px", 32, "--batch-size", 8, "--queue-size", 24, "--key-group", 2),
    *("--lr", 0.03, "--max-steps-per-stage", 6),
))  # fmt: skip
_RESNET = ("--backbone", "resnet18")
UIC = Kind("UIC", "uic_cifar10", (*_RESNET, "--batch-size", 80, "--num-clusters", 8, "--epochs", 2))
_IIC = ("--batch-size", 60, "--num-clusters", 8, "--num-copies", 2, "--epochs", 1)
IIC = Kind("IIC", "sslpp_iic", (*_RESNET, *_IIC))
RANKS = JIGSAW._replace(name="two ranks", num_ranks=2)
ONE_STAGE = ("--plan", "end_to_end", "--epochs", 1)


def sslpp(labels: Path) -> Kind:
    """Return SSL++'s rotation with the labels of a run of `IIC`."""
    options = (*_RESNET, "--batch-size", 40, "--epochs", 1, "--pseudo-labels", labels)
    return Kind("SSL++", "sslpp_rotation", options)


def checkpoints(out: Path) -> list[str]:
    """Return the names of the checkpoints in a run's folder, unfinished ones included."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(out / "checkpoints") if "step-" in name)
    return []


def num_steps(out: Path) -> int:
    """Return the number of steps in a run's records."""
    with contextlib.suppress(FileNotFoundError):
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def left_behind(out: Path) -> dict[str, object]:
    """Return the parts of a finished run's files that training determines.

    They are the leaves of its last checkpoint, and its records of steps, epochs and labels.
    """
    newest = max((out / "checkpoints").glob("step-*.pt"))
    records = [out / name for name in ("metrics.jsonl", "epochs.jsonl", "labels.npz")]
    leaves = digests(torch.load(newest, weights_only=True))
    files = {path.name: path.read_bytes() for path in records if path.exists()}
    return {"checkpoint": newest.name, **leaves, **files}


def ended_as(out: Path, undisturbed: Path, outcome: Outcome, than: str = "the undisturbed run") -> Outcome:
    """Return the outcome of a run; one that "goes on" must have left what the undisturbed one did."""
    if outcome[0] != "goes on":
        return outcome
    left, expected = left_behind(out), left_behind(undisturbed)
    names = sorted(name for name in left.keys() | expected.keys() if left.get(name) != expected.get(name))
    return ("differs", f"{', '.join(names[:5])} from {than}; {outcome[1]}") if names else outcome


def verdict(
    ended: ProcessEnd,
    speaker: str = JIGSAW.recipe,
    words: Sequence[str] = (),
    codes: Sequence[int] = (0,),
    refusals: Sequence[int] = (2,),
) -> Outcome:
    """Return the outcome of a process, in the words of `report`, and its last line."""
    lines = ended.output.strip().splitlines() or [""]
    last = lines[-1][-500:]
    if ended.code is None:
        return "hang", f"after {ended.seconds:.0f} s: {last}"
    if "Traceback (most recent call last)" in ended.output:
        return "traceback", last
    if ended.code < 0:
        return "crash", f"{signal.Signals(-ended.code).name}: {last}"
    if ended.code in codes:
        return "goes on", last if ended.code else ""
    if ended.code not in refusals or not words or not lines[-1].startswith(f"{speaker}: "):
        return "unclear", f"exit {ended.code}: {last}"
    missing = [word for word in words if word not in lines[-1]]
    return ("unclear", f"without {missing}: {last}") if missing else ("refused", last)


def recipe(
    folder: Path,
    *more: object,
    out: Path | None = None,
    words: Sequence[str] = (),
    speaker: str = JIGSAW.recipe,
    refusals: Sequence[int] = (2,),
    how: Callable[..., RunningProcess] = start,
    **settings: Any,
) -> Outcome:
    """Start a short run, by default in `folder`/run: it must finish, or end in a line with `words`."""
    command = JIGSAW.command(out or folder / "run", "--max-steps-per-stage", 2, *more)
    return verdict(how(command, folder / "log", **settings).wait(), speaker, words, refusals=refusals)


def fastpsl(
    folder: Path, *arguments: object, words: Sequence[str] = (), speaker: str = "", **settings: Any
) -> Outcome:
    """Run a command of `fastpsl data`: it must finish, or end in a line with `words`."""
    speaker = speaker or f"fastpsl {arguments[0]} {arguments[1]}"
    return verdict(start(("fastpsl", *arguments), folder / "log", **settings).wait(), speaker, words)


def long_run(out: Path, log: Path, *more: object) -> RunningProcess:
    """Start an endless run with a checkpoint every 20 steps, and return after its first steps."""
    endless = ("--epochs", 1000, "--max-steps-per-stage", 10_000, "--checkpoint-steps", 20)
    process = start(JIGSAW.command(out, *ONE_STAGE, *endless, *more), log)
    assert process.wait_until(lambda: num_steps(out) >= 4), log.read_text()[-1000:]
    return process


def stop_after(process: RunningProcess, out: Path, more_steps: int, words: Sequence[str] = ()) -> Outcome:
    """Stop a long run after so many more steps, and return its outcome, or that of an earlier end."""
    step = num_steps(out) + more_steps
    process.wait_until(lambda: num_steps(out) >= step)
    process.send(signal.SIGTERM)
    return verdict(process.wait(), words=words, codes=(75,))


def litter(folder: Path) -> str:
    """Return the temporary files that outlived their writer, in words."""
    paths = (path for path in folder.rglob(".*") if path.suffix in (".tmp", ".partial"))
    names = sorted(str(path.relative_to(folder)) for path in paths)
    return f"left behind: {', '.join(names)}" if names else ""


def beton(path: Path, seed: int = 0) -> Path:
    """Write a beton of photos of 130 to 190 px, and return its path."""
    samples = (Sample(f"{i}.jpg", _photo(seed + i % 40, i), i % 4) for i in range(NUM_SAMPLES))
    names = ["a", "b", "c", "d"]
    settings: dict[str, Any] = {"class_names": names, "target": Target(), "page_bytes": 1 << 21}
    write_beton(samples, path, num_samples=NUM_SAMPLES, **settings)
    return path


def write_images(folder: Path, num: int = 64) -> Path:
    """Write a folder of photos of 130 to 190 px in 4 classes, and return its path."""
    for number in range(num):
        path = folder / f"class {number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_photo(number, number))
    return folder


def _photo(seed: int, number: int) -> bytes:
    return jpeg(photo(seed, 130 + 7 * number % 60, 130 + 11 * number % 60))
