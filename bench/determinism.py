"""Which losses are equal: of runs on 1, 2 and 4 processes, and of one that is killed and resumed.

    OMP_NUM_THREADS=1 python bench/determinism.py

Every run is a recipe as a user starts it, with a small network of this file, on the CPU and the generated
sample. Three kinds are run. Jigsaw puzzles with BatchNorm: each process normalises by the images that it
holds. Rotation with GroupNorm: no image's output depends on another image, and the processes differ in the
order of their sums alone. The same without ReLU, whose gradient jumps. Rows are the losses of the steps, in
order, and their differences from those on 1 process; a difference below 1e-9 is written as 1e-9. `num_equal`
counts the steps whose loss is equal bit for bit, `weights` is a digest of all tensors of the last checkpoint.
Further rows count the steps whose images, views and labels are equal bit for bit. Writes a JSON;
`python -m bench.figures` draws it.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a folder of programs, not installed

from bench.program import check_out, check_positive, progress, run_program
from bench.recipe_stages import MODULES, recipe_of, recipe_options
from bench.schema import RUNS, data_record, environment, save_result, spread
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths

BATCH_SIZE = 32
LEAST = 1e-9  # a row's values must be above 0
ROTATION = ["--rotations-per-image", "one", "--lr", "0.05"]


class Kind(NamedTuple):
    """A kind of run: a recipe, a network of this file, and further options."""

    recipe: str
    network: str
    options: list[str]


KINDS = (
    Kind("jigsaw", "batch_norm", []),
    Kind("rotation", "group_norm", ROTATION),
    Kind("rotation", "smooth", ROTATION),
)


@dataclass(frozen=True)
class Trained:
    """A run.

    Attributes:
        kind: What was run.
        num_processes: The number of processes.
        killed_at: The number of steps that were logged when it was killed, or None.
        losses: The loss of each step.
        weights: A digest of the last checkpoint.
    """

    kind: Kind
    num_processes: int
    killed_at: int | None
    losses: list[float]
    weights: str


_GROUPS = 8


class _SmallNetwork(nn.Module):
    """A network of five blocks: convolution, normalisation, activation. All but the last have stride 2."""

    channels = (16, 24, 32, 48, 64)

    def __init__(self, normalisation: Callable[[int], nn.Module], activation: Callable[[], nn.Module]):
        super().__init__()
        widths = (3, *self.channels)
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, stride=2 if i < 4 else 1, padding=1, bias=False),
                normalisation(widths[i + 1]),
                activation(),
            )
            for i in range(5)
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.parts)


def batch_norm() -> nn.Module:
    """Return the network in which the images of a process's batch are normalised together."""
    return _SmallNetwork(nn.BatchNorm2d, nn.ReLU)


def group_norm() -> nn.Module:
    """Return the network in which each image is normalised alone."""
    return _SmallNetwork(_group_norm, nn.ReLU)


def smooth() -> nn.Module:
    """Return the network in which, besides, no gradient jumps: a ReLU's does where its input is near 0."""
    return _SmallNetwork(_group_norm, nn.GELU)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, channels)


def command(kind: Kind, num_processes: int, epochs: Sequence[int], out: Path) -> list[str]:
    """Return the command of a run."""
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return [
        sys.executable, *(ranks if num_processes > 1 else []), f"recipes/{MODULES[kind.recipe]}.py",
        "--device", "cpu", "--backbone", f"bench/determinism.py:{kind.network}",
        "--batch-size", str(BATCH_SIZE), "--epochs", *map(str, epochs), "--log-steps", "1",
        "--checkpoint-steps", "10", "--no-tensorboard", "--out", str(out), *kind.options,
    ]  # fmt: skip


def train(kind: Kind, num_processes: int, epochs: Sequence[int], out: Path, kill_at: int | None) -> Trained:
    """Train; if `kill_at` is given, kill the run after that many steps, and give the same command again.

    Raises:
        OSError: A run failed, or ended before it was killed.
    """
    words, log = command(kind, num_processes, epochs, out), out.with_suffix(".log")
    killed_at = None
    with open(log, "w") as file:
        if kill_at is not None:
            with subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file) as process:
                try:
                    while process.poll() is None and num_lines(out) < kill_at:
                        time.sleep(0.02)
                finally:
                    process.kill()
            if process.returncode != -signal.SIGKILL:
                raise OSError(f"{kind.recipe}: ended before it was killed: {log.read_text()[-300:]}")
            killed_at = num_lines(out)
        if subprocess.run(words, cwd=ROOT, stdout=file, stderr=file, check=False).returncode:
            raise OSError(f"{kind.recipe}, {num_processes} at a time, failed: {log.read_text()[-300:]}")
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    state = torch.load(max((out / "checkpoints").glob("step-*.pt")), weights_only=True)
    return Trained(kind, num_processes, killed_at, losses, digest(tensors(state)))


