"""Convolutions of maps of one row or column under autocast on the CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from typing_extensions import override


class ThinMapsInFloat32(TorchFunctionMode):
    """A mode in which convolutions of maps of one row or column stay in float32 under autocast.

    In bf16, oneDNN leaves the gradients of weights that no pixel meets as the memory had them: any numbers.
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
        is_learnt = weight.requires_grad and torch.is_autocast_enabled("cpu")
        if not is_learnt or 1 not in images.shape[-2:] or max(weight.shape[-2:]) == 1:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(images.float(), weight, *rest, **kwargs).to(torch.get_autocast_dtype("cpu"))
