"""Three ways to compute a view's operations: one by one in torch or by Kornia, or fused into a few kernels.

The operations in torch define the result of all. All take the same draws, and differ only by rounding.
Kornia's are in kernels/by_kornia.py, the fused kernels in kernels/fused_cuda/ (Triton) and kernels/fused_cpu/
(numba).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from fastpsl.kernels.fused import fused_modules, module_for
from fastpsl.kernels.normalise import out_shape
from fastpsl.pipelines.decoders.memory import ViewMemory
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec

AugmentName = Literal["auto", "kornia", "torch", "fused"]
_Job = tuple[ViewSpec, Tensor, Sequence[Mapping[str, Tensor]]]
_Apply = Callable[[ViewSpec, Tensor, Sequence[Mapping[str, Tensor]], torch.dtype], Tensor]
# Of uint8 images, whose copies in float32 malloc keeps for the next part; larger ones are mapped anew.
_PART_BYTES = 1 << 22


@dataclass(frozen=True)
class Augment:
    """A way to compute the operations of views."""

    path: str  # "kornia", "torch" or "fused"
    reason: str  # why this path was taken, to be shown to users
    # The modules of kernels/fused_cpu or kernels/fused_cuda that the fused path uses.
    modules: tuple[ModuleType, ...] = ()
    # The memory of views on the CPU.
    memory: ViewMemory = field(default_factory=ViewMemory, repr=False, compare=False)

    def inputs(self, batch: Batch, views: Sequence[ViewSpec], dtype: torch.dtype) -> list[Tensor]:
        """Return what `Batch.inputs` returns.

        Fused views of one shape are consecutive parts of one buffer, in the order of the views. On the CPU
        all views are, and the buffer's memory is used again once nothing refers to it.
        """
        if not views:
            return batch.inputs(views, dtype)
        batch.check_views(views)
        jobs = list(zip(views, batch.images, batch.draws, strict=True))
        if self.path != "fused":
            apply = _by_kornia if self.path == "kornia" else ViewSpec.apply
            if batch.images[0].is_cuda or not len(batch.images[0]):
                return [apply(*job, dtype) for job in jobs]
            return self._one_by_one_on_cpu(apply, jobs, dtype)
        for (view, images, draws), out in zip(jobs, outs := self._empty(jobs, dtype), strict=True):
            module = module_for(self.modules, view.ops)
            assert module is not None, view
            module.run(images, view.ops, draws, view.mean, view.std, out)
        return outs

    def _one_by_one_on_cpu(self, apply: _Apply, jobs: Sequence[_Job], dtype: torch.dtype) -> list[Tensor]:
        """Apply the operations, which treat each image by itself, in parts, which take less memory."""
        outs = self._empty(jobs, dtype)
        for (view, images, draws), out in zip(jobs, outs, strict=True):
            per_image, step = len(out) // len(images), max(1, _PART_BYTES // images[0].nbytes)
            for first in range(0, len(images), step):
                part = slice(first, first + step)
                parts = [{name: values[part] for name, values in draw.items()} for draw in draws]
                out[first * per_image : part.stop * per_image] = apply(view, images[part], parts, dtype)
        return outs

    def _empty(self, jobs: Sequence[_Job], dtype: torch.dtype) -> list[Tensor]:
        """Return uninitialised results in channels-last memory, in one buffer if they have one shape."""
        shapes = [out_shape(view.ops, tuple(images.shape)) for view, images, _ in jobs]
        device = jobs[0][1].device
        nums, is_one = [shape[0] for shape in shapes], len({shape[1:] for shape in shapes}) == 1
        wanted = [(sum(nums), *shapes[0][1:])] if is_one else shapes
        if device.type == "cpu":
            outs = self.memory.empty(wanted, dtype)
        else:
            outs = [
                torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
                for shape in wanted
            ]
        return list(outs[0].split(nums)) if is_one else outs


def _by_kornia(
    view: ViewSpec, images: Tensor, draws: Sequence[Mapping[str, Tensor]], dtype: torch.dtype
) -> Tensor:
    """Return what `ViewSpec.apply` returns, within rounding."""
    from fastpsl.kernels import by_kornia  # takes 0.4 s, and the other ways do without

    for op, draw in zip(view.ops, draws, strict=True):
        images = by_kornia.apply(op, images, draw)
    return by_kornia.normalise(images, view.mean, view.std, dtype)


TORCH = Augment("torch", "asked for")


def choose_augment(name: AugmentName, views: Sequence[ViewSpec], device: torch.device) -> Augment:
    """Return the path that computes all of `views`."""
    if name not in get_args(AugmentName):
        raise ValueError(f"augment {name!r}: there are {', '.join(get_args(AugmentName))}")
    if name in ("kornia", "torch") or not views:
        return Augment("kornia" if name == "kornia" else "torch", "asked for")
    modules, reason = fused_modules(device)
    if not modules:
        why_not = reason
    else:
        kinds = [" ".join(type(op).__name__ for op in v.ops) for v in views if not module_for(modules, v.ops)]
        why_not = f"no fused kernel for {kinds[0]} on {device.type}" if kinds else ""
    if not why_not:
        return Augment("fused", reason, modules)
    if name == "fused":
        raise ValueError(f"--augment-backend fused: {why_not}; use --augment-backend kornia, or auto")
    return Augment("torch", why_not)
