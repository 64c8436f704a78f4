"""The GPU's windows against the compiled form, a plain sum, and dense products with the same roundings.

Another test measures what their rounding reveals.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused_cuda import isotropic as fused
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, largest_side_px, margin_px, reach_px
from fastpsl.kernels.rotation_crops import RotationCrop
from tests.kernels.windows import noise, plain, rounded, window
from tests.pipelines.isotropy import probe_accuracy
from tests.slow import slow

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Without a GPU the interpreter runs the kernels.
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
# For noise, rounding to half precision is 0.005 (luma 2^-5 per pixel, less by the averaging of the sums, and
# weights 2^-12), so 0.4 % of the bytes are on the other side of a half. The worst case is ten times that,
# besides the part beyond 4.25 sigma.
MOST_DIFFER, WORST = 0.01, 0.56
both_bases = pytest.mark.parametrize(("base", "degrees"), [(ISOTROPIC, 0), (DIAGONAL, 45)])


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory, so that missing writes and reads of unwritten memory show."""
    new_empty = Tensor.new_empty

    def fill(self: Tensor, *shape: Any, **kinds: Any) -> Tensor:
        empty: Tensor = new_empty(self, *shape, **kinds)
        return empty.fill_(torch.nan if empty.is_floating_point() else 171)

    monkeypatch.setattr(Tensor, "new_empty", fill)


def crop(images: "Tensor | np.ndarray", boxes: "Tensor | list[list[int]]", size: int) -> np.ndarray:
    out = fused.crop(torch.as_tensor(images).to(DEVICE), torch.as_tensor(boxes).to(DEVICE), size)
    assert out.dtype == torch.uint8 and out.is_contiguous()
    return out.cpu().numpy()


