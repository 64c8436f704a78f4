"""Arrays and archives of strangers: how much they would fill memory with is known, and limited, before any of it is read."""

import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

_COMPRESSED = 15  # MATLAB's miCOMPRESSED
_CHUNK_BYTES = 1 << 20


def read_npy(path: Path, max_bytes: int) -> np.ndarray:
    """The array in an .npy file. ValueError where it takes more than `max_bytes`, holds objects, or is shorter than its header says."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
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


def refuse_inflating_mat(path: Path, most_times: int = 64) -> None:
    """ValueError where the compressed parts of a MATLAB 5 file inflate to more than `most_times` the file's size, and 64 MiB.

    They are inflated here, a chunk at a time. What is no such file, or is damaged, is left to its reader.
    """
    left = most_times * path.stat().st_size + (1 << 26)
    with open(path, "rb") as file:
        order: Literal["little", "big"] = "little" if file.read(128)[126:] == b"IM" else "big"
        while len(tag := file.read(8)) == 8:
            kind, num_bytes = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order)
            if kind != _COMPRESSED:
                file.seek(num_bytes, 1)
                continue
            end, inflate = file.tell() + num_bytes, zlib.decompressobj()
            while waiting := inflate.unconsumed_tail or file.read(min(end - file.tell(), _CHUNK_BYTES)):
                try:
                    left -= len(inflate.decompress(waiting, _CHUNK_BYTES))
                except zlib.error:
                    return
                if left < 0:
                    raise ValueError(f"it inflates to more than {most_times} times its size")
            file.seek(end)


def refuse_damaged_tensors(path: Path) -> None:
    """zipfile.BadZipFile or ValueError where torch's zip at `path` fails a checksum or holds more than the file's own size.

    torch stores and does not compress, and its reader compares no checksums; Python's zipfile does.
    """
    with zipfile.ZipFile(path) as archive:
        refuse_larger(archive, path.stat().st_size)
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} fails its checksum")
