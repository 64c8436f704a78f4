"""What a result under bench/results/ looks like, and the helpers that every bench fills it with.

A result is a dict of
    schema        SCHEMA
    bench         which bench, one of LABELS
    command       how it was called; of paths only the last part
    environment   see `environment`; the load averages say whether the machine was shared
    data          what was measured on: num_samples and other plain values
    settings      repeats, and the options that decide the figures
    rows          each: measured, unit, labels of plain values (LABELS: those that a bench's rows must have), and a `spread`
    ratios        each: what (a formula over rows), labels of plain values, and a `spread` over the repeats
    not_measured  each: what, reason
    notes         sentences that belong to the figures
`validate` holds a result to it.
"""

import hashlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastpsl.pipelines.data.dataset import Dataset, read_bytes

SCHEMA = 1
MAX_COMPARED = 20_000  # samples whose bytes are compared
# Fewer values than repeats: the clock ends them, a run does not get there, or nothing varies.
MAY_BE_FEWER = ("throughput", "time_to_accuracy", "scaling", "small", "detection")
REHEARSAL = "a rehearsal at tiny values: its figures mean nothing"
SHARED_LOAD = 0.5  # a load average above this before a bench starts: others were at work
PACKAGES = (
    "fastpsl", "torch", "torchvision", "numba", "numpy", "kornia", "pillow", "ffcv", "opencv-python", "triton",
    "nvidia-dali-cuda120", "nvidia-dali-cuda130",
)  # fmt: skip

# Where results go by default: git ignores it. What is to be committed is asked for by its name.
RUNS = Path(__file__).resolve().parents[1] / "runs" / "bench"

_NONE = type(None)
_NUMBER = (float, int)
_TEXT, _COUNT, _NAME = (str,), (int,), (str, _NONE)
LABELS: dict[str, dict[str, tuple[type, ...]]] = {
    "beton_write": {},
    "decode": {"decoder": _TEXT, "num_threads": _COUNT, "num_views": _COUNT, "cores_used": _NUMBER},
    "detection": {
        "variant": _TEXT,
        "backbone": _TEXT,
        "pictures_per_s": _NUMBER,
        "peak_mib": (int, _NONE),
    },
    "gpu_day": {"exit": _COUNT, "said": _TEXT},
    "kernels": {
        "chain": _TEXT,
        "path": _TEXT,
        "num_bytes": _COUNT,
        "gb_per_s": _NUMBER,
        "percent_of_copy": _NUMBER,
    },
    "labels": {},
    "loader": {},
    "order": {},
    "small": {"recipe": _TEXT, "decoder": _NAME, "num_views": _COUNT, "stage": _NAME},
    "throughput": {"decoder": _NAME, "num_views": _COUNT, "stage": _NAME},
    "step": {
        "recipe": _TEXT,
        "stage": _TEXT,
        "backbone": _TEXT,
        "mode": _TEXT,
        "samples_per_s": _NUMBER,
        "peak_mib": (int, _NONE),
    },
    "scaling": {"num_ranks": _COUNT, "recipe": _NAME, "stage": _NAME},
    "time_to_accuracy": {
        "recipe": _TEXT,
        "monitor": _TEXT,
        "accuracy": _NUMBER,
        "epoch": (*_NUMBER, _NONE),
        "num_reached": _COUNT,
    },
}
_RESULT: dict[str, tuple[type, ...]] = {
    "schema": (int,), "bench": (str,), "command": (str,), "environment": (dict,), "data": (dict,),
    "settings": (dict,), "rows": (list,), "ratios": (list,), "not_measured": (list,), "notes": (list,),
}  # fmt: skip
_ENVIRONMENT: dict[str, tuple[type, ...]] = {
    "commit": (str, _NONE), "cpu": (str,), "num_cores": (int,), "gpu": (str, _NONE), "driver": (str, _NONE),
    "system": (str,), "python": (str,), "versions": (dict,), "load_average_before": (float, int),
    "load_average_after": (float, int),
}  # fmt: skip
_SPREAD: dict[str, tuple[type, ...]] = {
    "median": _NUMBER, "quartile_1": _NUMBER, "quartile_3": _NUMBER, "values": (list,)
}  # fmt: skip
_ROW: dict[str, tuple[type, ...]] = {"measured": (str,), "unit": (str,), **_SPREAD}
_RATIO: dict[str, tuple[type, ...]] = {"what": (str,), **_SPREAD}
_MISSING: dict[str, tuple[type, ...]] = {"what": (str,), "reason": (str,)}
_PLAIN = (str, int, float, bool, list, _NONE)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles (inclusive method) of the repeats, and the repeats themselves, in order."""
    values = [float(f"{value:.6g}") for value in values]
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": middle, "quartile_1": low, "quartile_3": high, "values": values}


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Machine, versions, commit and load; call it before the work, and `finish` after it."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    is_cuda = torch.device(device).type == "cuda"
    return {
        "commit": commit(),
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if is_cuda else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if is_cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "load_average_before": round(os.getloadavg()[0], 2),
        "load_average_after": 0.0,
    }  # fmt: skip


def commit() -> str | None:
    """Of the checkout, with "and changes" where a program differs; FASTPSL_COMMIT says it where there is no git."""
    if given := os.environ.get("FASTPSL_COMMIT"):
        return given
    root = str(Path(__file__).resolve().parents[1])
    found = _output("git", "-C", root, "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", root, "status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return f"{found} and changes" if found and changed else found


def finish(machine: dict[str, Any]) -> list[str]:
    """Fill in the load average after the work; the notes that the load and a rehearsal ask for."""
    machine["load_average_after"] = round(os.getloadavg()[0], 2)
    before = machine["load_average_before"]
    if before <= SHARED_LOAD:
        return rehearsal_notes()
    shared = f"load average {before} on {machine['num_cores']} cores before the bench began"
    return [f"the machine was shared: {shared}", *rehearsal_notes()]


def rehearsal_notes() -> list[str]:
    """REHEARSAL where FASTPSL_REHEARSAL is set: what has this note is never committed."""
    return [REHEARSAL] if os.environ.get("FASTPSL_REHEARSAL") else []


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The call, for the record; of absolute paths only the last part, as they are of one machine."""
    arguments = sys.argv if arguments is None else arguments
    kept = [Path(argument).name if os.path.isabs(argument) else argument for argument in arguments]
    return " ".join(["python", *kept])


