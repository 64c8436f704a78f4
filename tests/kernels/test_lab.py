"""L*a*b*, lightness and the bins of the ab plane."""

import math

import kornia
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial import ConvexHull
from skimage.color import rgb2lab

from fastpsl.kernels import lab as lab_module
from fastpsl.kernels import lab as module
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.lab import NUM_BINS, Lightness, ab_bins, lab, lightness, soft_bins
from tests.fake_cuda import fake_cuda

# For L in [0, 100] and ab in [-108, 98], whose differences of cube roots are multiplied by 500 and 200.
TOLERANCE = 5e-4


def f(t):
    # CIE 15's two branches: 841/108 is (29/6)^2 / 3.
    return t ** (1 / 3) if t > 216 / 24389 else 841 / 108 * t + 16 / 116


def reference(images):
    x = images.double().numpy()
    out = np.empty_like(x)
    for b, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        r, g, b_ = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in x[b, :, i, j])
        fx = f((0.4124 * r + 0.3576 * g + 0.1805 * b_) / 0.9505)
        fy = f(0.2126 * r + 0.7152 * g + 0.0722 * b_)
        fz = f((0.0193 * r + 0.1192 * g + 0.9505 * b_) / 1.0890)
        out[b, :, i, j] = 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)
    return torch.from_numpy(out)


def cube(step):
    """Return colours of the whole cube, [1, 3, n, 1]."""
    levels = torch.arange(0, 256, step) / 255
    return torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, -1, 1)


@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 1, 5), (1, 1, 1), (0, 4, 4)])
def test_equals_the_loop(shape, make_images):
    images = make_images(*shape, torch.float32)
    out = lab(images)
    assert out.shape == images.shape and out.dtype == torch.float32
    assert torch.allclose(out.double(), reference(images), rtol=0, atol=TOLERANCE)


def test_dark_pixels_take_the_straight_branches():
    colours = cube(3)
    dark = colours[:, :, (colours[0, :, :, 0] < 0.06).all(0)]
    assert dark.shape[2] == 6**3
    assert torch.allclose(lab(dark).double(), reference(dark), rtol=0, atol=TOLERANCE)


def test_equals_scikit_image_and_kornia():
    colours = cube(17)
    result = lab(colours)
    expected = torch.from_numpy(rgb2lab(colours[0, :, :, 0].T.double().numpy())).T[None, :, :, None]
    for other in (expected, kornia.color.rgb_to_lab(colours)):
        assert ((result - other).abs().amax((0, 2, 3)) < torch.tensor([0.01, 0.02, 0.03])).all()


@pytest.mark.parametrize("row", range(3))
def test_two_percent_of_a_weight_are_seen(row, monkeypatch, make_images):
    images = make_images(2, 9, 13, torch.float32)
    matrix = [list(weights) for weights in module.TO_XYZ]
    matrix[row][1] *= 1.02
    monkeypatch.setattr(module, "TO_XYZ", matrix)
    assert not torch.allclose(lab(images).double(), reference(images), rtol=0, atol=TOLERANCE)


def test_known_colours():
    """Greys have no colour, and the primaries have the values of every table of sRGB."""
    greys = (torch.arange(256) / 255).view(1, 1, 256, 1).expand(1, 3, 256, 1)
    out = lab(greys)
    assert out[:, 1:].abs().max() < 1e-4
    assert out[0, 0, 0, 0] == 0 and out[0, 0, -1, 0] == pytest.approx(100, abs=1e-4)
    colours = torch.eye(3)[None, :, :, None]  # red, green, blue
    expected = torch.tensor([[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]])
    assert torch.allclose(lab(colours)[0, :, :, 0].T, expected, rtol=0, atol=0.03)


def test_the_range_that_it_says():
    colours = lab(cube(5))[0, :, :, 0]
    for values, low, high in zip(colours, (0, -86.2, -107.9), (100, 98.3, 94.5), strict=True):
        assert low <= values.min() < low + 0.5 and high - 0.5 < values.max() <= high


def test_its_l_is_lightness(make_images):
    images = make_images(2, 9, 13, torch.float32)
    assert torch.allclose(lab(images)[:, :1], 100 * lightness(images), rtol=0, atol=1e-4)


def test_input_unchanged_autocast_does_not_round_and_the_host_never_waits(make_images):
    images = make_images(2, 5, 7, torch.float32)
    before = images.clone()
    plain = lab(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lab(images), plain)
    assert torch.equal(images, before)
    with fake_cuda() as cuda:
        on_device = images.to(cuda.device)
        with cuda.watched() as record:
            assert lab(on_device).shape == images.shape
    assert not record.waits, record.waits


def lightness_reference(images):
    x = images.double().numpy() / (255 if images.dtype == torch.uint8 else 1)
    out = np.empty((x.shape[0], 1, *x.shape[2:]))
    for b, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        y = 0.0
        for value, weight in zip(x[b, :, i, j], (0.2126, 0.7152, 0.0722), strict=True):
            y += weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
        # CIE 15's two branches meet at L* = 8: 903.3 is (29/3)^3.
        out[b, 0, i, j] = (116 * y ** (1 / 3) - 16 if y > 216 / 24389 else 24389 / 27 * y) / 100
    return torch.from_numpy(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 1, 5), (1, 1, 1)])
def test_lightness_equals_the_loop(dtype, shape, make_images, assert_close):
    images = make_images(*shape, dtype)
    out = Lightness()(images, {})
    assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert_close(out, lightness_reference(images))


def test_lightness_dark_pixels_take_the_straight_branches(assert_close):
    ramp = torch.arange(40, dtype=torch.uint8).repeat_interleave(3).view(1, 40, 1, 3).permute(0, 3, 1, 2)
    out = Lightness()(ramp, {})
    assert_close(out, lightness_reference(ramp))
    assert out[0, 0, 0, 0] == 0 and out.diff(dim=2).min() > 0


def test_equals_kornia(make_images):
    images = make_images(4, 17, 31, torch.float32)
    expected = kornia.color.rgb_to_lab(images)[:, :1] / 100
    assert (Lightness()(images, {}) - expected).abs().max() < 2e-4


@pytest.mark.parametrize("channel", range(3))
def test_lightness_two_percent_of_a_weight_are_seen(channel, monkeypatch, make_images, assert_close):
    images = make_images(2, 9, 13, torch.float32)
    weights = list(lab_module.WEIGHTS)
    weights[channel] *= 1.02
    monkeypatch.setattr(lab_module, "WEIGHTS", tuple(weights))
    with pytest.raises(AssertionError):
        assert_close(Lightness()(images, {}), lightness_reference(images))


def test_white_is_one_and_black_nought():
    for value in (0.0, 1.0):
        for dtype in (torch.float32, torch.float16):
            assert Lightness()(torch.full((1, 3, 2, 2), value, dtype=dtype), {}).unique().tolist() == [value]


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_layout_and_input_unchanged(batch, layout, make_images):
    images = make_images(batch, 7, 6, torch.float32).contiguous(memory_format=layout)
    before = images.clone()
    out = Lightness()(images, {})
    assert out.shape == (batch, 1, 7, 6) and out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_nothing_is_drawn_and_the_host_never_waits(make_images):
    assert Lightness().draw(Keys(1, 2, np.arange(4, dtype=np.int64))) == {}
    with fake_cuda() as cuda:
        on_device = make_images(2, 5, 5, torch.float16).to(cuda.device)
        with cuda.watched() as record:
            assert Lightness()(on_device, {}).shape == (2, 1, 5, 5)
    assert not record.waits, record.waits


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
