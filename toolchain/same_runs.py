"""Show that two checkouts train alike: the same small runs at one seed in both, compared bit for bit.

    git worktree add ../before COMMIT     # copy or build its .so files
    python -m toolchain.same_runs ../before --renamed learner=model --renamed held_out=val

Every run uses the sample, which each checkout draws for itself. A run's last checkpoint is compared tensor by
tensor; its other values, records and images are compared too, without times and speeds.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parents[1]
NUM_SHOWN = 5
_SMALL = "--workers 1 --no-tensorboard --log-steps 2"
_PX_32 = (
    "--data cache/fastpsl/sample-v2/train_32.beton --val cache/fastpsl/sample-v2/test_32.beton --size-px 32"
)
_JIGSAW = (
    f"{_SMALL} --backbone nin3 --batch-size 4 --grid 2 --short-side 40 --cell-px 18 --tile-px 16 "
    "--counts 4 8 16 --embedding-width 16 --permutations-per-image 2 --max-steps-per-stage 6"
)
_MOCO = f"{_SMALL} {_PX_32} --backbone nin3 --batch-size 8 --queue-size 24 --key-group 2"
RUNS = {  # each one's folder has its name; the first run draws the sample
    "jigsaw": f"train jigsaw {_JIGSAW}",
    "rotation": f"train rotation {_SMALL} --backbone resnet18 --rotations-per-image all --batch-size 8 "
    "--short-side 36 --size-px 32 --max-steps-per-stage 4",
    "two-ranks": f"train simclr {_SMALL} {_PX_32} --backbone resnet18 --batch-size 8 --epochs 2 2 2 "
    "--warmup-epochs 1 --max-steps-per-stage 3",
    "moco": f"train mocov2 {_MOCO} --max-steps-per-stage 3",
    "uic": f"train uic-cifar10 {_SMALL} --backbone resnet18 --batch-size 80 --num-clusters 8 --epochs 2",
    "iic": f"train iic {_SMALL} --backbone resnet18 --batch-size 60 --num-clusters 8 --num-copies 2 "
    "--epochs 1",
    "sslpp": f"train sslpp-rotation {_SMALL} --backbone resnet18 --batch-size 40 --epochs 1 "
    "--pseudo-labels iic/labels.npz",
    "deepcluster": f"train deepcluster {_SMALL} {_PX_32} --backbone resnet18_cifar --input-channels SobelXY "
    "--num-clusters 16 --pca-width 32 --batch-size 60 --epochs 2 --max-steps-per-stage 1",
    "linear": f"eval linear rotation {_SMALL} {_PX_32} --batch-size 96 --epochs 1",
    "knn": f"eval knn moco {_PX_32} --workers 1 --block B1 B2 final",
}  # fmt: skip
CODES = (
    "--help",
    "train jigsaw --help",
    "recipes",
    "train",
    "train jigsw",
    "train jigsaw --batch-siz 4",
    "train jigsaw --batch-size 0",
    "train jigsaw --data missing",
    "train rotation --resume missing.pt",
    "train uic-cifar10 --backbone resnet19",
    "eval knn missing",
    "data info missing.beton",
    "show missing",
    "export missing --out x.pt",
)
# Of the clock, the machine and the place; and digests of checkpoints, which hold times.
SKIPPED_FILES = ("environment.json", "error.txt")
SKIPPED_KEYS = (
    "seconds",
    "joules",
    "machine",
    "command",
    "sha256",
    "weights",
    "features",
    "digest",
    "date",
    "commit",
)


def start(checkout: Path, folder: Path, words: Sequence[str], ranks: int = 1) -> tuple[int, str]:
    """Return the exit code of `fastpsl` from a checkout, and the end of what it printed."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "fastpsl.cli", *words],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        | {"XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout[-1500:]


def leaves(value: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the leaves of nested dicts and lists, each behind the dotted parts of its key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in SKIPPED_KEYS:
                yield from leaves(inner, (*parts, *str(key).split(".")))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*parts, str(i)))
    else:
        yield parts, value


def contents(path: Path) -> Any:
    """Return what a file of a run says."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True, map_location="cpu")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".npz":
        return dict(np.load(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def print_of(value: Any) -> str:
    """Return a text that is equal for values that are equal bit for bit."""
    if isinstance(value, torch.Tensor):
        value = (
            value.contiguous().view(torch.uint8).numpy() if value.dtype == torch.bfloat16 else value.numpy()
        )
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return repr(value)


def left_behind(folder: Path, renamed: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tensors of a run's last checkpoint, and its other values, by key."""
    kinds: tuple[dict[str, str], dict[str, str]] = {}, {}
    newest = max(folder.rglob("step-*.pt"), default=None)
    for path in sorted(folder.rglob("*.*")):
        if path.is_file() and path.name not in SKIPPED_FILES and (path.suffix != ".pt" or path == newest):
            for parts, value in leaves(contents(path), (str(path.relative_to(folder)),)):
                key = ".".join(renamed.get(part, part) for part in parts)
                kinds[0 if isinstance(value, torch.Tensor) else 1][key] = print_of(value)
    return kinds


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"{key}: {before.get(key, 'nothing')} before, {now.get(key, 'nothing')} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path, help="the folder of the other checkout")
    parser.add_argument(
        "--only", nargs="+", choices=[*RUNS, "codes"], metavar="NAME", default=[*RUNS, "codes"]
    )
    parser.add_argument(
        "--renamed", action="append", default=[], metavar="OLD=NEW", help="a part of base's keys"
    )
    options = parser.parse_args()
    renamed = dict(pair.split("=") for pair in options.renamed)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        sides = [(options.base.resolve(), Path(scratch, "base")), (HERE, Path(scratch, "here"))]
        for _, folder in sides:
            folder.mkdir()

        def both(words: Sequence[str], ranks: int = 1) -> list[tuple[int, str]]:
            return list(pool.map(lambda side: start(side[0], side[1], words, ranks), sides))

        print(f"{'run':12} {'tensors =':>9} {'≠':>4} {'values =':>9} {'≠':>4}  exit codes")
        for name, command in RUNS.items():
            if name not in options.only:
                continue
            words = [*command.split(), "--out", name]
            ends = both(words, 2 if name == "two-ranks" else 1)
            if name == "moco":  # goes on from its last checkpoint
                ends += both([*words[:-3], "6", *words[-2:]])
            codes = [code for code, _ in ends]
            notes += [f"{name}: exit code {code}\n{text}" for code, text in ends if code]
            before, now = (left_behind(sides[i][1] / name, renamed if i == 0 else {}) for i in (0, 1))
            row = f"{name:12}"
            for kind, kind_before, kind_now in zip(("tensor", "value"), before, now, strict=True):
                found = differences(kind_before, kind_now)
                row += f" {len(kind_before.keys() | kind_now.keys()) - len(found):9} {len(found):4}"
                notes += [f"{name}: {kind} {line}" for line in found[:NUM_SHOWN]]
            print(row, "", *codes, flush=True)
        if "codes" in options.only:
            for command in CODES:
                ends = both(command.split())
                print(f"{command:39}  ", *(code for code, _ in ends), flush=True)
                if ends[0][0] != ends[1][0]:
                    notes.append(f"{command}: exit codes {ends[0][0]} before, {ends[1][0]} now\n{ends[1][1]}")
    print(*notes, sep="\n")
    return bool(notes)


if __name__ == "__main__":
    sys.exit(main())
