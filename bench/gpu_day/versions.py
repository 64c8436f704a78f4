"""A report of the machine's packages and hardware: exit 1 if fastpsl itself cannot be imported.

It writes the short name of the machine's GPU to FILE.

    python bench/gpu_day/versions.py FILE
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.schema import environment, short_name
from fastpsl.pipelines.decoders.dali import num_engines, nvjpeg_library, why_slower

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "numba", "kornia", "kornia-rs", "tyro", "rich", "ffcv",
    "nvidia-dali-cuda130", "lightly", "pycocotools",
    "pytest", "pytest-xdist", "pytest-timeout", "scikit-learn", "matplotlib", "tensorboard", "webdataset",
)  # fmt: skip
OURS = ("fastpsl.kernels.crops", "fastpsl.pipelines.loader.loader")
OPTIONAL = ("ffcv.libffcv", "nvidia.dali.fn", "lightly.data")


def main() -> int:
    for package in PACKAGES:
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "-")
    machine = environment("cuda" if torch.cuda.is_available() else "cpu")
    Path(sys.argv[1]).write_text(short_name(machine))
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
        f"{platform.python_version()}, "
        f"compiler {shutil.which('gcc')}, commit {machine['commit']}"
    )
    return int(num_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
