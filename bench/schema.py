"""The format of a result under bench/results/, and the helpers that fill it.

A result is a dict of

    schema        SCHEMA
    bench         the bench, a key of LABELS
    command       the command line; of absolute paths only the last part
    environment   see `environment`; the load averages tell whether the machine was shared
    data          the data that was measured on: num_samples and other plain values
    settings      repeats, and the options that decide the figures
    rows          each: measured, unit, labels of plain values, and a `spread`
    ratios        each: what (a formula over rows), labels of plain values, and a `spread` over the repeats
    not_measured  each: what, reason
    notes         sentences that belong to the figures

`validate` checks a result against this format.
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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from fastpsl.engine.gpu import cpu_name
from fastpsl.pipelines.interface.dataset import Dataset, read_bytes

SCHEMA = 1
Results = Mapping[str, dict[str, Any]]
"""File name → result."""
MAX_COMPARED = 20_000  # samples that are compared with each other
# These may have fewer values than repeats: a time limit ends them, a run stops early, or nothing varies.
MAY_BE_FEWER = (
    "beton_size", "throughput", "time_to_accuracy", "scaling", "small", "detection", "determinism",
    "checkpoint", "training",
)  # fmt: skip
REHEARSAL = "a rehearsal at tiny values: its figures mean nothing"
SHARED_LOAD = 0.5  # a higher load average before a bench starts means that other work ran
PACKAGES = (
    "fastpsl-vision", "torch", "torchvision", "numba", "numpy", "kornia", "pillow", "ffcv", "opencv-python",
    "triton", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "spdl", "lightly", "webdataset", "turboloader",
)  # fmt: skip

# The default folder of results, which git ignores; --out names another.
RUNS = Path(__file__).resolve().parents[1] / "runs" / "bench"

# Key → type of its value; int is accepted for float. All further values are plain values.
RESULT = {
    "schema": int, "bench": str, "command": str, "environment": dict, "data": dict, "settings": dict,
    "rows": list,
    "ratios": list, "not_measured": list, "notes": list,
}  # fmt: skip
ENVIRONMENT = {
    "commit": str | None, "cpu": str, "num_cores": int, "gpu": str | None, "driver": str | None,
    "system": str, "python": str,
    "versions": dict, "load_average_before": float, "load_average_after": float,
}  # fmt: skip
SPREAD = {"median": float, "quartile_1": float, "quartile_3": float, "values": list}
ROW = {"measured": str, "unit": str, **SPREAD}
RATIO = {"what": str, **SPREAD}
MISSING = {"what": str, "reason": str}
THROUGHPUT = {"decoder": str | None, "num_views": int, "stage": str | None}
# Bench → additional keys of its rows.
LABELS: dict[str, dict[str, Any]] = {
    "agreement": {"size_px": int, "percentile_99": int, "largest": int, "share_equal": float},
    "beton_size": {"num_taken_over": int, "psnr_db": float | None},
    "beton_write": {},
    "checkpoint": {"recipe": str, "how": str | None, "num_images": int, "num_bytes": int},
    "decode": {"decoder": str, "num_threads": int, "num_views": int, "cores_used": float},
    "detection": {"variant": str, "backbone": str, "images_per_s": float, "peak_mib": int | None},
    "determinism": {"recipe": str, "network": str, "num_processes": int, "killed_at": int | None},
    "gil": {"size": str, "num_threads": int, "decoder": str},
    "gpu_day": {"exit": int, "said": str},
    "kernels": {"chain": str, "path": str, "num_bytes": int, "gb_per_s": float, "percent_of_copy": float},
    "labels": {},
    "large_set": {"order": str},
    "loader": {},
    "order": {},
    "remote": {"loader": str, "latency_ms": float},
    "scaling": {"num_ranks": int, "recipe": str | None, "stage": str | None},
    "simulated_world": {"part": str, "num_ranks": int},
    "sizes": {"decoder": str, "num_views": int, "size": str, "size_px": int},
    "small": {"recipe": str, **THROUGHPUT},
    "stage_sizes": {"sizes": str},
    "start": {"cache": str | None, "cpu_s": float},
    "step": {
        "recipe": str, "stage": str, "backbone": str, "mode": str, "samples_per_s": float,
        "peak_mib": int | None,
    },
    "throughput": THROUGHPUT,
    "training": {"recipe": str | None, "stage": str | None, "trained_by": str, "cores_used": float},
    "time_to_accuracy": {
        "recipe": str, "monitor": str, "accuracy": float, "epoch": float | None, "num_reached": int,
    },
}  # fmt: skip
_PLAIN = str | int | float | bool | list | None


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles (inclusive method) of the repeats, and the repeats themselves in order."""
    values = [float(f"{value:.6g}") for value in values]
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": middle, "quartile_1": low, "quartile_3": high, "values": values}


