"""What a machine is, and the clocks of its GPU at work, for a card."""

import ctypes
import platform
from datetime import datetime, timezone
from typing import Any

import torch

from fastpsl.doctor.checks import driver_version, version_of
from fastpsl.engine.gpu import cpu_name, nvml
from fastpsl.files.workers import usable_cores
from fastpsl.pipelines.decoders import dali
from fastpsl.scripts import distribution


def facts(device: torch.device) -> dict[str, Any]:
    """Return what the machine is, as plain values."""
    versions = [f"fastpsl {distribution.version()}", f"torch {torch.__version__}"]
    versions.append(f"numba {version_of('numba')}")
    cores = usable_cores()
    found: dict[str, Any] = {"date": datetime.now(timezone.utc).date().isoformat(), "cores": cores}
    if device.type == "cuda":
        of = torch.cuda.get_device_properties(device)
        found |= {
            "name": of.name, "capability": f"{of.major}.{of.minor}",
            "multiprocessors": of.multi_processor_count,
            "memory_gib": round(of.total_memory / 2**30, 1), "driver": driver_version(),
        }  # fmt: skip
        versions += [f"triton {version_of('triton')}", f"CUDA {torch.version.cuda}"]
        versions += [f"cuDNN {torch.backends.cudnn.version()}", f"driver {found['driver']}"]
        if not dali.why_missing(device):
            versions.append(f"DALI {version_of('nvidia-dali-cuda130', 'nvidia-dali-cuda120')}")
        gpu = f"{of.name}, sm {found['capability']}, {of.multi_processor_count} SMs"
        found["device"] = f"{gpu}, {found['memory_gib']:.0f} GiB, {cores} cores"
    else:
        found["name"] = cpu_name()
        found["device"] = f"{found['name']}, {cores} cores, no GPU"
    versions.append(f"Python {platform.python_version()}")
    return found | {"versions": ", ".join(versions)}


_SM_CLOCK = 1  # NVML's number of it
# Bits of NVML's reasons for which a clock is lower than it could be. An idle GPU is no news.
_SLOWED_BY = {
    0x2: "clocks set by applications", 0x4: "the power limit", 0x8: "the hardware",
    0x10: "another GPU's clock", 0x20: "heat", 0x40: "heat, by the hardware", 0x80: "the power supply",
    0x100: "the display's clock",
}  # fmt: skip


def read_clocks(device: torch.device) -> dict[str, Any]:
    """Return the GPU's clocks now, its power limit, what slows it and its MIG mode, as far as told."""
    found = dict[str, Any]()
    number, most, pending = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    reasons = ctypes.c_ulonglong()
    with nvml(device) as ask:
        is_told = ask("nvmlDeviceGetClockInfo", _SM_CLOCK, number)
        if is_told and ask("nvmlDeviceGetMaxClockInfo", _SM_CLOCK, most):
            found |= {"sm_mhz": number.value, "most_sm_mhz": most.value}
        if ask("nvmlDeviceGetEnforcedPowerLimit", number):
            found["power_limit_w"] = number.value / 1000
        if ask("nvmlDeviceGetCurrentClocksThrottleReasons", reasons):
            found["slowed_by"] = [words for bit, words in _SLOWED_BY.items() if reasons.value & bit]
        if ask("nvmlDeviceGetMigMode", number, pending):
            found["is_mig"] = bool(number.value)
    return found


def clocks_in_words(found: dict[str, Any]) -> str:
    """Return the line of a card."""
    words = list[str]()
    if "sm_mhz" in found:
        words.append(f"SM at {found['sm_mhz']:,} MHz of at most {found['most_sm_mhz']:,}")
    words += [f"power limit {found['power_limit_w']:g} W"] if "power_limit_w" in found else []
    words += [f"slowed by {' and '.join(found['slowed_by']) or 'nothing'}"] if "slowed_by" in found else []
    words += [f"MIG {'on' if found['is_mig'] else 'off'}"] if "is_mig" in found else []
    return ", ".join(words) or "untold"
