"""Files of a source, on this machine or elsewhere."""

import glob
import os
from pathlib import Path
from typing import IO

from fastpsl.files.paths import require_existing
from fastpsl.files.remote.address import RemoteObject, is_remote, open_stream, remote_objects

SourceFile = Path | RemoteObject
"""A file; its `name` is the last part of its path or address, and `str` is all of it."""


def source_files(src: str, allowed: str) -> list[SourceFile]:
    """Return the files that a path, an address or a glob names, sorted by name.

    Args:
        src: The name.
        allowed: What may be given as a path, for the message.

    Raises:
        ValueError: There are none.
    """
    if is_remote(src):
        return list(remote_objects(src, "the address of tars or Parquet files, or a quoted glob of them"))
    require_existing(src, allowed)
    names = [src] if os.path.exists(src) else sorted(glob.glob(src))
    return [Path(name) for name in names]


def size_of(file: SourceFile) -> int:
    """Return a file's size in bytes; raise OSError where it cannot be read."""
    return file.num_bytes if isinstance(file, RemoteObject) else file.stat().st_size


def open_file(file: SourceFile) -> IO[bytes]:
    """Open a file for reading; raise OSError where it cannot be read."""
    return open_stream(file) if isinstance(file, RemoteObject) else open(file, "rb")