def over(ours: Iterable[float], others: Iterable[float]) -> dict[str, Any]:
    """Return the spread of the ratios, repeat by repeat: neighbours in time share the load of the machine."""
    return spread([a / b for a, b in zip(ours, others, strict=True)])


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return day, machine, versions, commit and load; call it before the work, and `finish` after it."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    is_cuda = torch.device(device).type == "cuda"
    driver_query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "cpu": cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if is_cuda else None,
        "driver": output_of(*driver_query) if is_cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "load_average_before": round(os.getloadavg()[0], 2),
        "load_average_after": 0.0,
    }  # fmt: skip


def commit() -> str | None:
    """Return the checkout's commit, "and changes" if sources differ; FASTPSL_COMMIT overrides it."""
    if override := os.environ.get("FASTPSL_COMMIT"):
        return override
    root = str(Path(__file__).resolve().parents[1])
    revision = output_of("git", "-C", root, "rev-parse", "--short=12", "HEAD")
    sources = ("*.py", "bench/evidence/*.json")
    changed = output_of("git", "-C", root, "status", "--porcelain", "--untracked-files=no", "--", *sources)
    return f"{revision} and changes" if revision and changed else revision


def finish(machine: dict[str, Any]) -> list[str]:
    """Fill in the load average after the work; return the notes about a shared machine and a rehearsal."""
    machine["load_average_after"] = round(os.getloadavg()[0], 2)
    before = machine["load_average_before"]
    if before <= SHARED_LOAD:
        return rehearsal_notes()
    shared = f"load average {before} on {machine['num_cores']} cores before the bench began"
    return [f"the machine was shared: {shared}", *rehearsal_notes()]


def rehearsal_notes() -> list[str]:
    """Return [REHEARSAL] if FASTPSL_REHEARSAL is set. A result with this note must not be committed."""
    return [REHEARSAL] if os.environ.get("FASTPSL_REHEARSAL") else []


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return the command line for the record, with only the last part of absolute paths."""
    arguments = sys.argv if arguments is None else arguments
    words = [Path(argument).name if os.path.isabs(argument) else argument for argument in arguments]
    return " ".join(["python", *words])


def short_name(machine: Mapping[str, Any]) -> str:
    """Return an `environment`'s device for file names: "h200" for "NVIDIA H200", "cpu" without a GPU."""
    all_words = re.sub(r"[^a-z0-9]+", " ", (machine["gpu"] or "cpu").lower()).split()
    words = [word for word in all_words if word not in ("nvidia", "geforce", "tesla")]
    return "-".join(words)


def data_record(data: Dataset, name: str | None) -> dict[str, Any]:
    """Describe the data; num_distinct counts samples with unique bytes, None for too many samples."""
    min_height, min_width, max_height, max_width = data.image_sizes()
    num = min(data.num_samples, MAX_COMPARED)
    rows = data.rows(np.unique(np.linspace(0, data.num_samples - 1, num).astype(np.int64)))
    digests = {hashlib.blake2b(read_bytes(rows, i), digest_size=16).digest() for i in range(len(rows.height))}
    return {
        "name": "the embedded sample" if name is None else Path(name).name, "num_samples": data.num_samples,
        "num_distinct": len(digests) if num == data.num_samples else None,
        "mean_bytes": round(float(rows.num_bytes.mean())),
        "mean_pixels": round(float((rows.height.astype(np.int64) * rows.width).mean())),
        "min_height_px": min_height, "min_width_px": min_width, "max_height_px": max_height,
        "max_width_px": max_width,
    }  # fmt: skip


def validate(result: Any) -> None:
    """Raise ValueError with one line if `result` violates the format in this module's docstring."""
    _check(result, RESULT, "result", exact=True)
    if result["schema"] != SCHEMA:
        raise ValueError(f"result.schema: is {result['schema']}, this code reads {SCHEMA}")
    if result["bench"] not in LABELS:
        raise ValueError(f"result.bench: is {result['bench']!r}, this code knows {', '.join(sorted(LABELS))}")
    dated = {"date": str} if "date" in result["environment"] else {}  # older results have no date
    _check(result["environment"], ENVIRONMENT | dated, "environment", exact=True)
    _check(result["data"], {"num_samples": int}, "data")
    _check(result["settings"], {"repeats": int}, "settings")
    for name, keys in (("rows", ROW | LABELS[result["bench"]]), ("ratios", RATIO), ("not_measured", MISSING)):
        for number, part in enumerate(result[name]):
            _check(part, keys, f"{name}[{number}]", exact=keys is MISSING)
    repeats = result["settings"]["repeats"]
    if repeats < 1 or not result["rows"]:
        raise ValueError(f"result: {repeats} repeats and {len(result['rows'])} rows; there must be some")
    least = 1 if result["bench"] in MAY_BE_FEWER else repeats
    for name in ("rows", "ratios"):
        for number, row in enumerate(result[name]):
            _check_spread(row, least, repeats, f"{name}[{number}]")
    if not all(isinstance(note, str) for note in result["notes"]):
        raise ValueError("notes: must be strings")
    if result["bench"] in ("throughput", "small"):
        _check_three_rows(result)


