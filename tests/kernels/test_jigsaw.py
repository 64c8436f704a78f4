"""Tiles against plain slices, for the paper's sizes and others."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.jigsaw import JigsawTiles


def reference(images, offsets, grid, cell_px, tile_px):
    tiles = []
    for image, places in zip(images, offsets.tolist(), strict=True):
        for row in range(grid):
            for column in range(grid):
                y, x = places[row * grid + column]
                top, left = row * cell_px + y, column * cell_px + x
                tiles.append(image[:, top : top + tile_px, left : left + tile_px])
    return torch.stack(tiles) if tiles else torch.empty(0, 3, tile_px, tile_px)


def make_draw(op, num, as_tensors):
    return as_tensors(op.draw(Keys(5, 1, np.arange(num, dtype=np.int64))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "op, shape",
    [
        (JigsawTiles(num_permutations=500), (4, 225, 225)),  # PSL
        (JigsawTiles(3, 85, 64, 500), (2, 255, 255)),  # Noroozi and Favaro
        (JigsawTiles(3, 10, 8), (1, 32, 32)),
        (JigsawTiles(2, 7, 7), (3, 15, 14)),
        (JigsawTiles(1, 5, 2), (3, 5, 9)),
        (JigsawTiles(5, 3, 1), (2, 15, 15)),
        (JigsawTiles(), (0, 225, 225)),
    ],
)
def test_equals_slices(op, shape, dtype, make_images, as_tensors, assert_close):
    images = make_images(*shape, dtype)
    draw = make_draw(op, shape[0], as_tensors)
    tiles = op(images, draw)
    assert tiles.dtype == dtype and tiles.is_contiguous(memory_format=torch.channels_last)
    assert_close(tiles, reference(images, draw["offsets"], op.grid, op.cell_px, op.tile_px))


@pytest.mark.parametrize("moved", [{"cell_px": 76}, {"cell_px": 77}, {"tile_px": 65}])
def test_two_percent_are_seen(moved, make_images, as_tensors, assert_close):
    images = make_images(2, 232, 232, torch.uint8)
    draw = make_draw(JigsawTiles(), 2, as_tensors)
    expected = reference(images, draw["offsets"], 3, 75, 64)
    assert_close(JigsawTiles()(images, draw), expected)
    with pytest.raises(AssertionError):
        assert_close(JigsawTiles(**moved)(images, draw), expected)


def test_draw_of_the_paper():
    draw = JigsawTiles(num_permutations=500).draw(Keys(1, 2, np.arange(20_000, dtype=np.int64)))
    offsets, permutation = draw["offsets"], draw["permutation"]
    assert offsets.shape == (20_000, 9, 2) and permutation.shape == (20_000, 1)
    assert offsets.dtype == permutation.dtype == np.int64
    assert np.unique(offsets).tolist() == list(range(12))  # 0 to 75 - 64, both included
    counts = np.stack([np.bincount(column, minlength=12) for column in offsets.reshape(-1, 18).T])
    assert np.abs(counts / 20_000 - 1 / 12).max() < 0.012
    assert np.abs(np.corrcoef(offsets.reshape(-1, 18).T) - np.eye(18)).max() < 0.035
    assert permutation.min() == 0 and permutation.max() == 499
    assert np.bincount(permutation[:, 0], minlength=500).min() > 10
    moved = JigsawTiles(tile_px=65).draw(Keys(1, 2, np.arange(20_000, dtype=np.int64)))["offsets"]
    assert np.unique(moved).tolist() != list(range(12))


def test_several_permutations_begin_with_the_one():
    keys = Keys(1, 2, np.arange(50, dtype=np.int64))
    one = JigsawTiles(num_permutations=1000).draw(keys)
    eight = JigsawTiles(num_permutations=1000, permutations_per_image=8).draw(keys)
    assert eight["permutation"].shape == (50, 8)
    np.testing.assert_array_equal(eight["permutation"][:, :1], one["permutation"])
    np.testing.assert_array_equal(eight["offsets"], one["offsets"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "grid of 0 given; allowed are 1 to 22"),
        ((23,), "grid of 23 given; allowed are 1 to 22"),
        ((3, 64, 75), "tiles of 75 px given for cells of 64"),
        ((3, 75, 64, 0), "a set of 0"),
        ((3, 75, 0), "tiles of 0 px given"),
        ((3, 75, 64, 5, 0), "0 permutations per image"),
        ((3, 75, 64, 5, 1025), "1025 permutations per image"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        JigsawTiles(*arguments)


def test_too_small_a_window(make_images, as_tensors):
    with pytest.raises(ValueError, match="224 x 300 px .* allowed are 225 px and more"):
        JigsawTiles()(make_images(1, 224, 300, torch.uint8), make_draw(JigsawTiles(), 1, as_tensors))
