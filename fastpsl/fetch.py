"""Numbers from the device, without that the device stands still."""

import torch
from torch import Tensor


class Fetch:
    """Sends float32 `values` of any shape to the host, behind what the device has been given to do; `numbers` waits for them.

    Who asks for the numbers after the next step was launched has them while the device computes that one.
    """

    def __init__(self, values: Tensor):
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values = on_host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event(
                blocking=True
            )  # waiting sleeps; torch's default would spin on a core
            self._arrived.record()

    def numbers(self) -> list[float]:
        """The values, flat."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: list[float] = self._values.flatten().tolist()
        return numbers
