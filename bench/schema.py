"""What a result under bench/results/ looks like, and the helpers that every bench fills it with.

A result is a dict of
    schema        SCHEMA
    bench         which bench
    command       how it was called; of paths only the last part
    environment   see `environment`; the load averages say whether the machine was shared
    data          what was measured on: num_samples and other plain values
    settings      repeats, and the options that decide the figures
    rows          each: measured, unit, labels of plain values, and a `spread`
    ratios        each: what (a formula over rows), labels of plain values, and a `spread` over the repeats
    not_measured  each: what, reason
    notes         sentences that belong to the figures
`validate` holds a result to it.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
SHARED_LOAD = 0.5  # a load average above this before a bench starts: others were at work
PACKAGES = (
    "fastpsl", "torch", "torchvision", "numba", "numpy", "kornia", "pillow", "ffcv", "opencv-python", "triton"
)  # fmt: skip

_NONE = type(None)
_RESULT: dict[str, tuple[type, ...]] = {
    "schema": (int,), "bench": (str,), "command": (str,), "environment": (dict,), "data": (dict,),
    "settings": (dict,), "rows": (list,), "ratios": (list,), "not_measured": (list,), "notes": (list,),
}  # fmt: skip
_ENVIRONMENT: dict[str, tuple[type, ...]] = {
    "commit": (str, _NONE), "cpu": (str,), "num_cores": (int,), "gpu": (str, _NONE), "driver": (str, _NONE),
    "system": (str,), "python": (str,), "versions": (dict,), "load_average_before": (float, int),
    "load_average_after": (float, int),
}  # fmt: skip
_NUMBER = (float, int)
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
        "commit": _commit(),
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


def finish(machine: dict[str, Any]) -> list[str]:
    """Fill in the load average after the work; the notes that the load asks for."""
    machine["load_average_after"] = round(os.getloadavg()[0], 2)
    before = machine["load_average_before"]
    if before <= SHARED_LOAD:
        return []
    return [
        f"the machine was shared: load average {before} on {machine['num_cores']} cores before the bench began"
    ]


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The call, for the record; of absolute paths only the last part, as they are of one machine."""
    arguments = sys.argv if arguments is None else arguments
    kept = [Path(argument).name if os.path.isabs(argument) else argument for argument in arguments]
    return " ".join(["python", *kept])


def validate(result: Any) -> None:
    """ValueError, one line, where `result` is not what this file's head describes."""
    _check_keys(result, _RESULT, "result", exact=True)
    if result["schema"] != SCHEMA:
        raise ValueError(f"result.schema: is {result['schema']}, this code reads {SCHEMA}")
    _check_keys(result["environment"], _ENVIRONMENT, "environment", exact=True)
    _check_keys(result["data"], {"num_samples": (int,)}, "data")
    _check_keys(result["settings"], {"repeats": (int,)}, "settings")
    repeats = result["settings"]["repeats"]
    if repeats < 1 or not result["rows"]:
        raise ValueError(f"result: {repeats} repeats and {len(result['rows'])} rows; there must be some")
    for part, keys in (("rows", _ROW), ("ratios", _RATIO)):
        for number, row in enumerate(result[part]):
            _check_keys(row, keys, f"{part}[{number}]")
            _check_spread(row, repeats, f"{part}[{number}]")
    for number, missing in enumerate(result["not_measured"]):
        _check_keys(missing, _MISSING, f"not_measured[{number}]", exact=True)
    if not all(isinstance(note, str) for note in result["notes"]):
        raise ValueError("notes: must be strings")
    if result["bench"] == "throughput":
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


def _check_spread(row: Mapping[str, Any], repeats: int, where: str) -> None:
    values = row["values"]
    if len(values) != repeats:
        raise ValueError(f"{where}.values: {len(values)} of them for {repeats} repeats")
    if not all(isinstance(v, _NUMBER) and math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"{where}.values: must be finite numbers above 0")
    for name, expected in spread(values).items():
        if name != "values" and not math.isclose(row[name], expected, rel_tol=1e-3):
            raise ValueError(f"{where}.{name}: is {row[name]}, its values say {expected}")


def _check_three_rows(result: Mapping[str, Any]) -> None:
    """Throughput: each row of both together stands beside its loader alone, its step alone and their ratio."""

    def labels(part: str, measured: str | None, *names: str) -> set[tuple[Any, ...]]:
        rows = [row for row in result[part] if measured is None or row["measured"] == measured]
        return {tuple(row.get(name) for name in names) for row in rows}

    both = labels("rows", "both", "decoder", "num_views", "stage")
    if not both:
        raise ValueError("rows: none of loader and step together")
    for what, found, wanted in (
        ("loader", labels("rows", "loader", "decoder", "num_views"), {row[:2] for row in both}),
        ("step", labels("rows", "step", "num_views", "stage"), {row[1:] for row in both}),
        ("ratio", labels("ratios", None, "decoder", "num_views", "stage"), both),
    ):
        if lacking := wanted - found:
            raise ValueError(f"rows: the {what} of {min(lacking)} is missing")


def _commit() -> str | None:
    root = str(Path(__file__).resolve().parents[1])
    commit = _output("git", "-C", root, "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", root, "status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return f"{commit} and changes" if commit and changed else commit


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
