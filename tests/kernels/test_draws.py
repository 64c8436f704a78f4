"""Draws are Philox4x32-10 to the bit in the documented layout, uniform and independent."""

import numpy as np
import pytest
import torch

from fastpsl.kernels import draws
from fastpsl.kernels.c_library import open_library
from fastpsl.kernels.draws import Keys, Slot, integers, uniforms, words

# Random123's kat_vectors, the lines "philox4x32 10": counter, key, result.
# https://github.com/DEShawResearch/random123/blob/main/tests/kat_vectors
KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
"""
SLOTS = (
    "ORDER CROP FLIP COLOUR GREY BLUR SOBEL ROTATION TILES PERMUTATION TASK PAGES BALANCE SPLIT SHIFT WARP "
    "SOLARISE KEYED_ORDER"
)


def philox_in_integers(counter, key):
    """Compute Philox4x32-10 in Python's integers, after the paper's figure."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.fixture(params=["C", "NumPy"])
def by(request, monkeypatch):
    """Run a test by the C library, where it was built, and by NumPy."""
    if request.param == "NumPy":
        monkeypatch.setattr(draws, "library", lambda: None)
    elif draws.library() is None:
        pytest.skip("the C library was not built")


@pytest.mark.parametrize("line", KNOWN_ANSWERS.strip().splitlines())
def test_known_answers(line):
    numbers = [int(word, 16) for word in line.split()]
    assert [int(word) for word in draws.philox(*map(np.uint64, numbers[:6]))] == numbers[6:]
    assert philox_in_integers(numbers[:4], numbers[4:6]) == numbers[6:]


def test_words_of_known_answer_through_the_front_door():
    assert words(Keys(0, 0, np.zeros(1, np.int64)), 0, 4)[0].tolist() == [
        0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 7, 2**64 - 1])
@pytest.mark.parametrize(
    "epoch, view, slot", [(0, 0, Slot.ORDER), (3, 1, Slot.TASK), (2**32 - 1, 255, Slot.CROP)]
)
@pytest.mark.usefixtures("by")
def test_counter_layout(seed, epoch, view, slot):
    indices = np.array([0, 1, -1, 2**32, 2**32 + 1, 2**40 + 3, 2**62], np.int64)
    result = words(Keys(seed, epoch, indices, view), slot, 11)
    for row, index in enumerate(indices.tolist()):
        expected = []
        for block in range(3):
            counter = (index % 2**32, (index % 2**64) >> 32, epoch, view << 24 | slot << 8 | block)
            expected += philox_in_integers(counter, (seed % 2**32, seed >> 32))
        assert result[row].tolist() == expected[:11]
    assert result.dtype == np.uint32


def test_slots_are_frozen():
    assert [(slot.name, slot.value) for slot in Slot] == [(name, i) for i, name in enumerate(SLOTS.split())]


def test_uniforms_are_the_top_24_bits():
    keys = Keys(1, 2, np.arange(5, dtype=np.int64))
    result = uniforms(keys, Slot.TASK, 9)
    assert result.dtype == np.float32 and result.shape == (5, 9)
    for word, uniform in zip(
        words(keys, Slot.TASK, 9).ravel().tolist(), result.ravel().tolist(), strict=True
    ):
        assert uniform == (word >> 8) / 2**24


def test_uniforms_range_mean_and_spread():
    result = uniforms(Keys(11, 3, np.arange(250_000, dtype=np.int64)), Slot.FLIP, 4).astype(np.float64)
    assert 0 <= result.min() < 1e-5 and 1 - 1e-5 < result.max() < 1
    assert abs(result.mean() - 0.5) < 5 * (1 / 12 / result.size) ** 0.5
    assert abs(result.var() - 1 / 12) < 1e-3
    counts = np.bincount((result.ravel() * 256).astype(int), minlength=256)
    chi_square = ((counts - result.size / 256) ** 2 / (result.size / 256)).sum()
    assert 150 < chi_square < 370  # 255 degrees of freedom, five sigma either side
    assert np.abs(np.corrcoef(result.T) - np.eye(4)).max() < 0.01


@pytest.mark.parametrize("high", [1, 2, 3, 12, 1000, 2**31])
def test_integers(high):
    keys = Keys(1, 2, np.arange(3000, dtype=np.int64))
    result = integers(keys, Slot.TILES, 3, high)
    expected = [(word * high) >> 32 for word in words(keys, Slot.TILES, 3).ravel().tolist()]
    assert result.dtype == np.int64 and result.ravel().tolist() == expected
    if high <= 12:
        assert np.bincount(result.ravel(), minlength=high).min() > 0.85 * result.size / high
        assert result.max() == high - 1 and result.min() == 0


@pytest.mark.usefixtures("by")
def test_a_draw_knows_nothing_of_its_batch():
    whole = words(Keys(1, 2, np.arange(100, dtype=np.int64)), Slot.CROP, 6)
    shuffled = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(words(Keys(1, 2, shuffled), Slot.CROP, 6), whole[shuffled])
    np.testing.assert_array_equal(words(Keys(1, 2, shuffled[7:8]), Slot.CROP, 6), whole[shuffled[7:8]])
    # because asking for more words does not change the first ones
    keys = Keys(1, 2, np.arange(100, dtype=np.int64))
    np.testing.assert_array_equal(words(keys, Slot.CROP, 41)[:, :6], whole)


def test_nothing_collides():
    rows = []
    for seed in (0, 1, 2**32):
        for epoch in (0, 1):
            for view in (0, 1, 2):
                for slot in Slot:
                    keys = Keys(seed, epoch, np.array([0, 1, 256, 2**24, 2**32]), view)
                    rows.append(words(keys, slot, 8).reshape(-1, 4))
    blocks = np.concatenate(rows)
    assert len(np.unique(blocks, axis=0)) == len(blocks)


@pytest.mark.usefixtures("by")
def test_batch_of_none():
    none = Keys(1, 2, np.zeros(0, np.int64))
    assert words(none, Slot.CROP, 5).shape == (0, 5)
    assert uniforms(none, Slot.CROP, 5).dtype == np.float32
    assert integers(none, Slot.CROP, 5, 3).shape == (0, 5)
    assert words(Keys(1, 2, np.arange(3)), Slot.CROP, 0).shape == (3, 0)


@pytest.mark.parametrize(
    "field, value",
    [("seed", -1), ("seed", 2**64), ("epoch", -1), ("epoch", 2**32), ("view", 256), ("view", -1)],
)
def test_keys_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} {value} given; allowed"):
        Keys(**{"seed": 0, "epoch": 0, "indices": np.arange(2), "view": 0} | {field: value})


def test_too_many_words_or_too_high():
    keys = Keys(0, 0, np.arange(2))
    assert words(keys, 0, 1024).shape == (2, 1024)
    for num in (-1, 1025):
        with pytest.raises(ValueError, match=f"{num} words"):
            words(keys, 0, num)
    for high in (0, 2**31 + 1):
        with pytest.raises(ValueError, match=f"below {high} asked"):
            integers(keys, 0, 1, high)


def test_a_library_is_opened_by_its_modules_name() -> None:
    """torch has one in every set-up."""
    assert open_library("torch._C")._name == torch._C.__file__


def test_what_was_not_built_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"fastpsl\.kernels\._none was not built"):
        open_library("fastpsl.kernels._none")
