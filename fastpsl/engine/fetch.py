"""Transfer of values from the device to the host without stopping the device."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from fastpsl.pipelines.decoders.memory import pinned_like

Item = TypeVar("Item")


class Fetch:
    """A transfer of a tensor to the host, queued behind the device's work. `values` waits for it.

    If `values` is called after the next step was launched, the device computes that step during the wait.
    """

    def __init__(self, values: Tensor):
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = pinned_like(values).copy_(values, non_blocking=True)
            # With blocking=True the wait sleeps. torch's default would occupy a core.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def values(self) -> Tensor:
        """Return the tensor on the host. From a GPU it may be pinned memory, so copy it to keep it long."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values

    def numbers(self) -> list[float]:
        """Return the values as a flat list."""
        numbers: list[float] = self.values().flatten().tolist()
        return numbers


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after the next one was drawn, so that the device works on that one meanwhile."""
    items_held: list[Item] = []
    for item in items:
        items_held.append(item)
        if len(items_held) > 1:
            yield items_held.pop(0)
    yield from items_held
