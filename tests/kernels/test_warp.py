"""Warps by a homography: values by SciPy and Pillow, draws by their corners and steps."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from fastpsl.kernels.draws import Keys, Slot, integers, uniforms
from fastpsl.kernels.geometry import Kind, WarpPair, homographies, warp

KINDS: tuple[Kind, ...] = ("projective", "affine")
# Nearer to the edge than this, float32 may put a position on the other side.
EDGE_PX = 1e-3


def warp_keys(num, seed=9):
    return Keys(seed, 4, np.arange(num, dtype=np.int64))


def some_matrices(num, side):
    """Return matrices of both kinds, and random ones whose horizon may cross the image."""
    matrices = [WarpPair(side, kind).draw(warp_keys(num))["matrix"] for kind in KINDS]
    scale = [[1, 1, side / 2], [1, 1, side / 2], [0.05, 0.05, 1]]
    noise = np.random.default_rng(0).normal(size=(num, 3, 3)) * scale
    return torch.from_numpy(np.concatenate([*matrices, noise.astype(np.float32)]))


def positions(matrix, height, width):
    """Return x and y in the source, float64 [H, W], in px from its corner, pixel by pixel.

    They are not finite on the horizon.
    """
    x, y = np.full((height, width), np.nan), np.full((height, width), np.nan)
    for row in range(height):
        for column in range(width):
            u, v, w = matrix.double().numpy() @ [column + 0.5, row + 0.5, 1]
            if w != 0:
                x[row, column], y[row, column] = u / w, v / w
    return x, y


@pytest.mark.parametrize("height, width", [(1, 1), (2, 3), (9, 5), (32, 32), (17, 33)])
def test_equals_scipy(height, width, make_images):
    """Bilinear with repeated edges, and the fill outside.

    Positions are float32, so values are off by the effect of 3e-5 px.
    """
    matrices = some_matrices(8, max(height, width))
    images = make_images(len(matrices), height, width, torch.float32)
    out = warp(images, matrices, 0.25)
    num_inside = num_outside = 0
    for i, matrix in enumerate(matrices):
        x, y = positions(matrix, height, width)
        from_edge = np.minimum(np.minimum(abs(x), abs(x - width)), np.minimum(abs(y), abs(y - height)))
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        at = np.nan_to_num([y - 0.5, x - 0.5], posinf=0, neginf=0)
        clear = from_edge > EDGE_PX
        for channel in range(3):
            exact = map_coordinates(images[i, channel].double().numpy(), at, order=1, mode="nearest")
            error = np.abs(out[i, channel].numpy() - np.where(inside, exact, 0.25))
            assert error[clear].max(initial=0) < 1e-4
        num_inside += (inside & clear).sum()
        num_outside += (~inside & clear).sum()
    num = len(matrices) * height * width
    assert num_inside + num_outside > 0.95 * num and min(num_inside, num_outside) > 0.05 * num


@pytest.mark.parametrize("height, width", [(1, 1), (9, 5), (32, 32)])
def test_equals_pillow(height, width, make_images):
    """They agree in float. For uint8, Pillow truncates and ours is rounded."""
    images = make_images(24, height, width, torch.uint8)
    matrices = some_matrices(8, max(height, width))
    as_float, as_uint8 = warp(images.float(), matrices, 77.0), warp(images, matrices, 77)
    assert torch.equal(as_uint8, as_float.round().to(torch.uint8)) and as_uint8.dtype == torch.uint8
    for i, matrix in enumerate(matrices):
        x, y = positions(matrix, height, width)
        clear = np.minimum(np.minimum(abs(x), abs(x - width)), np.minimum(abs(y), abs(y - height))) > EDGE_PX
        numbers = (matrix.double() / matrix[2, 2].double()).flatten().tolist()
        transforms = [(Image.Transform.PERSPECTIVE, numbers[:8])]
        if numbers[6] == numbers[7] == 0:
            transforms.append((Image.Transform.AFFINE, numbers[:6]))
        for transform, data in transforms:
            arguments = ((width, height), transform, data, Image.Resampling.BILINEAR)
            for channel in range(3):
                source = images[i, channel].numpy()
                exact = Image.fromarray(source.astype(np.float32)).transform(*arguments, fillcolor=77)
                error = np.abs(as_float[i, channel].numpy() - np.asarray(exact))
                assert error[clear].max(initial=0) < 0.02
                truncated = np.asarray(Image.fromarray(source).transform(*arguments, fillcolor=77))
                difference = as_float[i, channel].numpy() - truncated
                assert -0.02 < difference[clear].min(initial=0) and difference[clear].max(initial=0) < 1.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_float32_rounded_once(dtype, make_images):
    images, matrices = make_images(24, 9, 9, dtype), some_matrices(8, 9)
    out = warp(images, matrices, 0.5)
    assert out.dtype == dtype and torch.equal(out, warp(images.float(), matrices, 0.5).to(dtype))


@pytest.mark.parametrize("side", [1, 4, 7, 32])
def test_quarter_turns_and_whole_pixels_are_exact(side, make_images):
    """Corners in another order turn the image clockwise, as in `WarpPair`.

    Moved by a pixel, one line is the fill.
    """
    images = make_images(4, side, side, torch.uint8)
    corners = side * np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
    points = np.stack([np.roll(corners, -turns, 0) for turns in range(4)])
    numbers = np.concatenate([homographies(points, corners), np.ones((4, 1))], 1)
    out = warp(images, torch.from_numpy(numbers.reshape(4, 3, 3).astype(np.float32)), 0)
    assert torch.equal(out, torch.stack([torch.rot90(images[k], -k, (1, 2)) for k in range(4)]))
    right = torch.tensor([[1.0, 0, -1], [0, 1, 0], [0, 0, 1]]).expand(4, 3, 3)
    moved = warp(images, right, 9)
    assert (moved[..., 0] == 9).all() and torch.equal(moved[..., 1:], images[..., :-1])


def test_the_first_edge_belongs_to_the_image_and_the_last_does_not(make_images):
    """Positions exactly at 0 and at W or H, by a move of half a pixel, are as in Pillow."""
    image = make_images(1, 4, 6, torch.float32)
    half = torch.tensor([[[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]], [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]]])
    before, after = warp(image.expand(2, -1, -1, -1), half, 9.0)
    torch.testing.assert_close(before[:, 0, 0], image[0, :, 0, 0])
    assert (before < 9).all() and (after[:, :-1, :-1] < 9).all()
    assert (after[:, -1] == 9).all() and (after[:, :, -1] == 9).all()
    for out, matrix in zip((before, after), half, strict=True):
        plane = Image.fromarray(image[0, 1].numpy())
        data = matrix.flatten().tolist()[:6]
        affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        expected = plane.transform((6, 4), affine, data, bilinear, fillcolor=9)
        torch.testing.assert_close(out[1], torch.from_numpy(np.array(expected)))


def test_without_a_position_there_is_fill(make_images):
    """0 / 0 and 1 / 0 occur on the horizon of a projection."""
    matrices = torch.zeros(3, 3, 3)
    matrices[1, 0, 2], matrices[2, 1, 2] = 1, -1
    assert (warp(make_images(3, 9, 5, torch.float32), matrices, 0.25) == 0.25).all()


def test_factors_of_a_matrix_do_not_matter(make_images):
    images, matrices = make_images(24, 32, 32, torch.float32), some_matrices(8, 32)
    torch.testing.assert_close(warp(images, -4 * matrices, 0.5), warp(images, matrices, 0.5))


def shown_corners(side, number, num):
    """Return where sample `number` of `keys(num)` has the four corners of its image, in plain steps."""
    sample_keys = warp_keys(num)
    moves = integers(sample_keys, Slot.WARP, 8, 2 * (side // 8) + 1)[number].tolist()
    scale = 0.8 + 0.4 * float(uniforms(sample_keys, Slot.WARP, 9)[number, 8])
    turns = int(integers(sample_keys, Slot.WARP, 10, 4)[number, 9])
    middle = 0.5 * side + 0.5
    scaled = [
        ((x - middle) * scale + middle, (y - middle) * scale + middle)
        for x, y in ((0, 0), (side, 0), (side, side), (0, side))
    ]
    turned = [scaled[(i + turns) % 4] for i in range(4)]
    return [
        (x + moves[2 * i] - side // 8, y + moves[2 * i + 1] - side // 8) for i, (x, y) in enumerate(turned)
    ]


@pytest.mark.parametrize("side", [7, 32, 33, 224])
def test_a_projective_draw_is_the_homography_of_its_corners(side):
    """Eight equations of one sample are solved on their own."""
    num = 64
    draw = WarpPair(side).draw(warp_keys(num))
    assert draw["matrix"].dtype == draw["target"].dtype == np.float32
    for number in range(num):
        points = shown_corners(side, number, num)
        rows, right = [], []
        for (x, y), (u, v) in zip(points, ((0, 0), (side, 0), (side, side), (0, side)), strict=True):
            rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
            right += [u, v]
        numbers = np.linalg.solve(np.array(rows), np.array(right))
        matrix = np.append(numbers, 1).reshape(3, 3)
        np.testing.assert_allclose(draw["matrix"][number], matrix, rtol=1e-6, atol=1e-7 * side)
        ratio = side / 32
        mean = [0, 0, 16 * ratio, 0, 0, 16 * ratio, 0, 0]
        deviation = [1, 1, 20 * ratio, 1, 1, 20 * ratio, 0.015 / ratio, 0.015 / ratio]
        target = [(s - m) / d for s, m, d in zip(numbers, mean, deviation, strict=True)]
        np.testing.assert_allclose(draw["target"][number], target, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [7, 32, 33, 224])
def test_an_affine_draw_is_its_steps_one_after_the_other(side):
    num = 64
    draw = WarpPair(side, "affine").draw(warp_keys(num))
    random = uniforms(warp_keys(num), Slot.WARP, 5).astype(np.float64)
    for number, (turn, right, down, size, slant) in enumerate(random.tolist()):
        degrees, shear = -180 + 360 * turn, -30 + 60 * slant
        tx, ty = (round(-0.2 * side + 0.4 * side * value) for value in (right, down))
        scale = 0.7 + 0.6 * size
        a, s = math.radians(degrees), math.radians(shear)
        middle = side / 2 + 0.5
        to_middle = np.array([[1, 0, middle], [0, 1, middle], [0, 0, 1]])
        move = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
        first, second = [math.cos(a), -math.sin(a + s), 0], [math.sin(a), math.cos(a + s), 0]
        rotation = np.array([first, second, [0, 0, 1]])
        scaling = np.diag([scale, scale, 1])
        forward = move @ to_middle @ rotation @ scaling @ np.linalg.inv(to_middle)
        inverse = np.linalg.inv(forward)
        np.testing.assert_allclose(draw["matrix"][number], inverse, rtol=1e-6, atol=1e-7 * side)
        shift = [tx / (0.2 * side), ty / (0.2 * side)]
        target = [math.cos(a), math.sin(a), *shift, (scale - 1) / 0.3, shear / 30]
        np.testing.assert_allclose(draw["target"][number], target, rtol=1e-5, atol=1e-6)


def test_draws_spread_as_said():
    """Affine targets fill [-1, 1] evenly.

    Projective ones have about AET's mean and deviation at any side, because they are relative to them.
    """
    target = WarpPair(32, "affine").draw(warp_keys(20_000))["target"]
    assert -1 <= target.min() and target.max() < 1.0001 and np.abs(target.mean(0)).max() < 0.02
    np.testing.assert_allclose((target**2).mean(0), [1 / 2, 1 / 2, *[1 / 3] * 4], rtol=0.05)
    moves = target[:, 2:4] * 6.4
    np.testing.assert_allclose(moves, moves.round(), atol=1e-5)
    assert set(moves.round().astype(int).flatten()) == set(range(-6, 7))
    for side in (32, 64, 224):
        target = WarpPair(side).draw(warp_keys(20_000))["target"]
        assert np.abs(target.mean(0)).max() < 0.06
        np.testing.assert_allclose(target.std(0), [0.76, 0.76, 0.85, 0.76, 0.76, 0.85, 0.4, 0.4], rtol=0.12)


def test_no_draw_is_degenerate():
    """In the worst case the scale is smallest and each corner is as far out as possible.

    No horizon reaches the image.
    """
    for side in (8, 16, 17, 32, 64, 224):
        most, middle = side // 8, side / 2 + 0.5
        corners = side * np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
        moves = np.array(list(itertools.product((-most, 0, most), repeat=8))).reshape(-1, 4, 2)
        numbers = homographies(middle + 0.8 * (corners - middle) + moves, corners)
        at_corners = numbers[:, 6:] @ corners.T + 1
        in_the_middle = numbers[:, 6:] @ [side / 2, side / 2] + 1
        assert (at_corners / in_the_middle[:, None]).min() > 0.004
        assert np.isfinite(numbers).all()


FROZEN = {
    "projective": [
        [-0.98667, -0.10070, 0.86611, -0.04933, -0.89770, 0.65107, -0.36306, 0.17275],
        [-0.03588, -0.96457, 0.84070, 0.95863, -0.08746, -0.75035, -0.02479, -0.36669],
        [1.28937, -0.03746, -0.87549, 0.18637, 1.09668, -0.93412, 0.44402, 0.31025],
    ],
    "affine": [
        [-0.62866, -0.77768, -0.62500, -0.93750, -0.20844, 0.85824],
        [-0.13007, 0.99151, 0.31250, -0.31250, 0.15916, -0.06877],
        [-0.19137, 0.98152, 0.93750, -0.78125, -0.29863, 0.90559],
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_frozen(kind):
    """Seed 9, epoch 4, samples 0 to 2: a resumed run must see the draws that it began with."""
    target = WarpPair(32, kind).draw(warp_keys(3))["target"]
    np.testing.assert_allclose(target, np.array(FROZEN[kind]), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_the_pair_is_the_image_and_its_warp(kind, dtype, batch, make_images, as_tensors):
    images, op = make_images(batch, 33, 33, dtype), WarpPair(33, kind)
    draw = as_tensors(op.draw(warp_keys(batch)))
    out = op(images, draw)
    assert out.shape == (2 * batch, 3, 33, 33) and out.dtype == dtype
    assert torch.equal(out[::2], images)
    grey = 128 if dtype == torch.uint8 else 128 / 255
    assert torch.equal(out[1::2], warp(images, draw["matrix"], grey))
    white = warp(torch.ones(batch, 3, 33, 33), draw["matrix"], 0.0)[:, :1].expand(-1, 3, -1, -1) == 0
    assert (out[1::2][white] == torch.tensor(grey, dtype=dtype)).all()


def test_warp_bad_input_is_one_line():
    for make, message in (
        (lambda: WarpPair(0), "0 px given to WarpPair; allowed are 1 px and more"),
        (lambda: WarpPair(32, "similar"), "'similar' given; allowed are projective and affine"),  # type: ignore[arg-type]
        (
            lambda: WarpPair(32)(torch.zeros(1, 3, 32, 30), {}),
            "32 x 30 px given to WarpPair.32.; allowed are squares of 32 px",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert "\n" not in str(error.value)