def short_name(machine: Mapping[str, Any]) -> str:
    """Of an `environment`, for names of files: "h200" of "NVIDIA H200", "cpu" without a GPU."""
    words = re.sub(r"[^a-z0-9]+", " ", (machine["gpu"] or "cpu").lower()).split()
    kept = [word for word in words if word not in ("nvidia", "geforce", "tesla")]
    return "-".join(kept)


def data_record(data: Dataset, name: str | None) -> dict[str, Any]:
    """Of what was measured on; num_distinct: samples whose bytes no other one has (None: too many to compare)."""
    min_height, min_width, max_height, max_width = data.image_sizes()
    num = min(data.num_samples, MAX_COMPARED)
    rows = data.rows(np.unique(np.linspace(0, data.num_samples - 1, num).astype(np.int64)))
    seen = {hashlib.blake2b(read_bytes(rows, i), digest_size=16).digest() for i in range(len(rows.height))}
    return {
        "name": "the embedded sample" if name is None else Path(name).name,
        "num_samples": data.num_samples,
        "num_distinct": len(seen) if num == data.num_samples else None,
        "mean_bytes": round(float(rows.num_bytes.mean())),
        "mean_pixels": round(float((rows.height.astype(np.int64) * rows.width).mean())),
        "min_height_px": min_height,
        "min_width_px": min_width,
        "max_height_px": max_height,
        "max_width_px": max_width,
    }


