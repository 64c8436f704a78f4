"""Tar files for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Members = Mapping[str, bytes] | Sequence[tuple[str, bytes]]


def tar_bytes(members: Members, mode: str = "w", **options: Any) -> bytes:
    """Return a tar with the files in the given order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_tar(path: Path, members: Members, **options: Any) -> Path:
    """Write a tar, compressed according to its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    path.write_bytes(tar_bytes(members, mode, **options))
    return path
