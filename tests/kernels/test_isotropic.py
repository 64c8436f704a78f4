"""Both windows against a plain sum over the image, and the batched form against the compiled one."""

import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels import device_crops
from fastpsl.kernels.device_crops import crop_densely, crop_isotropic
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, largest_side_px, margin_px
from tests.fake_cuda import fake_cuda
from tests.kernels.tf32 import RoundedProducts
from tests.kernels.windows import noise, plain, window

# The sides of the window and of the output: enlarging, nearly 1, shrinking where luma's kernel widens, and
# where both do.
SIZES = [(16, 23), (41, 40), (37, 12), (97, 12)]


@pytest.mark.parametrize(("side", "size"), SIZES)
@pytest.mark.parametrize(("resampling", "degrees"), [(ISOTROPIC, 0), (DIAGONAL, 45)])
def test_equals_the_plain_sum(side: int, size: int, resampling: int, degrees: int) -> None:
    margin = int(margin_px(side, size))
    image = noise(side + 2 * margin + 3, side + 2 * margin + 8)
    for top, left in [(margin, margin), (margin + 3, margin + 7)]:
        exact = plain(image, top, left, side, degrees, size)
        out = window(image, top, left, side, resampling, size)
        # Half a level of rounding, and the part beyond 4.25 sigma.
        assert np.abs(out - exact).max() < 0.52
        boxes = torch.tensor([[top, left, side, side, resampling]])
        batch = crop_isotropic(torch.from_numpy(image)[None], boxes, size)[0].numpy()
        assert np.abs(batch - exact).max() < 0.52


