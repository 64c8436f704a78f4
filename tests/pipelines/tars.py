"""Tars for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Members = Mapping[str, bytes] | Sequence[tuple[str, bytes]]


def tar_bytes(members: Members, mode: str = "w", **options: Any) -> bytes:
    """A tar of files in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_tar(path: Path, members: Members, **options: Any) -> Path:
    """`tar_bytes` in a file, compressed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    path.write_bytes(tar_bytes(members, mode, **options))
    return path