def save_result(
    path: Path,
    bench: str,
    machine: dict[str, Any],
    *,
    data: dict[str, Any],
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    ratios: Sequence[dict[str, Any]] = (),
    not_measured: Sequence[dict[str, str]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write this program's result, and return it; `machine` is an `environment` from before the work."""
    result = {
        "schema": SCHEMA, "bench": bench, "command": command_line(), "environment": machine, "data": data,
        "settings": settings, "rows": rows, "ratios": list(ratios), "not_measured": list(not_measured),
        "notes": [*notes, *finish(machine)],
    }  # fmt: skip
    write_result(path, result)
    return result


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Check a result and write it atomically."""
    validate(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.replace(path)


def _check(part: Any, keys: Mapping[str, Any], where: str, *, exact: bool = False) -> None:
    """Raise ValueError if `part` is no dict with these keys and types, and only these if `exact`."""
    part = part if isinstance(part, dict) else {}
    if missing := keys.keys() - part.keys():
        raise ValueError(f"{where}: lacks {', '.join(sorted(missing))}")
    if exact and (unknown := part.keys() - keys.keys()):
        raise ValueError(f"{where}: has {', '.join(sorted(unknown))}, which the schema does not know")
    for name, value in part.items():
        hint = keys.get(name, _PLAIN)
        allowed = get_args(hint) or (hint,)
        allowed += (int,) if float in allowed else ()
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(kind.__name__ for kind in dict.fromkeys(allowed))
            raise ValueError(f"{where}.{name}: is {type(value).__name__}, must be {names}")


def _check_spread(row: Mapping[str, Any], least: int, most: int, where: str) -> None:
    """Raise ValueError if a row's values, median or quartiles contradict each other."""
    values = row["values"]
    if not least <= len(values) <= most:
        raise ValueError(f"{where}.values: {len(values)} of them for {most} repeats")
    if not all(isinstance(v, float | int) and math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"{where}.values: must be finite numbers above 0")
    for name, expected in spread(values).items():
        if name != "values" and not math.isclose(row[name], expected, rel_tol=1e-3):
            raise ValueError(f"{where}.{name}: is {row[name]}, its values say {expected}")


def _check_three_rows(result: Mapping[str, Any]) -> None:
    """Check that each row of both has its loader (of any stage), step and ratio, with values that agree."""

    def values(part: str, measured: str | None, *labels: str) -> dict[tuple[Any, ...], list[float]]:
        rows = [row for row in result[part] if measured is None or row["measured"] == measured]
        by_key = {tuple(row.get(label) for label in labels): row["values"] for row in rows}
        if len(by_key) < len(rows):
            raise ValueError(f"{part}: some stand there twice")
        return by_key

    labels = ("recipe", "decoder", "num_views", "stage")
    both, loaders, steps = (values("rows", measured, *labels) for measured in ("both", "loader", "step"))
    ratios = values("ratios", None, "what", *labels)
    if not both and not loaders and not values("rows", "peer", *labels):
        raise ValueError("rows: none of loader and step together, nor of loaders alone")
    for key, rates in both.items():
        recipe, _, num_views, stage = key
        partners = {
            "loader": loaders.get(key, loaders.get((*key[:3], None), [])),
            "step": steps.get((recipe, None, num_views, stage), []),
            "ratio": ratios.get(("both / min(loader, step)", *key), []),
        }
        for what, others in partners.items():
            if len(others) != len(rates):
                why = f"has {len(others)} values, both together {len(rates)}" if others else "is missing"
                raise ValueError(f"rows: the {what} of {key} {why}")
        for rate, loader, step, ratio in zip(rates, *partners.values(), strict=True):
            if not math.isclose(ratio, rate / min(loader, step), rel_tol=0.01):
                raise ValueError(
                    f"ratios: that of {key} is {ratio}, its rows say {rate / min(loader, step):.4f}"
                )


def output_of(*command: str) -> str | None:
    """Return a command's output, or None if it is empty, fails or is missing."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None
