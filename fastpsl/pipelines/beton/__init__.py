"""ffcv's .beton files: read, written, checked; in shards too."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.pipelines.beton.encode import Target
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.beton.write import WriteReport, write_beton

__all__ = ["Beton", "Target", "WriteReport", "write_beton"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"Beton": "reader", "Target": "encode", "WriteReport": "write", "write_beton": "write"},
)
