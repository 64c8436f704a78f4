"""Pickles of plain data: dictionaries, lists, numbers, bytes and arrays of uint8, as CIFAR's are. Nothing else is
let in: names of Python objects are never looked up, and no code of numpy's runs."""

import io
import math
import pickle
from typing import Any

import numpy as np

_NDARRAY = "numpy.ndarray"


class _Type:
    """Stands for a numpy.dtype."""

    def __init__(self, name: object):
        self.is_uint8 = name == b"u1"

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which uint8 does not have."""


class _Array:
    """Stands for a numpy.ndarray while it is read."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        is_plain = isinstance(dtype, _Type) and dtype.is_uint8 and is_fortran is False and type(data) is bytes
        is_sized = type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)
        if not (is_plain and is_sized and math.prod(shape) == len(data)):
            raise pickle.UnpicklingError("an array of another kind")
        self.values = np.frombuffer(data, np.uint8).reshape(shape)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {
            # functions made for this call: the pickle can change nothing else
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "dtype"): lambda name, *_: _Type(name),
            ("numpy", "ndarray"): _NDARRAY,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not let in")
        return known[module, name]


def load_plain(data: bytes) -> dict[bytes, Any]:
    """A pickled dictionary of CIFAR's kind; strings of Python 2 are bytes, arrays numpy's. ValueError with the
    reason where it holds, or tries, anything else."""
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # noqa: BLE001  unpicklers raise nearly anything on nonsense
        raise ValueError(f"a pickle that is not of plain data ({' '.join(str(error).split())})") from None
    if type(found) is not dict:
        raise ValueError("a pickle that is no dictionary")
    return {key: value.values if isinstance(value, _Array) else value for key, value in found.items()}
