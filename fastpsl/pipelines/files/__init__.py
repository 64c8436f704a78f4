"""Files as such: written whole or not at all, read within bounds, kept in caches."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.pipelines.files.atomic import output_errors, write_atomically
    from fastpsl.pipelines.files.bounded import check_zip, read_npy
    from fastpsl.pipelines.files.json_lines import read_lines

__all__ = ["check_zip", "output_errors", "read_lines", "read_npy", "write_atomically"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "check_zip": "bounded",
        "output_errors": "atomic",
        "read_lines": "json_lines",
        "read_npy": "bounded",
        "write_atomically": "atomic",
    },
)
