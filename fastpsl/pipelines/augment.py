"""Two ways to compute a view's operations: one by one (Kornia and torch), or fused into a few kernels.

The ops define the result of both. Both take the same draws, and differ only by rounding. The fused kernels
are in kernels/fused_cuda/ (Triton) and kernels/fused_cpu/ (numba).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from fastpsl.kernels.fused import fused_modules, module_for
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.views import ViewSpec

AugmentName = Literal["auto", "unfused", "fused"]


@dataclass(frozen=True)
class Augment:
    """A way to compute the operations of views.

    Attributes:
        path: "unfused" or "fused".
        reason: Why this path was taken, to be shown to users.
        modules: The modules of kernels/fused_cpu or kernels/fused_cuda that the fused path uses.
    """

    path: str
    reason: str
    modules: tuple[ModuleType, ...] = ()

    def inputs(self, batch: Batch, views: Sequence[ViewSpec], dtype: torch.dtype) -> list[Tensor]:
        """Return what `Batch.inputs` returns.

        Fused views of one shape are consecutive parts of one buffer, in the order of the views.
        """
        if self.path == "unfused":
            return batch.inputs(views, dtype)
        batch.check_views(views)
        jobs = list(zip(views, batch.images, batch.draws, strict=True))
        modules = [module_for(self.modules, view.ops) for view in views]
        shapes = []
        for (view, images, _), module in zip(jobs, modules, strict=True):
            assert module is not None, view
            shapes.append(module.out_shape(view.ops, images.shape))
        device, parts = batch.images[0].device, len(shapes)
        if len({shape[1:] for shape in shapes}) == 1:
            buffer = _empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype, device)
            outs = list(buffer.split([shape[0] for shape in shapes]))
        else:
            outs = [_empty(shape, dtype, device) for shape in shapes]
        for k in range(parts):
            view, images, draws = jobs[k]
            modules[k].run(images, view.ops, draws, view.mean, view.std, outs[k])  # type: ignore[union-attr]
        return outs


UNFUSED = Augment("unfused", "asked for")


def choose_augment(name: AugmentName, views: Sequence[ViewSpec], device: torch.device) -> Augment:
    """Return the path that computes all of `views`.

    Args:
        name: The path that the user asks for. "auto" takes the fused path where it supports every view, else
            Kornia.
        views: The views of a loader.
        device: The device on which their operations run.

    Raises:
        ValueError: `name` is unknown, or "fused" is asked for and cannot compute one of the views.
    """
    if name not in get_args(AugmentName):
        raise ValueError(f"augment {name!r}: there are {', '.join(get_args(AugmentName))}")
    if name == "unfused" or not views:
        return UNFUSED
    modules, reason = fused_modules(device)
    if not modules:
        why_not = reason
    else:
        kinds = [" ".join(type(op).__name__ for op in v.ops) for v in views if not module_for(modules, v.ops)]
        why_not = f"no fused kernel for {kinds[0]} on {device.type}" if kinds else ""
    if not why_not:
        return Augment("fused", reason, modules)
    if name == "fused":
        raise ValueError(f"--augment-backend fused: {why_not}; use --augment-backend unfused, or auto")
    return Augment("unfused", why_not)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
