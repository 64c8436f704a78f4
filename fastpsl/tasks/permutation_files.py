"""Permutation sets of the jigsaw task in files: ours, VISSL's, bbrattoli's and Noroozi's."""

import hashlib
from pathlib import Path

import numpy as np

from fastpsl.pipelines.files.bounded import read_npy

_NPY = b"\x93NUMPY"
_HEADER_BYTES = 8
_MAX_BYTES = 1 << 28  # of 9 pieces, all 362,880 permutations are 26 MB


def read_permutations(path: str | Path) -> np.ndarray:
    """A file of permutations to int64 [N, n], values 0 .. n - 1; its first bytes say of which kind it is.

    Reads what `fastpsl permutations` writes, VISSL's hamming_perms_N_patches_9_max.npy and bbrattoli's
    permutations_N.npy: integer arrays, counted from 0 or from 1; and Noroozi's permutations_701.bin and
    permutations_100_max.bin: little-endian int32 N, n, then N rows of n, counted from 1. In all of them position j
    shows tile row[j]. ValueError when the file is something else, a row is no permutation, or two are equal.
    """
    try:
        with open(path, "rb") as file:
            is_npy = file.read(len(_NPY)) == _NPY
        given = read_npy(Path(path), _MAX_BYTES) if is_npy else _read_bin(path)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{path}: cannot be read ({reason}); make one with `fastpsl permutations`") from None
    if given.ndim != 2 or given.dtype.kind not in "iu" or not given.size:
        raise ValueError(
            f"{path}: {given.dtype} {list(given.shape)}; integers [N, pieces] are wanted, make them with "
            "`fastpsl permutations`"
        )
    num_pieces, start = given.shape[1], int(given.min())
    rows = given.astype(np.int64) - (1 if start == 1 else 0)
    wrong = np.flatnonzero((np.sort(rows, axis=1) != np.arange(num_pieces)).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"{path}: row {wrong[0]} is no permutation of {num_pieces}: {given[wrong[0]].tolist()}; give whole rows"
        )
    num_different = len(np.unique(rows, axis=0))
    if num_different != len(rows):
        raise ValueError(
            f"{path}: {len(rows) - num_different} of {len(rows)} permutations are there twice; remove the copies"
        )
    return rows


def _read_bin(path: str | Path) -> np.ndarray:
    """int32 [N, n] as stored. As Noroozi's code reads it (MehdiNoroozi/JigsawPuzzleSolver, data_transformer.cpp)."""
    num_bytes = Path(path).stat().st_size
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(_HEADER_BYTES), "<i4")
        # The size is believed before the header: nothing is allocated for a file of another kind.
        if (
            len(header) < 2
            or header.min() < 1
            or num_bytes > _MAX_BYTES
            or num_bytes != _HEADER_BYTES + 4 * int(header[0]) * int(header[1])
        ):
            told = f"its first two int32 are {header.tolist()}, its size is {num_bytes:,} bytes"
            raise ValueError(
                f"neither an .npy file of numbers nor a .bin of int32 N, pieces and N rows of them: {told}"
            )
        return np.frombuffer(file.read(), "<i4").reshape(int(header[0]), int(header[1]))


def permutations_digest(permutations: np.ndarray) -> str:
    """Which set it is, in 16 hexadecimal digits: what a run's science holds of it."""
    return hashlib.sha256(np.ascontiguousarray(permutations, np.int64).tobytes()).hexdigest()[:16]
