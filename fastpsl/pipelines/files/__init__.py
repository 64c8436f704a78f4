"""Files as such: written whole or not at all, read within bounds, kept in caches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpsl.pipelines.files.atomic import output_errors, write_atomically
    from fastpsl.pipelines.files.bounded import check_zip, read_npy
    from fastpsl.pipelines.files.json_lines import read_lines

__all__ = ["check_zip", "output_errors", "read_lines", "read_npy", "write_atomically"]

_FILES = {
    "check_zip": "bounded",
    "output_errors": "atomic",
    "read_lines": "json_lines",
    "read_npy": "bounded",
    "write_atomically": "atomic",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: no file of this package waits for what others import."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
