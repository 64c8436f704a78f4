"""A copy of a training's state on the host, taken between two steps."""

import copy
from typing import Any

import torch
from torch import Tensor

from fastpsl.pipelines.decoders.memory import pinned_like


class Snapshot:
    """A copy of a state, in memory that the next copy uses again.

    A GPU's tensors are copied to pinned memory, queued behind the device's work. What the host launches
    afterwards therefore changes the tensors only when they have been copied. `take` waits for them
    where pinned memory is exhausted.
    """

    def __init__(self) -> None:
        self._buffers: dict[Any, Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `state`, which holds its values once `wait` has returned.

        Args:
            state: Tensors, numbers, strings and arrays in dicts, lists and tuples.

        Returns:
            The copy. The next call overwrites its tensors.
        """
        before, self._buffers, self._arrived = self._buffers, {}, None
        copied: dict[str, Any] = self._copied(state, (), before)
        if any(key[-1] for key in self._buffers):
            self._arrived = torch.cuda.Event(blocking=True)  # its wait sleeps, as in `Fetch`
            self._arrived.record()
        return copied

    def wait(self) -> None:
        """Wait until the device has copied the state."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _copied(self, value: Any, place: tuple[Any, ...], before: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            key = (place, value.shape, value.stride(), value.dtype, value.is_cuda)
            buffer = before.get(key)
            if buffer is None and value.is_cuda:
                buffer = pinned_like(value)
            elif buffer is None:
                buffer = torch.empty_like(value, device="cpu", requires_grad=False)
            self._buffers[key] = buffer.copy_(value.detach(), non_blocking=True)
            return buffer
        if isinstance(value, dict):
            copied = copy.copy(value)  # a module's state has an attribute, its version
            copied.update({name: self._copied(part, (*place, name), before) for name, part in value.items()})
            return copied
        if isinstance(value, (list, tuple)):
            return type(value)(self._copied(part, (*place, i), before) for i, part in enumerate(value))
        return copy.deepcopy(value)
