"""Values from the device, without that the device stands still."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Fetch:
    """Sends a tensor to the host, behind what the device has been given to do; `values` waits for it.

    Who asks for the values after the next step was launched has them while the device computes that one.
    """

    def __init__(self, values: Tensor):
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values = on_host.copy_(values, non_blocking=True)
            # Waiting sleeps; torch's default would spin on a core.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def values(self) -> Tensor:
        """Return the tensor on the host: in pinned memory where it comes from a GPU, so copy what is kept for long."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values

    def numbers(self) -> list[float]:
        """Return the values, flat."""
        numbers: list[float] = self.values().flatten().tolist()
        return numbers


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after the next one was made, so that the device computes that one while the host looks at this one."""
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.pop(0)
    yield from held
