"""What a part tells of the machine, of two runs' losses, and of its steps; exit 1 where something failed.

    python bench/gpu_day/report.py versions FILE          packages and hardware; FILE gets the GPU's name
    python bench/gpu_day/report.py same-losses RUN RUN    step by step: one may differ by 2 % at most
    python bench/gpu_day/report.py summary PART FOLDER GPU

`summary` reads FOLDER/steps.tsv, and writes FOLDER/summary.txt for people and
FOLDER/results/gpu_day-GPU-PART.json, a result like any other.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.schema import SCHEMA, environment, rehearsal_notes, short_name, spread, write_result
from fastpsl.pipelines.decoders.dali import num_engines, nvjpeg_library, why_slower

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "numba", "kornia", "kornia-rs", "tyro", "rich", "ffcv",
    "nvidia-dali-cuda130", "lightly", "pycocotools",
    "pytest", "pytest-xdist", "pytest-timeout", "scikit-learn", "matplotlib", "tensorboard", "webdataset",
)  # fmt: skip
OURS = ("fastpsl.kernels.crops", "fastpsl.pipelines.loader.loader")
OPTIONAL = ("ffcv.libffcv", "nvidia.dali.fn", "lightly.data")
MOST = 0.02  # half precision and atomic sums change the rounding, but not the training
CUT = (124, 137)  # exit statuses of `timeout`
NO_TIME = "no time left"
CUT_INTO = "parts of minutes"  # results of older parts, of nine minutes, have no "cut"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def versions(file: str) -> int:
    """Print packages and hardware; return 1 if fastpsl itself cannot be imported."""
    for package in PACKAGES:
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "-")
    machine = environment(DEVICE)
    Path(file).write_text(short_name(machine))
    num_broken = 0
    for module in (*OPTIONAL, *OURS):
        try:
            importlib.import_module(module)
            print(module, "imports")
        except Exception as error:  # noqa: BLE001 - a package for other versions may raise anything
            print(f"{module}: {type(error).__name__}: {error}")
            num_broken += module in OURS
    if torch.cuda.is_available():
        torch.cuda.init()
        why = why_slower(torch.device("cuda", torch.cuda.current_device()))
        print(f"JPEG engines, by nvJPEG: {num_engines(nvjpeg_library())}; {why or 'they can be opened'}")
    print(
        f"{machine['gpu'] or 'no GPU'}, CUDA {torch.version.cuda}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, compiler {shutil.which('gcc')}, commit {machine['commit']}"
    )
    return int(num_broken > 0)


def same_losses(*runs: str) -> int:
    """Compare the losses of two runs."""
    one, other = (
        [json.loads(line)["loss"] for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    )
    worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(one, other, strict=True))
    print(f"{len(one)} steps: losses differ by {worst:.1e} at most")
    return int(worst > MOST)


def read_steps(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return rows of the steps that ran, and those that had no time; output loses the machine's folders."""
    rows, missing = [], []
    for line in path.read_text(errors="replace").splitlines():
        name, status, seconds, output = line.split("\t")
        if not status:
            missing.append({"what": name, "reason": NO_TIME})
            continue
        rows.append({
            "measured": name, "unit": "s", "exit": int(status),
            "said": re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", output.replace("|", "/")),
            **spread([max(float(seconds), 0.01)]),
        })  # fmt: skip
    return rows, missing


def told(row: dict[str, Any]) -> str:
    """Format a row for people."""
    status = "ok" if row["exit"] == 0 else "cut" if row["exit"] in CUT else f"exit {row['exit']}"
    return f"{row['measured']:<22} {status:<8} {row['median']:6.1f} s  {row['said']}"


def summary(part: str, path: str, gpu: str) -> int:
    """Summarise a part's steps; return 1 if one failed, was cut off or had no time."""
    folder = Path(path)
    rows, missing = read_steps(folder / "steps.tsv")
    machine = environment(DEVICE)
    result = {
        "schema": SCHEMA, "bench": "gpu_day", "command": f"bash bench/gpu_day/part.sh {part}",
        "environment": machine, "data": {"name": "the part's steps", "num_samples": len(rows) + len(missing)},
        "settings": {"repeats": 1, "part": part, "cut": CUT_INTO},
        "rows": rows, "ratios": [], "not_measured": missing, "notes": rehearsal_notes(),
    }  # fmt: skip
    num_failed = len(missing) + sum(row["exit"] != 0 for row in rows)
    failures = f"{num_failed} of {len(rows) + len(missing)} steps failed"
    lines = [
        f"== part {part}, {gpu}, commit {machine['commit']}: {failures}",
        *map(told, rows),
        *(f"{line['what']:<22} {line['reason']}" for line in missing),
        *rehearsal_notes(),
    ]
    (folder / "summary.txt").write_text("\n".join(lines) + "\n")
    write_result(folder / "results" / f"gpu_day-{gpu}-{part}.json", result)
    return int(num_failed > 0)


if __name__ == "__main__":
    reports: dict[str, Callable[..., int]]
    reports = {"versions": versions, "same-losses": same_losses, "summary": summary}
    sys.exit(reports[sys.argv[1]](*sys.argv[2:]))
