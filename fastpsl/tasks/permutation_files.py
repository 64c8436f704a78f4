"""Read files of jigsaw permutations: those of this package, VISSL, bbrattoli and Noroozi."""

import hashlib
from pathlib import Path

import numpy as np

from fastpsl.files.untrusted import read_npy

_NPY = b"\x93NUMPY"
_HEADER_BYTES = 8
_MAX_BYTES = 1 << 28  # of 9 pieces, all 362,880 permutations are 26 MB


def read_permutations(path: str | Path) -> np.ndarray:
    """Read a file of permutations.

    The first bytes of the file tell its kind. Files of `fastpsl permutations`, VISSL's
    hamming_perms_N_patches_9_max.npy and bbrattoli's permutations_N.npy are integer arrays that count from 0
    or from 1. Noroozi's permutations_701.bin and permutations_100_max.bin are little-endian int32: N, n, then
    N rows of n, which count from 1. In all of them, position j shows tile row[j].

    Args:
        path: The file.

    Returns:
        An int64 array [N, n] with values 0 … n - 1.

    Raises:
        ValueError: The file is something else, a row is no permutation, or two rows are equal.
    """
    try:
        with open(path, "rb") as file:
            is_npy = file.read(len(_NPY)) == _NPY
        stored = read_npy(Path(path), _MAX_BYTES) if is_npy else _read_bin(path)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{path}: cannot be read ({reason}); make one with `fastpsl permutations`") from None
    if stored.ndim != 2 or stored.dtype.kind not in "iu" or not stored.size:
        raise ValueError(
            f"{path}: holds {stored.dtype} {list(stored.shape)}; integers [N, pieces] are wanted, "
            "a permutation per row; make them with `fastpsl permutations`"
        )
    num_pieces, start = stored.shape[1], int(stored.min())
    rows = stored.astype(np.int64) - (1 if start == 1 else 0)
    bad_rows = np.flatnonzero((np.sort(rows, axis=1) != np.arange(num_pieces)).any(axis=1))
    if len(bad_rows):
        raise ValueError(
            f"{path}: row {bad_rows[0]} is no permutation of {num_pieces}: {stored[bad_rows[0]].tolist()}; "
            "each row must hold every number from 0 (or from 1) once"
        )
    num_different = len(np.unique(rows, axis=0))
    if num_different != len(rows):
        raise ValueError(
            f"{path}: {len(rows) - num_different} of {len(rows)} permutations repeat another; "
            "remove the copies"
        )
    return rows


def _read_bin(path: str | Path) -> np.ndarray:
    """Read int32 [N, n] as Noroozi's code does (MehdiNoroozi/JigsawPuzzleSolver, data_transformer.cpp)."""
    num_bytes = Path(path).stat().st_size
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(_HEADER_BYTES), "<i4")
        # The size is checked first, so that nothing is allocated by the header of another kind of file.
        if (
            len(header) < 2
            or header.min() < 1
            or num_bytes > _MAX_BYTES
            or num_bytes != _HEADER_BYTES + 4 * int(header[0]) * int(header[1])
        ):
            contents = f"its first two int32 are {header.tolist()}, its size is {num_bytes:,} bytes"
            raise ValueError(
                "neither an .npy file of numbers nor a .bin of int32 N, pieces and N rows of them: "
                f"{contents}"
            )
        return np.frombuffer(file.read(), "<i4").reshape(int(header[0]), int(header[1]))


def permutations_digest(permutations: np.ndarray) -> str:
    """Return 16 hexadecimal digits that identify a set of permutations in a run's record.

    Args:
        permutations: Integers [N, n].
    """
    return hashlib.sha256(np.ascontiguousarray(permutations, np.int64).tobytes()).hexdigest()[:16]
