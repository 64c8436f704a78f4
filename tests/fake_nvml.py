"""A fake of NVML's library, for what is read of a GPU through it."""

import ctypes
from typing import Any


class Nvml:
    """A library that knows one GPU; `status` is of each reading, and `num_open` counts who has opened it."""

    uuid = "1234"

    def __init__(self, status: int = 0, is_known: bool = True) -> None:
        self.status, self.is_known, self.num_open = status, is_known, 0

    def nvmlInit_v2(self) -> int:
        self.num_open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.num_open -= 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        assert uuid == f"GPU-{self.uuid}".encode()
        handle._obj.value = 4711
        return 0 if self.is_known else 6

    def check(self, handle: ctypes.c_void_p) -> None:
        """Check that the library is open, and asked about its GPU."""
        assert handle.value == 4711 and self.num_open == 1
