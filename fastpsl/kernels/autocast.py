"""The context in which layers compute in a precision."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from typing_extensions import override


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype, *, caches: bool = True) -> Iterator[None]:
    """Let layers compute in a precision; float32 leaves them as they are.

    Args:
        device: Where they compute.
        dtype: The precision.
        caches: Whether a weight is cast once for all layers that read it.
    """
    enabled = dtype != torch.float32
    with (
        torch.autocast(device.type, dtype if enabled else None, enabled=enabled, cache_enabled=caches),
        ThinMapsInFloat32() if enabled and device.type == "cpu" else contextlib.nullcontext(),
    ):
        yield


class ThinMapsInFloat32(TorchFunctionMode):
    """A mode in which convolutions of maps of few pixels stay in float32 under autocast.

    In bf16, oneDNN leaves the gradients of weights that no pixel meets as the memory had them: any numbers.
    It was seen where a side of the map is smaller than the stride, and with kernels of 5 on a side of 1.
    """

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or len(args) < 2:
            return func(*args, **kwargs)
        (images, weight), rest = args[:2], args[2:]
        stride = kwargs.get("stride", rest[1] if len(rest) > 1 else 1)
        is_learnt = weight.requires_grad and torch.is_autocast_enabled("cpu")
        if not is_learnt or not _is_thin(images.shape[-2:], weight.shape[-2:], stride):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(images.float(), weight, *rest, **kwargs).to(torch.get_autocast_dtype("cpu"))


def _is_thin(sides: Sequence[int], kernel: Sequence[int], stride: int | Sequence[int]) -> bool:
    steps = [stride] * 2 if isinstance(stride, int) else [*stride, *stride][:2]
    is_below_stride = any(side < step for side, step in zip(sides, steps, strict=True))
    return is_below_stride or (min(sides) == 1 and max(kernel) > 3)
