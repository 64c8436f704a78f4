"""The environment that results depend on besides options: the machine, package versions and the commit."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastpsl.engine.distributed import World

PACKAGES = ("torch", "torchvision", "numba", "numpy", "kornia", "ffcv", "triton")


def environment(world: World) -> dict[str, Any]:
    """Return the machine, package versions and commit, for the run's record."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        "world_size": world.size,
        "torch_threads": torch.get_num_threads(),
        "commit": own_commit(),
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def own_commit() -> str | None:
    """Return the commit of fastpsl's source, or None for an installed copy or without git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    return (
        subprocess.run(command, check=False, capture_output=True, text=True, timeout=10).stdout.strip()
        or None
    )
