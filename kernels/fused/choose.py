"""Which fused kernels there are for a device (Triton's, or numba's on the CPU), and which of them does a view's operations.

Each module has `fits(ops)`, `out_shape(ops, shape)` and `run(images, ops, draws, mean, std, out)`: uint8 [B, 3, H, W] and the draws of
the ops → the normalised result, float16, bfloat16 or float32, channels-last, written into `out`.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch


def module_for(modules: Sequence[ModuleType], ops: Sequence[object]) -> ModuleType | None:
    """The first that does exactly these operations in this order."""
    return next((module for module in modules if module.fits(ops)), None)


@cache
def fused_modules(device: torch.device) -> tuple[tuple[ModuleType, ...], str]:
    """The modules for a device, and what they run by; without modules: why there are none."""
    if device.type != "cuda":
        return (importlib.import_module("fastpsl.kernels.numba_photometric"),), "numba"
    if importlib.util.find_spec("triton") is None:
        return (), "Triton is not installed (pip install triton)"
    triton = importlib.import_module("triton")
    names = ("photometric", "geometric")
    modules = tuple(importlib.import_module(f"fastpsl.kernels.fused.{name}") for name in names)
    try:
        _try_out(modules, device)
    except Exception as error:  # noqa: BLE001 - of the driver, the compiler, the linker: many types
        return (), f"Triton {triton.__version__} does not work here ({' '.join(str(error).split())[:200]})"
    return modules, f"Triton {triton.__version__}"


def _try_out(modules: Sequence[ModuleType], device: torch.device) -> None:
    """One picture through each: a driver too old, or no compiler, says so now."""
    from fastpsl.kernels.jigsaw import JigsawTiles

    images = torch.zeros((1, 3, 8, 8), dtype=torch.uint8, device=device)
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    out = torch.empty((1, 3, 8, 8), device=device).contiguous(memory_format=torch.channels_last)
    modules[0].run(images, (), (), mean, std, out)
    tiles = JigsawTiles(1, 8, 8)
    offsets = torch.zeros((1, 1, 2), dtype=torch.int64, device=device)
    modules[1].run(images, (tiles,), ({"offsets": offsets, "permutation": offsets[:, :, 0]},), mean, std, out)
    torch.cuda.synchronize(device)
