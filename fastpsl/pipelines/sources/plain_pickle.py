"""A safe reader of pickles of plain data, such as CIFAR's batches and Detectron's proposals.

Plain data are dictionaries, lists, numbers, text, bytes and arrays of numbers, pickled by Python 2 or 3.
Names of Python objects are never looked up, and no code of numpy runs.
"""

import io
import math
import pickle
from typing import Any

import numpy as np
from typing_extensions import override

_NDARRAY = "numpy.ndarray"
_NUMBERS = ("u1", "u2", "i4", "i8", "f4", "f8")


class _Type:
    """A stand-in for numpy.dtype; `numbers` is None for types that are not allowed."""

    def __init__(self, name: object):
        known = name.decode() if isinstance(name, bytes) else name
        self.numbers = np.dtype(f"<{known}") if known in _NUMBERS else None

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|", b"<", b"|"):
            self.numbers = None  # big-endian numbers are not allowed


class _Array:
    """A stand-in for numpy.ndarray while it is unpickled."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = _numbers(data, dtype, shape, is_fortran)


def _numbers(data: Any, dtype: Any, shape: Any, is_fortran: Any) -> np.ndarray:
    kind = dtype.numbers if isinstance(dtype, _Type) else None
    is_sized = type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)
    is_plain = type(data) in (bytes, bytearray) and type(is_fortran) in (bool, int)
    if kind is None or not (is_sized and is_plain and math.prod(shape) * kind.itemsize == len(data)):
        raise pickle.UnpicklingError("an array of another kind")
    return np.frombuffer(data, kind).reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Build an array as Python 3's pickle protocol 5 stores it."""
    array = _Array()
    array.values = _numbers(data, dtype, shape, order == "F")
    return array


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")  # the name in numpy 2
        known = {
            # These functions are new for each call, so that a pickle can change nothing else.
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy.core.multiarray", "scalar"): lambda dtype, data: _numbers(data, dtype, (), False).item(),
            ("numpy.core.numeric", "_frombuffer"): lambda *parts: _from_buffer(*parts),
            ("numpy", "dtype"): lambda name, *_: _Type(name),
            ("numpy", "ndarray"): _NDARRAY,
            # Python 3 stores bytes so in its protocols for Python 2.
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
            ("__builtin__", "bytes"): lambda: b"",
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(
                f"{module}.{name} is not let in: plain data are numbers, text, lists and arrays"
            )
        return known[module, name]


def load_plain(data: bytes) -> dict[Any, Any]:
    """Return a pickled dictionary of plain data.

    Its values are plain, arrays, or lists of these. Strings of Python 2 become bytes, and arrays are
    read-only.

    Raises:
        ValueError: The pickle holds or tries anything else; the message says why.
    """
    try:
        record = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # noqa: BLE001  unpicklers raise nearly anything on damaged data
        raise ValueError(f"a pickle that is not of plain data ({' '.join(str(error).split())})") from None
    if type(record) is not dict:
        raise ValueError("a pickle that is no dictionary")
    return {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    if type(value) is list:
        return [item.values if isinstance(item, _Array) else item for item in value]
    return value.values if isinstance(value, _Array) else value
