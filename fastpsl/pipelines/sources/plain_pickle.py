"""Pickles of plain data: dictionaries, lists, numbers, text, bytes and arrays of numbers, as CIFAR's batches and Detectron's proposals
are, of Python 2 and 3. Nothing else is let in: names of Python objects are never looked up, and no code of numpy's runs."""

import io
import math
import pickle
from typing import Any

import numpy as np
from typing_extensions import override

_NDARRAY = "numpy.ndarray"
_NUMBERS = ("u1", "u2", "i4", "i8", "f4", "f8")


class _Type:
    """Stands for a numpy.dtype; `numbers` where it is one of those that are let in."""

    def __init__(self, name: object):
        known = name.decode() if isinstance(name, bytes) else name
        self.numbers = np.dtype(f"<{known}") if known in _NUMBERS else None

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|", b"<", b"|"):
            self.numbers = None  # the other byte order


class _Array:
    """Stands for a numpy.ndarray while it is read."""

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
    """An array as Python 3's fifth protocol has it."""
    array = _Array()
    array.values = _numbers(data, dtype, shape, order == "F")
    return array


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")  # numpy 2's
        known = {
            # functions made for this call: the pickle can change nothing else
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy.core.multiarray", "scalar"): lambda dtype, data: _numbers(data, dtype, (), False).item(),
            ("numpy.core.numeric", "_frombuffer"): lambda *parts: _from_buffer(*parts),
            ("numpy", "dtype"): lambda name, *_: _Type(name),
            ("numpy", "ndarray"): _NDARRAY,
            # bytes in Python 3's protocols for Python 2
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
            ("__builtin__", "bytes"): lambda: b"",
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not let in")
        return known[module, name]


def load_plain(data: bytes) -> dict[Any, Any]:
    """A pickled dictionary of CIFAR's or Detectron's kind: its values are plain, arrays, or lists of such; strings of Python 2 are bytes,
    arrays numpy's and read-only. ValueError with the reason where it holds, or tries, anything else."""
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # noqa: BLE001  unpicklers raise nearly anything on nonsense
        raise ValueError(f"a pickle that is not of plain data ({' '.join(str(error).split())})") from None
    if type(found) is not dict:
        raise ValueError("a pickle that is no dictionary")
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    if type(value) is list:
        return [one.values if isinstance(one, _Array) else one for one in value]
    return value.values if isinstance(value, _Array) else value
