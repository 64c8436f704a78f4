"""float32 products as a GPU computes them with TF32: the factors are rounded to eleven bits."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override


def rounded(values: Tensor) -> Tensor:
    """Round float32 to TF32's 10 stored bits of the mantissa, to nearest."""
    return ((values.contiguous().view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


class RoundedProducts(TorchDispatchMode):
    """A mode in which all factors of float32 matrix products are rounded to TF32."""

    @override
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"):
            args = [
                rounded(each) if isinstance(each, Tensor) and each.dtype == torch.float32 else each
                for each in args
            ]
        return function(*args, **(kwargs or {}))