@pytest.mark.parametrize("sigma", ["LUMA_SIGMA_PX", "COLOUR_SIGMA_PX", "REACH_SIGMAS"])
def test_five_percent_are_seen(sigma: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above notices 5 % of the sigmas, and a cut that is too near."""
    image = noise(111, 111)
    exact = plain(image, 35, 35, 41, 45, 40)
    value = 2.5 if sigma == "REACH_SIGMAS" else 1.05 * getattr(device_crops, sigma)
    monkeypatch.setattr(device_crops, sigma, value)
    out = crop_isotropic(torch.from_numpy(image)[None], torch.tensor([[35, 35, 41, 41, DIAGONAL]]), 40)
    assert np.abs(out[0].numpy() - exact).max() > 0.52


def test_a_batch_of_both_bases_padded_and_in_parts() -> None:
    """Images of several sizes, more than one part holds, equal the compiled form one by one."""
    random = np.random.default_rng(1)
    num, size = device_crops._CHUNK + 5, 11
    images = random.integers(0, 256, (num, 90, 95, 3), np.uint8)
    boxes, expected = [], []
    for i in range(num):
        height, width = random.integers(70, 91), random.integers(70, 96)
        side = int(largest_side_px(np.array(min(height, width)), size)) - i % 9
        margin = int(margin_px(side, size))
        top, left = (random.integers(margin, length - side - margin + 1) for length in (height, width))
        boxes.append([int(top), int(left), side, side, (ISOTROPIC, DIAGONAL)[i % 2]])
        part = images[i, :height, :width].copy()
        expected.append(window(part, int(top), int(left), side, boxes[-1][4], size))
    out = crop_isotropic(torch.from_numpy(images), torch.tensor(boxes, dtype=torch.int32), size)
    difference = np.abs(out.numpy().astype(int) - np.stack(expected))
    assert out.dtype == torch.uint8 and difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert crop_isotropic(torch.from_numpy(images[:0]), torch.zeros(0, 5, dtype=torch.int32), size).shape == (
        0, size, size, 3,
    )  # fmt: skip


def test_the_dense_form_does_not_depend_on_how_float32_products_are_made() -> None:
    images = torch.from_numpy(noise(90, 95))[None].expand(2, -1, -1, -1)
    boxes = torch.tensor([[30, 34, 20, 20, DIAGONAL], [31, 33, 21, 21, ISOTROPIC]])
    expected = crop_densely(images, boxes, 24)
    with RoundedProducts():
        assert torch.equal(crop_densely(images, boxes, 24), expected)


@pytest.mark.parametrize("crop", [crop_isotropic, crop_densely])
def test_the_host_never_waits(crop: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Neither Triton's kernels, which a GPU has, nor the dense products wait."""
    boxes = torch.tensor([[30, 30, 20, 20, DIAGONAL]] * 3, dtype=torch.int32)
    with fake_cuda() as cuda:
        images = torch.zeros(3, 80, 80, 3, dtype=torch.uint8, device=cuda.device)
        boxes_on_device = boxes.to(cuda.device)
        with cuda.watched() as record:
            assert crop(images, boxes_on_device, 16).shape == (3, 16, 16, 3)
    assert not record.waits and bool(record.kernels) == (crop is crop_isotropic), record


@pytest.mark.gpu
def test_the_device_agrees_with_the_cpu_and_never_waits() -> None:
    images = torch.from_numpy(noise(120, 130)).expand(40, -1, -1, -1).contiguous()
    boxes = torch.tensor([[35, 40, 40, 40, ISOTROPIC], [36, 44, 41, 41, DIAGONAL]] * 20, dtype=torch.int32)
    arguments = images.cuda(), boxes.cuda()
    assert device_crops.fused_form(arguments[0].device) is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = crop_isotropic(*arguments, 48)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = (out.cpu().int() - crop_isotropic(images, boxes, 48).int()).abs()
    # The bounds of half precision are those of tests/kernels/test_fused_isotropic.py.
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-2
    assert torch.equal(out, crop_isotropic(*arguments, 48))


def test_without_triton_the_reason_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice for a CUDA device is made on a machine without one, so tensors stay on the CPU."""
    device = torch.device("cuda", 7)
    zeros, full = torch.zeros, torch.full
    monkeypatch.setattr(torch, "zeros", lambda *shape, device, **kinds: zeros(*shape, **kinds))
    monkeypatch.setattr(torch, "full", lambda *shape, device, **kinds: full(*shape, **kinds))
    monkeypatch.setitem(sys.modules, "fastpsl.kernels.fused_cuda.isotropic", None)
    with pytest.warns(UserWarning, match="dense matrix products, many times slower: Triton is missing"):
        assert device_crops.fused_form(device) is None
    with pytest.warns(UserWarning, match="made on the CPU: Triton is missing"):
        assert device_crops.fused_form(device, "on the CPU") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert device_crops.fused_form(device) is None
    assert device_crops.fused_form(torch.device("cpu")) is None


def test_forty_five_degrees_are_counter_clockwise() -> None:
    image = np.zeros((101, 101, 3), np.uint8)
    image[48:53, 62:67] = 255  # right of the centre; it moves up and stays on the right
    brightest = window(image, 30, 30, 41, DIAGONAL, 41)[..., 1].argmax()
    row, column = divmod(int(brightest), 41)
    assert (row, column) == (20 - 10, 20 + 10)


def test_what_is_round_looks_the_same_turned() -> None:
    y, x = np.mgrid[:120, :120] + 0.5
    rings = np.cos(np.hypot(y - 60, x - 60) / 3) * 100 + 128
    image = np.stack([rings, 255 - rings, 0.5 * rings], 2).astype(np.uint8)
    for side, size in [(40, 31), (40, 57), (60, 20)]:
        upright, turned = (window(image, 60 - side // 2, 60 - side // 2, side, base, size).astype(int)
                           for base in (ISOTROPIC, DIAGONAL))  # fmt: skip
        assert np.abs(upright - turned).max() <= 1


@pytest.mark.parametrize(("side", "size"), [(16, 23), (17, 16), (60, 9)])
def test_constant_images_stay_what_they_are(side: int, size: int) -> None:
    """All levels, in an image that leaves its window one place only."""
    shorter = side + 2 * int(margin_px(side, size))
    for level in range(0, 256, 15):
        colour = np.array([level, 255 - level, (7 * level) % 256], np.uint8)
        image = np.broadcast_to(colour, (shorter, shorter, 3)).copy()
        top = (shorter - side) // 2
        for base in (ISOTROPIC, DIAGONAL):
            assert (window(image, top, top, side, base, size) == colour).all()
        boxes = torch.tensor([[top, top, side, side, ISOTROPIC], [top, top, side, side, DIAGONAL]])
        windows = crop_isotropic(torch.from_numpy(image).expand(2, -1, -1, -1), boxes, size)
        assert (windows.numpy() == colour).all()


@pytest.mark.parametrize(("side", "size"), SIZES)
def test_the_margin_holds_all_that_the_kernel_reaches(side: int, size: int) -> None:
    """Pixels around the margin have no effect, and it is at most a point and two pixels too large."""
    margin = int(margin_px(side, size))
    shorter = side + 2 * margin
    image, around = noise(shorter, shorter), noise(shorter + 40, shorter + 40, seed=1)
    around[20:-20, 20:-20] = image
    for base in (ISOTROPIC, DIAGONAL):
        inner = window(image, margin, margin, side, base, size).astype(int)
        assert np.abs(window(around, margin + 20, margin + 20, side, base, size) - inner).max() <= 1
        assert (window(around, margin + 20, margin + 20, side, base, size) == inner).mean() > 0.999
    reach = 4.25 * max(3.0, 0.5 * side / size)
    corner = np.sqrt(0.5) * side * (size - 1) / size  # the outermost point's distance from the centre
    assert 0 <= margin + side / 2 - (corner + reach) < 2 + np.sqrt(0.5) * side / size


def test_the_largest_side_fits_and_wastes_little() -> None:
    shorter = np.arange(40, 3000)
    for size in (1, 64, 224):
        sides = np.floor(largest_side_px(shorter, size)).astype(int)
        room = shorter - sides - 2 * margin_px(sides, size)
        assert room[sides > 0].min() >= 0
        larger = sides + 3
        assert (shorter - larger - 2 * margin_px(larger, size))[sides > 0].max() < 0
