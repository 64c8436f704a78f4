"""Counter-based random numbers: each is a pure function of (seed, epoch, sample index, view, slot).

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11;
Random123). Ten rounds turn a counter of four 32-bit words and a key of two into four random words. Here

    counter = (index low 32, index high 32, epoch, view << 24 | slot << 8 | block)
    key     = (seed low 32, seed high 32)

so a draw never depends on the worker, the place in the batch, the rank, the world size or the device. How an
op uses its words is its own matter: a change there changes the draws of that op and of no other.
"""

import ctypes
import functools
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from fastpsl.kernels.c_library import open_library

# In uint64, where a product of two words of 32 bits does not overflow. The numbers are Random123's.
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_Words: TypeAlias = "np.ndarray | np.uint64"
_ROWS = 1 << 14  # a word of each takes 128 KiB, and a round has some of them in a core's cache
MAX_WORDS = 4 * 256  # the block number has 8 bits of the counter's last word


class Slot(IntEnum):
    """The purpose of a draw. The values are frozen: a resumed run must see the draws that it began with."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    COLOUR = 3
    GREY = 4
    BLUR = 5
    SOBEL = 6
    ROTATION = 7
    TILES = 8
    PERMUTATION = 9
    TASK = 10
    PAGES = 11
    BALANCE = 12
    SPLIT = 13
    SHIFT = 14
    WARP = 15
    SOLARISE = 16
    KEYED_ORDER = 17


@dataclass(frozen=True, eq=False)
class Keys:
    """The keys of a batch's random numbers.

    Attributes:
        seed: The run's seed, 0 to 2**64 - 1.
        epoch: The epoch, from 0 to 2**32 - 1.
        indices: The samples' numbers in the epoch's order, int64 [B]. They are the indices in the data set,
            unless an index occurs several times; -1 for padding.
        view: The view's number, 0 to 255.
    """

    seed: int
    epoch: int
    indices: np.ndarray
    view: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} given; allowed are 0 to 2**64 - 1: choose another seed")
        if not 0 <= self.epoch < 2**32:
            raise ValueError(f"epoch {self.epoch} given; allowed are 0 to 2**32 - 1: count epochs from 0")
        if not 0 <= self.view < 256:
            raise ValueError(f"view {self.view} given; allowed are 0 to 255: use fewer views")
        assert self.indices.ndim == 1 and self.indices.dtype == np.int64, (
            self.indices.shape,
            self.indices.dtype,
        )


def philox(
    c0: _Words, c1: _Words, c2: _Words, c3: _Words, k0: np.uint64, k1: np.uint64
) -> tuple[_Words, _Words, _Words, _Words]:
    """Return the Philox4x32-10 outputs for counters and a key, all uint64 that hold 32-bit words."""
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0 = (product_1 >> _SHIFT) ^ c1 ^ k0
        c1 = product_1 & _MASK
        c2 = (product_0 >> _SHIFT) ^ c3 ^ k1
        c3 = product_0 & _MASK
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def _fill(
    indices: np.ndarray, epoch: np.uint64, place: np.uint64, k0: np.uint64, k1: np.uint64, out: np.ndarray
) -> None:
    for first in range(0, len(indices), _ROWS):
        index = indices[first : first + _ROWS].view(np.uint64)  # padding, -1, has words like any index
        for block in range(0, out.shape[1], 4):
            counter = index & _MASK, index >> _SHIFT, epoch, place | np.uint64(block // 4)
            for lane, random_words in enumerate(philox(*counter, k0, k1)[: out.shape[1] - block]):
                out[first : first + _ROWS, block + lane] = random_words


def _counter_words(keys: Keys, slot: int) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return epoch, view << 24 | slot << 8, seed low and seed high."""
    return (
        np.uint64(keys.epoch),
        np.uint64(keys.view << 24 | int(slot) << 8),
        np.uint64(keys.seed & 0xFFFFFFFF),
        np.uint64(keys.seed >> 32),
    )


def words(keys: Keys, slot: int, num: int) -> np.ndarray:
    """Return each sample's first random words in a slot.

    The result is uint32 [B, num]. `slot` is a `Slot` or another number below 2**16. Raises ValueError if
    `num` is not from 0 to 1,024.
    """
    if not 0 <= num <= MAX_WORDS:
        raise ValueError(
            f"{num} words asked of one slot; allowed are 0 to {MAX_WORDS}: ask for fewer numbers"
        )
    assert 0 <= slot < 2**16, slot
    out = np.empty((len(keys.indices), num), np.uint32)
    # Contiguous, because C goes from one index to the next without a stride.
    indices, counter_words, draws = np.ascontiguousarray(keys.indices), _counter_words(keys, slot), library()
    if draws:
        numbers = map(int, counter_words)
        draws.fastpsl_words(indices.ctypes.data, len(indices), num, *numbers, out.ctypes.data)
    else:  # the same numbers, more slowly
        _fill(indices, *counter_words, out)
    return out


def uniforms(keys: Keys, slot: int, num: int) -> np.ndarray:
    """Return uniform random numbers, the top 24 bits of each word times 2**-24.

    Args:
        keys: The keys of B samples.
        slot: As in `integers`.
        num: The number of numbers of each sample, 0 to 1,024.

    Returns:
        float32 [B, num], in [0, 1).
    """
    # 24 bits are what float32 holds exactly. From 32, it would round the highest words up to 1.
    return (words(keys, slot, num) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def scaled(random_words: np.ndarray, high: int) -> np.ndarray:
    """Return int64 in [0, high), (word * high) >> 32, from uint32 words of any shape."""
    if not 1 <= high <= 2**31:  # so that a word's product with it fits into int64
        raise ValueError(f"a random integer below {high} asked for; allowed are bounds of 1 to 2**31")
    return (random_words.astype(np.int64) * high) >> 32


def integers(keys: Keys, slot: int, num: int, high: int) -> np.ndarray:
    """Return uniform random integers.

    Args:
        keys: The keys of B samples.
        slot: The purpose of the draw: a `Slot`, or a number from 1,000 on for an op of another package.
        num: The number of integers of each sample, 0 to 1,024.
        high: The end of the range, 1 to 2**31.

    Returns:
        int64 [B, num], in [0, high).
    """
    return scaled(words(keys, slot, num), high)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, loaded once per process, or None where it was not built or does not load."""
    try:
        library = open_library("fastpsl.kernels._draws")
    except OSError:
        return None
    pointer, i64, u32, f64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_double
    library.fastpsl_words.argtypes = [pointer, i64, i64, *(u32,) * 4, pointer]
    library.fastpsl_words.restype = None
    library.fastpsl_random_resized.argtypes = [*(pointer,) * 3, i64, *(f64,) * 4, pointer]
    library.fastpsl_random_resized.restype = None
    return library
