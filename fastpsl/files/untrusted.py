"""Readers of untrusted arrays and archives that limit the memory before they read any contents."""

import zipfile
from pathlib import Path

import numpy as np


def read_npy(path: Path, max_bytes: int) -> np.ndarray:
    """Return the array of an .npy file that takes at most `max_bytes`."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise
    except Exception as error:  # noqa: BLE001  numpy parses headers by tokenize and ast, which raise many types
        raise ValueError(f"its header means nothing ({type(error).__name__})") from None
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise ValueError("an archive of arrays, not one")  # noqa: TRY004
    if mapped.nbytes > max_bytes:
        raise ValueError(f"{mapped.nbytes:,} bytes, and at most {max_bytes:,} are read")
    return np.array(mapped)


def check_zip(path: Path, max_bytes: int) -> None:
    """Check a zip before another reader opens it, because torch and numpy compare no checksums."""
    with zipfile.ZipFile(path) as archive:
        # zipfile inflates no member beyond the size that the archive states.
        num_bytes = sum(member.file_size for member in archive.infolist())
        if num_bytes > max_bytes:
            raise ValueError(
                f"it would take {num_bytes:,} bytes of memory, and at most {max_bytes:,} are read"
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} fails its checksum")
