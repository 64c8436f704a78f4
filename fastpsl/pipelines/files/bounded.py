"""Arrays and archives of strangers: how much they would fill memory with is known, and limited, before any of it is read."""

import zipfile
from pathlib import Path

import numpy as np


def read_npy(path: Path, max_bytes: int) -> np.ndarray:
    """The array in an .npy file. ValueError where it takes more than `max_bytes`, holds objects, or is shorter than its header says."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise
    except Exception as error:  # noqa: BLE001  (numpy's parser of headers: tokenize, ast, OverflowError)
        raise ValueError(f"its header means nothing ({type(error).__name__})") from None
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise ValueError("an archive of arrays, not one")  # noqa: TRY004
    if mapped.nbytes > max_bytes:
        raise ValueError(f"{mapped.nbytes:,} bytes, and at most {max_bytes:,} are read")
    return np.array(mapped)


def refuse_larger(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """ValueError where the members of a zip take more than `max_bytes` when they are inflated.

    zipfile inflates no member beyond the size that the archive states.
    """
    num_bytes = sum(member.file_size for member in archive.infolist())
    if num_bytes > max_bytes:
        raise ValueError(f"it would take {num_bytes:,} bytes of memory, and at most {max_bytes:,} are read")


def refuse_damaged_tensors(path: Path) -> None:
    """zipfile.BadZipFile or ValueError where torch's zip at `path` fails a checksum or holds more than the file's own size.

    torch stores and does not compress, and its reader compares no checksums; Python's zipfile does.
    """
    with zipfile.ZipFile(path) as archive:
        refuse_larger(archive, path.stat().st_size)
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} fails its checksum")