def assert_same(out: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(out.astype(int) - expected)
    assert out.shape == expected.shape
    assert difference.max() <= 1 and (difference > 0).sum() <= 4 + MOST_DIFFER * out.size


# The sides of the window and of the output: enlarging, nearly 1, shrinking where luma's kernel widens, and
# where both do, with more columns than one program has; one pixel; more lines than one program has.
SIZES = [(37, 12), (20, 1), *(slow(*sizes) for sizes in ((16, 33), (16, 8), (41, 40), (97, 12), (17, 66)))]


@pytest.mark.parametrize(("side", "size"), SIZES)
def test_equals_the_compiled_form(side: int, size: int) -> None:
    """Windows at the top left and at the bottom right of images; all four mixes at the first size alone."""
    margin = int(margin_px(side, size))
    length = side + 2 * margin
    boxes = [
        [margin, margin, side, side, ISOTROPIC], [margin + 5, margin + 3, side, side, DIAGONAL],
        [margin + 5, margin + 3, side, side, ISOTROPIC], [margin, margin, side, side, DIAGONAL],
    ][: 4 if (side, size) == SIZES[0] else 2]  # fmt: skip
    images = np.stack([noise(length + 5, length + 3, seed) for seed in range(len(boxes))])
    out, pairs = crop(images, boxes, size), zip(images, boxes, strict=True)
    assert_same(out, np.stack([window(i, b[0], b[1], b[2], b[4], size) for i, b in pairs]))
    if DEVICE.type == "cpu":
        # Sums in another order, and the compiler's float32 for the weights, differ by less than halves do.
        wanted = rounded(torch.from_numpy(images), torch.tensor(boxes), size, torch.float16).numpy()
        assert (out != wanted).mean() < 1e-3


def test_images_of_several_sizes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random, size, num = np.random.default_rng(1), 11, 5
    images, boxes, expected = random.integers(0, 256, (num, 80, 87, 3), np.uint8), [], []
    for i, image in enumerate(images):
        height, width = (int(length) for length in random.integers(60, 81, 2))
        side = int(largest_side_px(np.array(min(height, width)), size)) - i
        margin = int(margin_px(side, size))
        top, left = (int(random.integers(margin, length - side - margin + 1)) for length in (height, width))
        boxes.append([top, left, side, side, (ISOTROPIC, DIAGONAL)[i % 2]])
        expected.append(window(image[:height, :width].copy(), top, left, side, boxes[-1][4], size))
    out = crop(images, torch.tensor(boxes, dtype=torch.int32), size)
    assert_same(out, np.stack(expected))
    monkeypatch.setattr(fused, "_BETWEEN_BYTES", 2 * 6 * 64 * 128)
    np.testing.assert_array_equal(crop(images, boxes, size), out)


@pytest.mark.parametrize("before", [1, slow(2**31 + 5)])
def test_images_of_several_sizes_in_one_piece_of_memory(before: int) -> None:
    """Each begins on any byte, also beyond two gigabytes, and the last one ends with the memory."""
    size, sides, pixels, places, boxes, expected = 11, (17, 9, 30), [], [], [], []
    begin = before
    for i, side in enumerate(sides):
        beyond = [int(of(side, size)) for of in (reach_px, margin_px, margin_px)][i]
        image, base = noise(side + 2 * beyond, side + 2 * beyond + i, i), (ISOTROPIC, DIAGONAL, ISOTROPIC)[i]
        around = np.pad(image, ((9, 9), (9, 9), (0, 0)), mode="edge")
        expected.append(window(around, beyond + 9, beyond + 9, side, base, size))
        boxes.append([beyond, beyond, side, side, base])
        places.append([begin, *image.shape[:2]])
        pixels.append(image.ravel())
        begin += image.size
    memory = torch.empty(begin, dtype=torch.uint8)  # pages that nothing touches take no memory
    memory[before:] = torch.from_numpy(np.concatenate(pixels))
    on_device = torch.tensor(places).to(DEVICE), torch.tensor(boxes).to(DEVICE)
    out = fused.crop_ragged(memory.to(DEVICE), on_device[0], on_device[1], size, 92)
    assert_same(out.cpu().numpy(), np.stack(expected))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "from an odd byte on": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "channels first": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "one, expanded": lambda x: x[:1].expand(x.shape),
    "none": lambda x: x[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory(layout: str) -> None:
    pixels = np.stack([noise(61, 57, seed) for seed in range(2)])
    images = LAYOUTS[layout](torch.from_numpy(pixels).to(DEVICE))
    boxes = torch.tensor([[20, 20, 17, 17, DIAGONAL], [22, 19, 17, 17, ISOTROPIC]])[: len(images)]
    out = crop(images, boxes, 9)
    assert out.shape == (len(images), 9, 9, 3)
    for i, (top, left, side, _, base) in enumerate(boxes.tolist()):
        assert_same(out[i], window(images[i].cpu().numpy().copy(), top, left, side, base, 9))


def test_boxes_that_do_not_fit_leave_the_others_alone() -> None:
    images = np.stack([noise(70, 73, seed) for seed in range(3)])
    good = [25, 26, 20, 20, DIAGONAL]
    for bad in ([0, 0, 70, 73, 0], [0, 0, 70, 70, DIAGONAL], [60, 60, 30, 30, ISOTROPIC]):
        out = crop(images, [good, bad, good], 12)
        assert_same(out[::2], np.stack([window(images[i], 25, 26, 20, DIAGONAL, 12) for i in (0, 2)]))


@pytest.mark.parametrize("size", [9, *map(slow, (8, 31, 40))])
def test_constant_images_stay_what_they_are(size: int) -> None:
    side = 17
    length = side + 2 * int(margin_px(side, size))
    levels = np.array([[0, 255, 0], [255, 255, 255], [77, 178, 3], [130, 125, 209]], np.uint8)
    images = np.broadcast_to(levels[:, None, None], (4, length, length, 3)).copy()
    top = (length - side) // 2
    out = crop(images, [[top, top, side, side, (ISOTROPIC, DIAGONAL)[i // 2]] for i in range(4)], size)
    np.testing.assert_array_equal(out, np.broadcast_to(levels[:, None, None], out.shape))


def farthest(base: int, degrees: int) -> float:
    """Return the largest error, for windows that show all sigmas and halves of their pixels."""
    worst = []
    for side, size in [(41, 40), (97, 12)]:
        margin = int(margin_px(side, size))
        image = noise(side + 2 * margin, side + 2 * margin)
        # Saturated colours show the weights of luma and colour.
        image[:, ::3], image[::5] = [255, 0, 0], [0, 0, 255]
        exact = plain(image, margin, margin, side, degrees, size)
        out = crop(image[None], [[margin, margin, side, side, base]], size)[0]
        worst.append(np.abs(out - exact).max())
    return max(worst)


@both_bases
def test_equals_the_plain_sum(base: int, degrees: int) -> None:
    assert farthest(base, degrees) < WORST


CONSTANTS = [(fused, name) for name in ("LUMA_SIGMA", "COLOUR_SIGMA", "SHRINK", "HALF_ROOT", "FALL")]
CONSTANTS += [(fused, name) for name in ("RED", "GREEN", "BLUE")]


@pytest.mark.nightly
@pytest.mark.skipif(DEVICE.type != "cpu", reason="a compiled kernel keeps its constants")
@pytest.mark.parametrize(("module", "name"), CONSTANTS, ids=[name for _, name in CONSTANTS])
def test_two_percent_of_a_constant_are_seen(
    module: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, tl.constexpr(1.02 * getattr(module, name).value))
    assert farthest(DIAGONAL, 45) > WORST


@triton.jit
def weights_kernel(box, luma, colour):
    of = fused.lattice_of(box, 8)
    at = tl.arange(0, 64)[:, None] * 8 + tl.arange(0, 8)[None, :]
    values = fused.weights(tl.arange(0, 64)[:, None], tl.arange(0, 8)[None, :], of[4], of)
    tl.store(luma + at, values[0])
    tl.store(colour + at, values[1])


def test_where_the_kernels_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cut at 4.25 sigma, to within 2 %, which no byte shows."""
    box = torch.tensor([20, 28, 9, 9, ISOTROPIC], dtype=torch.int32, device=DEVICE)

    def weights() -> list[np.ndarray]:
        out = torch.full((2, 64, 8), torch.nan, dtype=torch.float16, device=DEVICE)
        weights_kernel[(1,)](box, out[0], out[1])
        return [values.cpu().numpy() for values in out]

    far = np.abs(np.arange(64)[:, None] + 0.5 - (32.5 + 9 / 8 * (np.arange(8) - 3.5)))
    expected = [np.exp(-0.5 * (far / sigma) ** 2) * (far <= 4.25 * sigma) for sigma in (1.0, 3.0)]
    for values, exact in zip(weights(), expected, strict=True):
        np.testing.assert_allclose(values, exact, rtol=2**-10)
    if DEVICE.type == "cpu":
        for factor in (0.98, 1.02):
            monkeypatch.setattr(fused, "REACH", tl.constexpr(4.25 * factor))
            num_positive = [(values > 0).sum() for values in weights()]
            assert num_positive != [(exact > 0).sum() for exact in expected]


@pytest.mark.slow
def test_half_precision_is_enough() -> None:
    """Enlarged white noise shows the angle most: a probe finds it through bfloat16 but not through halves."""
    num, size, height, width = 3000, 64, 88, 85
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        keys, shape = Keys(0, 0, np.arange(num)), np.full(num, 1, np.int32)
        op = RotationCrop(size)
        bases = op.resampling(keys)
        boxes = np.concatenate([op.boxes(keys, height * shape, width * shape), bases[:, None]], 1)
        images = np.random.default_rng(7).integers(0, 256, (num, height, width, 3), np.uint8)
        arguments = torch.from_numpy(images), torch.from_numpy(boxes), size
        labels = torch.from_numpy((bases == DIAGONAL).astype(np.int64))
        chance = 0.5 + 4.5 * (0.25 / (num // 2)) ** 0.5
        accuracy = {
            dtype: probe_accuracy(rounded(*arguments, dtype).permute(0, 3, 1, 2), labels)
            for dtype in (torch.float16, torch.bfloat16)
        }
        assert accuracy[torch.float16] < chance < accuracy[torch.bfloat16]
    finally:
        torch.set_num_threads(before)
