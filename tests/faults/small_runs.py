"""Small runs of each kind, seconds long, for faults to strike; and what they leave, compared bit for bit."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastpsl.sample import sample_paths
from tests.commands import digests
from tests.faults.forks import ROOT, Ended, Started, start

_SHARED = ("--num-threads", 1, "--no-tensorboard", "--checkpoint-steps", 1, "--keep-checkpoints", 2, "--log-steps", 2)
_JIGSAW = (
    *("--backbone", "nin3", "--batch-size", 8, "--shorter-px", 60, "--cell-px", 18, "--tile-px", 16, "--counts", 4, 8, 16),
    *("--embedding-width", 16, "--permutations-per-image", 2, "--max-steps-per-stage", 6),
)  # fmt: skip


class Kind(NamedTuple):
    """A recipe with options that make it small."""

    name: str
    recipe: str
    options: tuple[object, ...]
    num_ranks: int = 1
    large_pictures: bool = False

    def command(self, out: Path, *more: object) -> list[object]:
        """The recipe's command for the folder `out`; `more` options come last, and win."""
        data = sample_paths().train if self.large_pictures else sample_paths().train_32
        shared = (*_SHARED, "--data", data, *self.options, "--out", out, *more)
        return [ROOT / "recipes" / f"{self.recipe}.py", *shared]


JIGSAW = Kind("jigsaw", "jigsaw_r50", _JIGSAW, large_pictures=True)
MOCO = Kind(
    "MoCo v2",
    "mocov2_r50",
    (
        *("--backbone", "nin3", "--size-px", 32, "--batch-size", 8, "--queue-size", 24, "--key-group", 2, "--lr", 0.03),
        *("--max-steps-per-stage", 6),
    ),
)  # fmt: skip
UIC = Kind(
    "UIC",
    "uic_cifar10",
    ("--backbone", "nin3", "--batch-size", 80, "--num-classes", 8, "--stage-epochs", 2),
)
IIC = Kind(
    "IIC",
    "sslpp_iic",
    ("--backbone", "nin3", "--batch-size", 120, "--num-clusters", 8, "--num-copies", 2, "--stage-epochs", 1),
)  # fmt: skip
RANKS = JIGSAW._replace(name="two ranks", num_ranks=2)


def sslpp(labels: Path) -> Kind:
    """SSL++'s rotation with the labels that a run of `IIC` has left."""
    options = ("--backbone", "nin3", "--batch-size", 96, "--stage-epochs", 1, "--pseudo-labels", labels)
    return Kind("SSL++", "sslpp_rotation", options)


def start_ranks(
    command: Sequence[object],
    log: Path,
    num_ranks: int = 1,
    environment: Mapping[str, str | None] | None = None,
    prepare: Mapping[int, Callable[[], object]] | None = None,
) -> list[Started]:
    """A process per rank, as torchrun starts them but with nobody to end them all; prepare: a rank's own (see `forks.start`).

    Rank 0 writes to `log`, rank N to `log` with its number added.
    """
    prepare = prepare or {}
    if num_ranks == 1:
        return [start(command, log, environment, prepare.get(0))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            command,
            log if rank == 0 else log.with_name(f"{log.stem}-{rank}{log.suffix}"),
            {**world, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environment or {})},
            prepare.get(rank),
        )
        for rank in range(num_ranks)
    ]  # fmt: skip


def checkpoints(out: Path) -> list[str]:
    """Names of the checkpoints in a run's folder, and of those that are being written."""
    try:
        return sorted(name for name in os.listdir(out / "checkpoints") if "step-" in name)
    except FileNotFoundError:
        return []


def left_behind(out: Path) -> dict[str, object]:
    """What training determines of a finished run's files: its last checkpoint's leaves, its records of steps, epochs and labels."""
    newest = max((out / "checkpoints").glob("step-*.pt"))
    left: dict[str, object] = {"checkpoint": newest.name, **digests(torch.load(newest, weights_only=True))}
    for name in ("metrics.jsonl", "epochs.jsonl", "labels.npz"):
        if (out / name).exists():
            left[name] = (out / name).read_bytes()
    return left


def verdict(ended: Ended, speaker: str) -> tuple[str, str]:
    """(how a process ended in a few words, its last line): "finished", "preempted", "one line" (exit 2, no traceback, the last line by
    `speaker`), "traceback", "hang", "signal N", "exit N".
    """
    lines = ended.output.strip().splitlines() or [""]
    if ended.code is None:
        return "hang", lines[-1]
    if "Traceback (most recent call last)" in ended.output:
        return "traceback", lines[-1]
    if ended.code < 0:
        return f"signal {-ended.code}", lines[-1]
    if ended.code == 2 and lines[-1].startswith(speaker):
        return "one line", lines[-1]
    return {0: "finished", 75: "preempted"}.get(ended.code, f"exit {ended.code}"), lines[-1]
