"""The opening of our C libraries, which are built as extension modules without Python in them."""

import ctypes
from importlib.util import find_spec


def open_library(name: str) -> ctypes.CDLL:
    """Open a library; every call of its functions releases the GIL."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{name} was not built")
    return ctypes.CDLL(spec.origin)
