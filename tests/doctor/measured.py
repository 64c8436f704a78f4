"""Measurements as doctor makes them, and its screen."""

import io
import time
from typing import Any

from rich.console import Console

from fastpsl.doctor.measurements import Measurements, ReadRate, StageRates
from fastpsl.doctor.report import Check, Limit, Report, show

GB = 10**9
IN_MEMORY = ReadRate(90_000, 50_000, 10 * GB, 100 * GB, 1.0)


def stage(name: str = "S1", epochs: int = 60, **values: Any) -> StageRates:
    """Return a step of 1,000 images/s that never waits."""
    usual: dict[str, Any] = {
        "batch_size": 100, "decode": 4000.0, "loader": 4000.0, "step": "off",
        "step_rates": {"off": 1000.0},
        "augment": "torch", "augment_ms": {"torch": 10.0}, "both": 1000.0, "spread": 0.01,
        "cores_used": 3.0,
    }  # fmt: skip
    return StageRates(name, epochs, **(usual | values))


def measured(*stages: StageRates, **values: Any) -> Measurements:
    usual: dict[str, Any] = {
        "is_cuda": True, "num_cores": 16, "num_threads": 16, "decoder": "ffcv",
        "read": IN_MEMORY, "decode": 4000.0, "copy": 50_000.0,
    }  # fmt: skip
    return Measurements(**(usual | values), stages=stages)


def waiting(**values: Any) -> StageRates:
    """Return a stage at half its step's speed, because the decoder is half as fast as the step."""
    return stage(**({"decode": 500.0, "loader": 500.0, "both": 500.0} | values))


def no_limit() -> Limit:
    return Limit(1e9, time.monotonic())


def report_of(measurements: Measurements | None, *checks: Check) -> Report:
    setting: dict[str, Any] = dict.fromkeys(("recipe", "data", "batch_size", "device", "device_name"))
    return Report(
        setting | {"arguments": [], "num_ranks": 1, "precision": "fp16"}, checks, measurements, no_limit()
    )


def screen_of(report: Report, width: int = 200) -> str:
    screen = io.StringIO()
    show(report, Console(file=screen, width=width))
    return screen.getvalue()
