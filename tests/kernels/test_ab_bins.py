"""The 313 bins against their definition in plain loops, and soft targets against a loop over distances."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

from fastpsl.kernels import lab as module
from fastpsl.kernels.lab import NUM_BINS, ab_bins, lab, soft_bins


def colours_of_the_cube():
    """Return ab, float64 [n, 2], of every 15th level of red, green and blue, over the whole cube."""
    levels = torch.arange(0, 256, 15) / 255
    cube = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, -1, 1)
    return lab(cube)[0, 1:, :, 0].T.double().numpy()


def test_they_are_313():
    """The points that Zhang et al. publish have this number, these ranges and these rows of one a."""
    bins = ab_bins()
    assert bins.shape == (313, 2) and bins.dtype == np.float32
    assert bins.min(0).tolist() == [-90, -110] and bins.max(0).tolist() == [100, 100]
    assert (bins % 10 == 0).all() and len({*map(tuple, bins)}) == 313
    assert bins.tolist() == sorted(bins.tolist())
    rows = {a: bins[bins[:, 0] == a, 1] for a in np.unique(bins[:, 0])}
    sizes = [len(row) for row in rows.values()]
    assert sizes == [5, 8, 10, 12, 14, 15, 16, 16, 17, 18, 18, 18, 19, 20, 19, 20, 20, 19, 19, 10]
    assert all((np.diff(row) == 10).all() for row in rows.values())
    assert rows[-90].tolist() == [50, 60, 70, 80, 90] and rows[100][[0, -1]].tolist() == [-90, 0]


def test_a_bin_is_a_corner_of_a_cell_that_the_hull_meets():
    """A linear program per grid point finds whether the square of its four cells meets the hull."""
    hull = ConvexHull(colours_of_the_cube())
    sides, offsets = hull.equations[:, :2], -hull.equations[:, 2]
    bins, points_that_meet = {*map(tuple, ab_bins().tolist())}, set()
    for a in range(-110, 121, 10):
        for b in range(-130, 121, 10):
            bounds = [(a - 10, a + 10), (b - 10, b + 10)]
            if linprog([0, 0], sides, offsets, bounds=bounds).status == 0:
                points_that_meet.add((a, b))
    assert points_that_meet == bins


def test_all_colours_lie_in_the_hull_of_the_outermost():
    outer = ConvexHull(module._outermost_colours())
    beyond = colours_of_the_cube() @ outer.equations[:, :2].T + outer.equations[:, 2]
    assert beyond.max() < 1e-4


def test_the_four_points_about_a_colour_are_bins():
    bins = {*map(tuple, ab_bins().tolist())}
    lowest = np.unique(np.floor(colours_of_the_cube() / 10) * 10, axis=0)
    assert all((a + i, b + j) in bins for a, b in lowest for i in (0, 10) for j in (0, 10))


def test_nobody_can_write_to_them():
    with pytest.raises(ValueError, match="read-only"):
        ab_bins()[0, 0] = 1


def target_by_loops(ab, bins):
    """Return dense soft targets, float64 [N, 313]."""
    out = np.zeros((len(ab), len(bins)))
    for row, (a, b) in enumerate(ab.tolist()):
        squares = [(a - x) ** 2 + (b - y) ** 2 for x, y in bins.tolist()]
        nearest = sorted(range(len(bins)), key=squares.__getitem__)[:10]
        values = [math.exp(-squares[i] / (2 * 5.0**2)) for i in nearest]
        for i, value in zip(nearest, values, strict=True):
            out[row, i] = value / sum(values)
    return torch.from_numpy(out)


@pytest.mark.parametrize("num", [0, 1, 37])
def test_soft_targets_equal_the_loop(num):
    ab = 40 * torch.randn(num, 2, generator=torch.Generator().manual_seed(0))
    bins = torch.from_numpy(ab_bins().copy())
    indices, shares = soft_bins(ab, bins)
    assert indices.shape == shares.shape == (num, 10)
    assert indices.dtype == torch.int64 and shares.dtype == torch.float32
    dense = torch.zeros(num, NUM_BINS).scatter_(1, indices, shares)
    assert torch.allclose(dense.double(), target_by_loops(ab, bins), atol=1e-5)
    assert (shares.diff(dim=1) <= 0).all() and torch.allclose(shares.sum(1), torch.ones(num))


def test_a_colour_on_a_bin_and_colours_far_from_all():
    """The weights are e^-2 for each of the four bins at 10, e^-4 at 14 and e^-8 for the tenth, at 20."""
    bins = torch.from_numpy(ab_bins().copy())
    indices, shares = soft_bins(torch.tensor([[0.0, 0.0], [400.0, -300.0]]), bins)
    total = 1 + 4 * math.exp(-2) + 4 * math.exp(-4) + math.exp(-8)
    expected = [1 / total, *[math.exp(-2) / total] * 4, *[math.exp(-4) / total] * 4, math.exp(-8) / total]
    assert bins[indices[0, 0]].tolist() == [0, 0] and shares[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert shares[1].isfinite().all() and shares[1].sum() == pytest.approx(1)


def test_parts_are_as_the_whole(monkeypatch):
    ab = 40 * torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    bins = torch.from_numpy(ab_bins().copy())
    whole = soft_bins(ab, bins)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert all(torch.equal(one, other) for one, other in zip(soft_bins(ab, bins), whole, strict=True))


def test_autocast_does_not_round():
    ab = 40 * torch.randn(9, 2, generator=torch.Generator().manual_seed(2))
    bins = torch.from_numpy(ab_bins().copy())
    whole = soft_bins(ab, bins)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(one, other) for one, other in zip(soft_bins(ab, bins), whole, strict=True))
