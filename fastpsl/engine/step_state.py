"""The tensors that a step writes before it is known whether its gradients are finite."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Values are kept back as integers of their size, because 0 times infinity is not 0.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StepState:
    """A set of tensors that keep their values in a skipped step, without a wait for the device.

    Args:
        tensors: The tensors, such as running statistics and queues. They must not be replaced.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        of_size: dict[tuple[torch.device, int], list[Tensor]] = defaultdict(list)
        seen = set[tuple[object, ...]]()
        for tensor in tensors:
            tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            if not tensor.numel() or not _may_be_written(tensor):
                continue
            bits = tensor.detach().view(_BITS[tensor.element_size()])
            place = (bits.untyped_storage()._cdata, bits.storage_offset(), bits.shape, bits.stride())
            if place not in seen:  # the same bits would be corrected twice
                seen.add(place)
                of_size[tensor.device, tensor.element_size()].append(bits)
        self._tensors = list(of_size.values())
        self._before = [[torch.empty_like(each) for each in group] for group in self._tensors]

    def keep(self) -> None:
        """Copy the present values."""
        for tensors, before in zip(self._tensors, self._before, strict=True):
            torch._foreach_copy_(before, tensors)

    def restore_if(self, is_skipped: Tensor) -> None:
        """Write the values of the last `keep` back if `is_skipped`, a number on the device, is not 0."""
        for tensors, before in zip(self._tensors, self._before, strict=True):
            torch._foreach_sub_(before, tensors)
            torch._foreach_mul_(before, (is_skipped != 0).to(before[0].dtype))
            torch._foreach_add_(tensors, before)


class SkippedStep:
    """A hook that counts steps with non-finite gradients in `num`, and tells whether the present one is one.

    It knows no `TrainStep`, which would live until the collector of cycles runs, with its graphs.
    """

    def __init__(self, num: Tensor):
        self._num = num
        self._found_inf: Tensor | None = None

    def __call__(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        # The scaler sets it for fused optimisers.
        self._found_inf = optimiser.found_inf  # type: ignore[attr-defined]
        self._num += self._found_inf

    def take(self) -> Tensor:
        """Return what the scaler has found, and forget it, because it may lie in a graph's memory."""
        found_inf, self._found_inf = self._found_inf, None
        assert found_inf is not None
        return found_inf


def _may_be_written(tensor: Tensor) -> bool:
    """Return whether torch writes into a tensor in place: not if it is sparse, or expanded."""
    if tensor.layout != torch.strided:
        return False
    return all(stride or size == 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
