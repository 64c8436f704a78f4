"""Permutation sets of the jigsaw task in files: ours, VISSL's and bbrattoli's."""

from pathlib import Path

import numpy as np


def read_permutations(path: str | Path) -> np.ndarray:
    """A .npy file of permutations to int64 [N, n], values 0 .. n - 1.

    Reads what `fastpsl permutations` writes, VISSL's hamming_perms_N_patches_9_max.npy and bbrattoli's
    permutations_N.npy: integer arrays, counted from 0 or from 1. ValueError when the file is something else,
    a row is no permutation, or two are equal.
    """
    try:
        given = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else "not an .npy file of numbers"
        )
        raise ValueError(f"{path}: cannot be read ({reason}); make one with `fastpsl permutations`") from None
    if not isinstance(given, np.ndarray) or given.ndim != 2 or given.dtype.kind not in "iu" or not given.size:
        shape = f"{given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else "several arrays"
        raise ValueError(
            f"{path}: {shape}; integers [N, pieces] are wanted, make them with `fastpsl permutations`"
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
