"""The fused kernels of a device, and the choice of the one that does a view's operations.

A fused kernel does a chain of operations and the normalisation in one or a few passes over memory. Numba
compiles those for the CPU, or they are in C, and Triton those for CUDA. Each kernel is a module with two
functions:

    fits(ops)                                  whether it does exactly these operations in this order
    run(images, ops, draws, mean, std, out)    computes the result into `out`

`run` raises ValueError for images that an operation refuses. It takes images as uint8 [B, 3, H, W] of any
strides, and the draws of the operations as tensors on the images' device. It also takes one mean and std per
channel, in units of [0, 1]. `out` is float16, bfloat16, float32 or, on the CPU, float64, of
`normalise.out_shape`, in channels-last memory. The operations one after the other, then `normalise`, define
the result.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.normalise import out_shape

# In the order in which they are tried.
CPU_MODULES = ("by_table", "photometric", "geometric", "warped")
CUDA_MODULES = ("photometric", "geometric", "shifted", "warped", "prepared")


def module_for(modules: Sequence[ModuleType], ops: Sequence[object]) -> ModuleType | None:
    """Return the first module that does exactly these operations in this order, or None."""
    return next((module for module in modules if module.fits(ops)), None)


@cache
def fused_modules(device: torch.device) -> tuple[tuple[ModuleType, ...], str]:
    """Return the device's modules and a description of what runs them.

    Without modules, the description says why there are none.
    """
    if device.type != "cuda":
        return (
            tuple(importlib.import_module(f"fastpsl.kernels.fused_cpu.{name}") for name in CPU_MODULES),
            "numba, an image at a time",
        )
    if importlib.util.find_spec("triton") is None:
        return (), "Triton is not installed (pip install triton)"
    version = "there"
    try:
        version = importlib.import_module("triton").__version__
        modules = tuple(
            importlib.import_module(f"fastpsl.kernels.fused_cuda.{name}") for name in CUDA_MODULES
        )
        _try_out(modules, device)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - of the driver, the compiler, the linker: many types
        return (), f"Triton {version} does not work here ({' '.join(str(error).split())[:200]})"
    return modules, f"Triton {version}"


def tried_out(name: str, run: Callable[[ModuleType], object]) -> tuple[ModuleType | None, str]:
    """Return a module of CUDA's kernels after one run, or None and why Triton does not work."""
    try:
        module = importlib.import_module(f"fastpsl.kernels.fused_cuda.{name}")
        run(module)
    except torch.cuda.OutOfMemoryError:
        raise
    except ImportError as error:
        return None, f"Triton is missing ({error}; pip install triton)"
    except Exception as error:  # noqa: BLE001 - of the driver, the compiler, the linker: many types
        return None, f"Triton does not work here ({' '.join(str(error).split())[:200]})"
    return module, ""


def _try_out(modules: Sequence[ModuleType], device: torch.device) -> None:
    """Run images through every kind of kernel, so that an old driver or a missing compiler fails here."""
    from fastpsl.kernels.colour import ColourDistortion
    from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY
    from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Shift, WarpPair
    from fastpsl.kernels.jigsaw import JigsawTiles
    from fastpsl.kernels.lab import Lightness

    keys = Keys(0, 0, np.arange(2))
    images = torch.zeros((2, 3, 16, 16), dtype=torch.uint8, device=device)
    chains: tuple[tuple[Any, ...], ...] = (
        (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1, p=1.0), GaussianBlur(5, p=1.0), Sobel(0.5)),
        (Flip(), SobelXY()),
        (Flip(), JigsawTiles(1, 16, 16)),
        (Shift(2), Flip(), AllTurns(4)),
        (Shift(2), Flip(), Hole()),
        (Shift(2), Flip(), Lightness()),
        (Shift(2), Flip(), WarpPair(16)),
        (Shift(2), Flip(), SobelXY()),
        (Enlarge(20, 16), Flip(), SobelXY()),
    )
    for ops in chains:
        module = module_for(modules, ops)
        assert module, ops
        draws = [
            {key: torch.from_numpy(value).to(device) for key, value in op.draw(keys).items()} for op in ops
        ]
        shape = out_shape(ops, tuple(images.shape))
        out = torch.empty(shape, dtype=torch.float16, device=device, memory_format=torch.channels_last)
        module.run(images, ops, draws, (0.5,) * shape[1], (0.5,) * shape[1], out)
    torch.cuda.synchronize(device)