def validate(result: Any) -> None:
    """ValueError, one line, where `result` is not what this file's head describes."""
    _check_keys(result, _RESULT, "result", exact=True)
    if result["schema"] != SCHEMA:
        raise ValueError(f"result.schema: is {result['schema']}, this code reads {SCHEMA}")
    if result["bench"] not in LABELS:
        raise ValueError(f"result.bench: is {result['bench']!r}, this code knows {', '.join(sorted(LABELS))}")
    _check_keys(result["environment"], _ENVIRONMENT, "environment", exact=True)
    _check_keys(result["data"], {"num_samples": (int,)}, "data")
    _check_keys(result["settings"], {"repeats": (int,)}, "settings")
    repeats = result["settings"]["repeats"]
    if repeats < 1 or not result["rows"]:
        raise ValueError(f"result: {repeats} repeats and {len(result['rows'])} rows; there must be some")
    for part, keys in (("rows", _ROW | LABELS[result["bench"]]), ("ratios", _RATIO)):
        for number, row in enumerate(result[part]):
            _check_keys(row, keys, f"{part}[{number}]")
            _check_spread(row, repeats, f"{part}[{number}]", may_be_fewer=result["bench"] in MAY_BE_FEWER)
    for number, missing in enumerate(result["not_measured"]):
        _check_keys(missing, _MISSING, f"not_measured[{number}]", exact=True)
    if not all(isinstance(note, str) for note in result["notes"]):
        raise ValueError("notes: must be strings")
    if result["bench"] in ("throughput", "small"):
        _check_three_rows(result)


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Check a result and write it, whole or not at all."""
    validate(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.replace(path)


def _check_keys(part: Any, keys: Mapping[str, tuple[type, ...]], where: str, *, exact: bool = False) -> None:
    part = part if isinstance(part, dict) else {}
    if missing := keys.keys() - part.keys():
        raise ValueError(f"{where}: lacks {', '.join(sorted(missing))}")
    if exact and (unknown := part.keys() - keys.keys()):
        raise ValueError(f"{where}: has {', '.join(sorted(unknown))}, which the schema does not know")
    for name, value in part.items():
        allowed = keys.get(name, _PLAIN)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{where}.{name}: is {type(value).__name__}, must be {names}")


def _check_spread(row: Mapping[str, Any], repeats: int, where: str, *, may_be_fewer: bool) -> None:
    values = row["values"]
    if not (1 if may_be_fewer else repeats) <= len(values) <= repeats:
        raise ValueError(f"{where}.values: {len(values)} of them for {repeats} repeats")
    if not all(isinstance(v, _NUMBER) and math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"{where}.values: must be finite numbers above 0")
    for name, expected in spread(values).items():
        if name != "values" and not math.isclose(row[name], expected, rel_tol=1e-3):
            raise ValueError(f"{where}.{name}: is {row[name]}, its values say {expected}")


def _check_three_rows(result: Mapping[str, Any]) -> None:
    """Throughput and small: each row of both together stands beside its loader alone, its step alone and its ratio, as often measured,
    and the ratio is theirs. A loader without a stage is every stage's.
    """
    names = ("recipe", "decoder", "num_views", "stage")

    def found(part: str, measured: str | None, *names: str) -> dict[tuple[Any, ...], list[float]]:
        rows = [row for row in result[part] if measured is None or row["measured"] == measured]
        values = {tuple(row.get(name) for name in names): row["values"] for row in rows}
        if len(values) < len(rows):
            raise ValueError(f"{part}: some stand there twice")
        return values

    both = found("rows", "both", *names)
    if not both and not found("rows", "peer") and not found("rows", "loader"):
        raise ValueError("rows: none of loader and step together, nor of loaders alone")
    loaders, steps = found("rows", "loader", *names), found("rows", "step", *names)
    ratios = found("ratios", None, "what", *names)
    for key, rates in both.items():
        recipe, _, num_views, stage = key
        here = (loaders.get(key, loaders.get((*key[:3], None))), steps.get((recipe, None, num_views, stage)))
        ratio = ratios.get(("both / min(loader, step)", *key))
        for what, other in zip(("loader", "step", "ratio"), (*here, ratio), strict=True):
            if other is None or len(other) != len(rates):
                told = (
                    "is missing" if other is None else f"has {len(other)} values, both together {len(rates)}"
                )
                raise ValueError(f"rows: the {what} of {key} {told}")
        assert here[0] and here[1] and ratio
        for given, rate, loader, step in zip(ratio, rates, *here, strict=True):  # type: ignore[arg-type]
            if not math.isclose(given, rate / min(loader, step), rel_tol=0.01):
                raise ValueError(
                    f"ratios: that of {key} is {given}, its rows say {rate / min(loader, step):.4f}"
                )


def _cpu_name() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _output(*command: str) -> str | None:
    """A command's output, None where it is empty or the command fails or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
