"""Small runs of each kind, seconds long, for faults to strike; and their results, compared bit for bit."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastpsl.pipelines.sample.betons import sample_paths
from tests.faults.forks import ROOT, ProcessEnd, RunningProcess, start
from tests.programs import digests
from tests.warm import rank_variables

_SHARED = (
    "--workers",
    1,
    "--no-tensorboard",
    "--checkpoint-steps",
    1,
    "--keep-checkpoints",
    2,
    "--log-steps",
    2,
)
_JIGSAW = (
    *("--backbone", "nin3", "--batch-size", 4, "--grid", 2, "--short-side", 40, "--cell-px", 18),
    *("--tile-px", 16, "--counts", 4, 8, 16, "--embedding-width", 16, "--permutations-per-image", 2),
    *("--max-steps-per-stage", 6),
)  # fmt: skip


class Kind(NamedTuple):
    """A recipe with options that make it small."""

    name: str
    recipe: str
    options: tuple[object, ...]
    num_ranks: int = 1
    large_images: bool = False

    def command(self, out: Path, *more: object) -> list[object]:
        """Return the recipe's command for the folder `out`; `more` options come last and override others."""
        data = sample_paths().train if self.large_images else sample_paths().train_32
        shared = (*_SHARED, "--data", data, *self.options, "--out", out, *more)
        return [ROOT / "recipes" / f"{self.recipe}.py", *shared]


JIGSAW = Kind("jigsaw", "jigsaw_r50", _JIGSAW, large_images=True)
MOCO = Kind(
    "MoCo v2",
    "mocov2_r50",
    (
        *("--backbone", "nin3", "--size-px", 32, "--batch-size", 8, "--queue-size", 24, "--key-group", 2),
        *("--lr", 0.03, "--max-steps-per-stage", 6),
    ),
)  # fmt: skip
UIC = Kind(
    "UIC",
    "uic_cifar10",
    ("--backbone", "resnet18", "--batch-size", 80, "--num-clusters", 8, "--epochs", 2),
)
IIC = Kind(
    "IIC",
    "sslpp_iic",
    (
        *("--backbone", "resnet18", "--batch-size", 60, "--num-clusters", 8, "--num-copies", 2),
        *("--epochs", 1),
    ),
)  # fmt: skip
RANKS = JIGSAW._replace(name="two ranks", num_ranks=2)


def sslpp(labels: Path) -> Kind:
    """Return SSL++'s rotation with the labels of a run of `IIC`."""
    options = ("--backbone", "resnet18", "--batch-size", 40, "--epochs", 1, "--pseudo-labels", labels)
    return Kind("SSL++", "sslpp_rotation", options)


def start_ranks(
    command: Sequence[object],
    log: Path,
    num_ranks: int = 1,
    environment: Mapping[str, str | None] | None = None,
    prepare: Mapping[int, Callable[[], object]] | None = None,
) -> list[RunningProcess]:
    """Start a process per rank, as torchrun does, but without its supervision.

    Rank 0 writes to `log`, rank N to `log` with its number added.

    Args:
        command: The command of every rank.
        log: The file for the errors of rank 0.
        num_ranks: The number of ranks.
        environment: Variables to set, or with None to remove.
        prepare: For some ranks, a function to call before the command (see `forks.start`).
    """
    prepare = prepare or {}
    if num_ranks == 1:
        return [start(command, log, environment, prepare.get(0))]
    return [
        start(
            command,
            log if rank == 0 else log.with_name(f"{log.stem}-{rank}{log.suffix}"),
            {**variables, **(environment or {})},
            prepare.get(rank),
        )
        for rank, variables in enumerate(rank_variables(num_ranks))
    ]  # fmt: skip


def checkpoints(out: Path) -> list[str]:
    """Return the names of the checkpoints in a run's folder, unfinished ones included."""
    try:
        return sorted(name for name in os.listdir(out / "checkpoints") if "step-" in name)
    except FileNotFoundError:
        return []


def left_behind(out: Path) -> dict[str, object]:
    """Return the parts of a finished run's files that training determines.

    They are the leaves of its last checkpoint, and its records of steps, epochs and labels.
    """
    newest = max((out / "checkpoints").glob("step-*.pt"))
    contents: dict[str, object] = {
        "checkpoint": newest.name,
        **digests(torch.load(newest, weights_only=True)),
    }
    for name in ("metrics.jsonl", "epochs.jsonl", "labels.npz"):
        if (out / name).exists():
            contents[name] = (out / name).read_bytes()
    return contents


def verdict(
    ended: ProcessEnd,
    speaker: str,
    words: Sequence[str] = (),
    codes: Sequence[int] = (0,),
    refusals: Sequence[int] = (2,),
) -> tuple[str, str]:
    """Return the outcome of a process, in the words of `report`, and its last line.

    Args:
        ended: The end of the process.
        speaker: The name at the beginning of the line: "jigsaw_r50", "fastpsl".
        words: The words that a refusal must contain; without any, there must be no refusal.
        codes: Exit codes that are right without a refusal.
        refusals: Exit codes of a refusal.
    """
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