def num_lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def tensors(state: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a checkpoint: weights, running statistics, momentum."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from tensors(part)


def digest(parts: Iterable[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def inputs(kind: Kind, num_processes: int, epochs: Sequence[int]) -> list[str]:
    """Return a digest of each step: numbers and labels of its images, draws and the network's inputs."""
    options = recipe_options(
        kind.recipe, is_sample=True, batch_size=BATCH_SIZE, epochs=tuple(epochs),
        backbone=f"{ROOT}/bench/determinism.py:{kind.network}",
        rotations_per_image="one" if kind.recipe == "rotation" else None,
    )  # fmt: skip
    experiment, digests, first_epoch = recipe_of(kind.recipe).build(options), list[str](), 0
    for stage in experiment.stages:
        views = experiment.task.views(stage.level)
        with Beton(sample_paths().train) as data, ExitStack() as stack:
            loaders = [
                stack.enter_context(
                    Loader(data, views, batch_size_per_rank=BATCH_SIZE // num_processes, rank=rank,
                           world=num_processes)
                )
                for rank in range(num_processes)
            ]  # fmt: skip
            for epoch in range(first_epoch, first_epoch + stage.epochs):
                ranks = [stack.enter_context(closing(loader.epoch(epoch))) for loader in loaders]
                for batches in zip(*ranks, strict=True):
                    of_ranks = zip(
                        *([*batch.tensors(), *batch.inputs(views, torch.float32)] for batch in batches),
                        strict=True,
                    )
                    digests.append(digest(map(torch.cat, of_ranks)))
        first_epoch += stage.epochs
    return digests


def measure(options: argparse.Namespace, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run every kind on all numbers of processes, and the first kind killed; return the rows."""
    rows = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        for number, kind in enumerate(KINDS):
            variants: list[tuple[int, int | None]] = [(num, None) for num in options.processes]
            variants += [] if number else [(options.processes[0], options.kill_at)]
            runs = list[Trained]()
            for num, kill_at in variants:
                log(f"{kind.recipe} with {kind.network}, {num} at a time{', killed' if kill_at else ''}")
                runs.append(train(kind, num, options.epochs, Path(scratch, f"{number}-{len(runs)}"), kill_at))
            rows += losses_and_differences(runs)
        for kind in KINDS[:2]:
            log(f"{kind.recipe}: what the network sees")
            seen = {num: inputs(kind, num, options.epochs) for num in options.processes}
            rows += equal_inputs(kind, seen)
    return rows


def losses_and_differences(runs: Sequence[Trained]) -> list[dict[str, Any]]:
    """Return a row of losses for each run, and one of its differences from the first run unless all are 0."""
    first, rows = runs[0], list[dict[str, Any]]()
    for run in runs:
        differences = np.abs(np.subtract(run.losses, first.losses))
        labels = {
            "recipe": run.kind.recipe, "network": run.kind.network, "num_processes": run.num_processes,
            "killed_at": run.killed_at, "num_equal": int((differences == 0).sum()),
            "largest_difference": float(differences.max()), "weights": run.weights, "unit": "nats",
        }  # fmt: skip
        rows.append({"measured": "loss", **labels, **spread(run.losses)})
        if differences.any():
            values = np.maximum(differences, LEAST).tolist()
            rows.append({"measured": "difference", **labels, **spread(values)})
    return rows


def equal_inputs(kind: Kind, seen: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
    """Return a row for each further number of processes: in how many steps the network sees the same.

    Args:
        kind: What was run.
        seen: Number of processes → digest of each step. Those of the first number are compared with.
    """
    (_, first), *others = seen.items()
    labels = {"measured": "steps with equal inputs", "recipe": kind.recipe, "network": kind.network}
    return [
        {
            **labels, "num_processes": num, "killed_at": None, "unit": "steps",
            **spread([sum(map(str.__eq__, first, digests))]),
        }
        for num, digests in others
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--epochs", type=int, nargs=3, default=[2, 2, 2], help="of stages S1, S2 and S3")
    parser.add_argument("--kill-at", type=int, default=47, help="steps after which a run is killed")
    parser.add_argument("--out", type=Path, default=RUNS / "determinism.json")
    options = parser.parse_args()
    check_positive(options, "kill_at")
    check_out(options.out)
    machine = environment()
    with Beton(sample_paths().train) as data, progress() as log:
        record = data_record(data, None)
        rows = measure(options, log)
    for row in rows:
        what = f"{row['recipe']} with {row['network']}, {row['num_processes']} at a time"
        killed = f", killed after {row['killed_at']} steps" if row["killed_at"] else ""
        print(f"{row['measured']:23} {what}{killed}: median {row['median']:.3g} {row['unit']}")
    save_result(
        options.out, "determinism", machine, data=record,
        settings={
            "repeats": len(rows[0]["values"]), "epochs": options.epochs, "batch_size": BATCH_SIZE,
            "num_threads": torch.get_num_threads(), "seed": 0,
        },
        rows=rows, notes=["values of losses and differences are those of the steps in order"],
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
