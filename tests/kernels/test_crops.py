"""Boxes against torchvision's algorithm on equal uniforms; they lie inside and follow their draws."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from fastpsl.kernels import crops
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop, Squashed, Where
from fastpsl.kernels.device_crops import crop_area
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.image.area import area_resize
from tests.kernels.tf32 import RoundedProducts
from tests.pipelines.photos import area_mean

SIDES = [1, 2, 3, 7, 32, 75, 224, 225, 256, 333, 500, 1000, 4000, 30000]


def images(num=3000, seed=0):
    generator = np.random.default_rng(seed)
    heights = generator.choice(SIDES, num).astype(np.int32)
    widths = generator.choice(SIDES, num).astype(np.int32)
    return Keys(7, 3, generator.integers(0, 2**40, num), 1), heights, widths


def random_resized_reference(keys, heights, widths, scale, ratio):
    boxes = []
    for row, height, width in zip(
        words(keys, Slot.CROP, 40).tolist(), heights.tolist(), widths.tolist(), strict=True
    ):
        box = None
        for a, b, c, d in np.reshape(row, (10, 4)).tolist():
            target = height * width * (scale[0] + (scale[1] - scale[0]) * (a >> 8) / 2**24)
            low, high = math.log(ratio[0]), math.log(ratio[1])
            aspect = math.exp(low + (high - low) * (b >> 8) / 2**24)
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                box = (c * (height - h + 1) >> 32, d * (width - w + 1) >> 32, h, w)
                break
        if box is None:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(w / ratio[0])
            elif width / height > ratio[1]:
                w = round(h * ratio[1])
            box = ((height - h) // 2, (width - w) // 2, h, w)
        boxes.append(box)
    return np.array(boxes)


def assert_inside(boxes, heights, widths):
    top, left, height, width = boxes.T.astype(np.int64)
    assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) >= 1
    assert (top + height <= heights).all() and (left + width <= widths).all()


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.9, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("by", ["C", "NumPy"])
def test_random_resized_crop_equals_the_loop(scale, ratio, by, monkeypatch):
    if by == "NumPy":
        monkeypatch.setattr(crops, "library", lambda: None)
    elif crops.library() is None:
        pytest.skip("the C library was not built")
    keys, heights, widths = images()
    boxes = RandomResizedCrop(224, scale, ratio).boxes(keys, heights, widths)
    assert boxes.dtype == np.int32
    np.testing.assert_array_equal(boxes, random_resized_reference(keys, heights, widths, scale, ratio))
    assert_inside(boxes, heights, widths)


@pytest.mark.parametrize("constant", ["scale", "ratio"])
def test_two_percent_are_seen_in_random_resized_crop(constant):
    keys, heights, widths = images(500)
    moved = {"scale": (0.08 * 1.02, 1.0), "ratio": (3 / 4 * 1.02, 4 / 3)}[constant]
    boxes = RandomResizedCrop(224, **{constant: moved}).boxes(keys, heights, widths)
    expected = random_resized_reference(keys, heights, widths, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (boxes != expected).any(1).mean() > 0.1  # because the most extreme shapes fall back either way


class Feed:
    """A sample's words in torchvision's order: two uniforms per try, two integers for the try that fits."""

    def __init__(self, row):
        self.blocks, self.num_uniforms, self.num_integers = np.reshape(row, (10, 4)).tolist(), 0, 0

    def uniform(self):
        block, lane = divmod(self.num_uniforms, 2)
        self.num_uniforms += 1
        return (self.blocks[block][lane] >> 8) / 2**24

    def integer(self, high):
        word = self.blocks[(self.num_uniforms - 1) // 2][2 + self.num_integers]
        self.num_integers += 1
        return word * high >> 32


def test_random_resized_crop_equals_torchvision_on_equal_uniforms(monkeypatch):
    """torchvision's own code gets our words as torch's random numbers."""
    keys, heights, widths = images(1500, seed=1)
    expected = []
    for row, height, width in zip(words(keys, Slot.CROP, 40), heights.tolist(), widths.tolist(), strict=True):
        feed = Feed(row)
        with monkeypatch.context() as patch:
            patch.setattr(
                torch.Tensor,
                "uniform_",
                lambda self, low, high, feed=feed: self.fill_(low + (high - low) * feed.uniform()),
            )
            patch.setattr(
                torch,
                "randint",
                lambda low, high, size, feed=feed: torch.full(size, low + feed.integer(high - low)),
            )
            image = torch.empty(1).expand(3, height, width)
            expected.append(TorchvisionCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]))
    same = (RandomResizedCrop(224).boxes(keys, heights, widths) == np.array(expected)).all(1)
    assert same.mean() > 0.99, same.mean()  # torchvision's logarithms and areas are float32


def box_by_hand(where, a, b, height, width, side):
    """Return top and left from the words a, b."""
    down, right = height - side, width - side
    if where == "random":
        return a * (down + 1) >> 32, b * (right + 1) >> 32
    if where == "random_middle":
        short = min(height, width)
        first = (height - short) // 2, (width - short) // 2
        return first[0] + (a * (short - side + 1) >> 32), first[1] + (b * (short - side + 1) >> 32)
    if where == "center":
        return down // 2, right // 2
    vertical, horizontal = where.split("_")
    return down if vertical == "bottom" else 0, right if horizontal == "right" else 0


@pytest.mark.parametrize("shorter_px, size_px", [(256, 225), (256, 224), (32, 32), (40, 3)])
@pytest.mark.parametrize("where", get_args(Where))
def test_shorter_side_crop_equals_the_loop(shorter_px, size_px, where):
    keys, heights, widths = images(1000)
    boxes = ShorterSideCrop(shorter_px, size_px, where).boxes(keys, heights, widths)
    expected = []
    for (a, b), height, width in zip(
        words(keys, Slot.CROP, 2).tolist(), heights.tolist(), widths.tolist(), strict=True
    ):
        side = max(1, round(size_px * min(height, width) / shorter_px))
        expected.append((*box_by_hand(where, a, b, height, width, side), side, side))
    np.testing.assert_array_equal(boxes, expected)
    assert_inside(boxes, heights, widths)


@pytest.mark.parametrize(
    "height, width, side", [(1, 1, 1), (1, 9, 1), (500, 1, 1), (3, 5, 3), (100, 150, 88)]
)
def test_corners_of_images_smaller_than_the_crop(height, width, side):
    """The box is smaller in proportion and enlarged: 224 of a shorter side of 256, in whole source pixels."""
    keys, sizes = Keys(0, 0, np.zeros(1, np.int64)), (np.array([height]), np.array([width]))
    places = {"top_left": (0, 0), "top_right": (0, width - side), "bottom_left": (height - side, 0),
              "bottom_right": (height - side, width - side),
              "center": ((height - side) // 2, (width - side) // 2)}  # fmt: skip
    for where, place in places.items():
        assert ShorterSideCrop(256, 224, where).boxes(  # type: ignore[arg-type]
            keys, *sizes
        ).tolist() == [[*place, side, side]]


def test_central_box_is_that_of_resize_and_centre_crop():
    """They agree within a source pixel for ordinary photos."""
    for height, width in [(375, 500), (500, 333), (256, 256), (1200, 1600)]:
        keys = Keys(0, 0, np.zeros(1, np.int64))
        box = ShorterSideCrop(256, 224, where="center").boxes(
            keys, np.array([height], np.int32), np.array([width], np.int32)
        )[0]
        scale = min(height, width) / 256
        resized = [side / scale for side in (height, width)]
        expected = [(side - 224) / 2 * scale for side in resized] + [224 * scale] * 2
        assert np.abs(box - np.array(expected)).max() <= 1


@pytest.mark.parametrize("constant", ["shorter_px", "size_px"])
def test_two_percent_are_seen_in_shorter_side_crop(constant):
    keys = Keys(0, 0, np.arange(50, dtype=np.int64))
    heights, widths = np.full(50, 375, np.int32), np.full(50, 500, np.int32)
    sizes = {"shorter_px": 256, "size_px": 225}
    right = ShorterSideCrop(**sizes, where="random").boxes(keys, heights, widths)
    sizes[constant] = round(sizes[constant] * 1.02)
    assert (ShorterSideCrop(**sizes, where="random").boxes(keys, heights, widths) != right).any(1).all()


def test_every_place_of_a_random_crop_comes():
    keys = Keys(0, 0, np.arange(4000, dtype=np.int64))
    boxes = ShorterSideCrop(10, 8).boxes(keys, np.full(4000, 10, np.int32), np.full(4000, 14, np.int32))
    assert np.bincount(boxes[:, 0]).tolist() == pytest.approx([4000 / 3] * 3, rel=0.1)
    assert np.bincount(boxes[:, 1]).tolist() == pytest.approx([4000 / 7] * 7, rel=0.2)


@pytest.mark.parametrize("crop", [RandomResizedCrop(224), ShorterSideCrop()])
def test_views_epochs_and_batches(crop):
    heights, widths = np.full(40, 375, np.int32), np.full(40, 500, np.int32)
    keys = Keys(7, 3, np.arange(40, dtype=np.int64))
    boxes = crop.boxes(keys, heights, widths)
    assert (crop.boxes(Keys(7, 3, keys.indices, 1), heights, widths) != boxes).any(1).mean() > 0.9
    assert (crop.boxes(Keys(7, 4, keys.indices), heights, widths) != boxes).any(1).mean() > 0.9
    part = Keys(7, 3, keys.indices[[30, 4]])
    np.testing.assert_array_equal(crop.boxes(part, heights[:2], widths[:2]), boxes[[30, 4]])
    assert crop.boxes(Keys(7, 3, keys.indices[:0]), heights[:0], widths[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RandomResizedCrop(0), "crop size 0 px"),
        (lambda: ShorterSideCrop(256, 0), "crop size 0 px"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 1.5)), "crop scale"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.2)), "crop scale"),
        (lambda: RandomResizedCrop(8, ratio=(0.0, 1.0)), "crop ratio"),
        (
            lambda: ShorterSideCrop(256, 224, "middle"),  # type: ignore[arg-type]
            "where='middle' given; allowed are random, .*center",
        ),
        (lambda: ShorterSideCrop(224, 225), "225 px given for a shorter side of 224"),
        (lambda: RandomResizedCrop(8).check(0, 5), "0 x 5 px"),
        (lambda: RandomResizedCrop(8).check(5, 0), "5 x 0 px"),
        (lambda: ShorterSideCrop(256, 2).check(63, 500), "63 x 500 px .* 64 px and more"),
        (lambda: ShorterSideCrop(256, 3).check(500, 42), "500 x 42 px .* 43 px and more"),
    ],
)
def test_impossible_crops_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value) and "allowed" in str(error.value)


def test_possible_crops_pass_the_check():
    RandomResizedCrop(224).check(1, 1)
    ShorterSideCrop(256, 2).check(64, 64)
    ShorterSideCrop().check(1, 1)


@pytest.mark.parametrize("num", [0, 1, 500])
def test_squashed_boxes_are_the_whole_images(num):
    keys, heights, widths = images(num)
    boxes = Squashed(224).boxes(keys, heights, widths)
    assert boxes.dtype == np.int32 and boxes.shape == (num, 4)
    assert boxes.tolist() == [[0, 0, height, width] for height, width in zip(heights, widths, strict=True)]
    Squashed(224).check(1, 1)
    with pytest.raises(ValueError, match="an image of 0 x 5 px given"):
        Squashed(224).check(0, 5)
    with pytest.raises(ValueError, match="crop size 0 px given"):
        Squashed(0)


BOXES = [(0, 0, 61, 47), (7, 11, 30, 21), (60, 46, 1, 1), (0, 0, 61, 1), (3, 5, 20, 40), (1, 1, 32, 32)]


@pytest.mark.parametrize("size", [1, 5, 16, 32, 97])
def test_each_pixel_is_the_mean_of_the_area_under_it(size: int) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (len(BOXES), 61, 47, 3), np.uint8)
    out = crop_area(torch.from_numpy(images), torch.tensor(BOXES, dtype=torch.int32), size).numpy()
    assert out.dtype == np.uint8 and out.shape == (len(BOXES), size, size, 3)
    for i, box in enumerate(BOXES):
        exact = area_mean(images[i], box, size)
        assert np.abs(out[i] - exact).max() < 0.51, box
        compiled = np.empty((size, size, 3), np.uint8)
        top, left, height, width = (float(value) for value in box)
        area_resize(images[i].reshape(-1), 61, 47, top, left, height, width, compiled)
        is_tie = np.abs(exact % 1 - 0.5) < 1e-3
        assert np.abs(out[i].astype(int) - compiled).max() <= 1
        assert (out[i] == compiled)[~is_tie].all(), box


@pytest.mark.parametrize("size", [1, 16, 40])
def test_one_kernel_gathers_and_crops_the_same(size: int) -> None:
    area = pytest.importorskip("fastpsl.kernels.fused_cuda.area", exc_type=ImportError)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        images = torch.randint(0, 256, (5, 61, 47, channels), dtype=torch.uint8, generator=random).to(device)
        for some in (BOXES, BOXES[:1], BOXES[:0]):
            boxes = torch.tensor([[*map(int, box), 0] for box in some], dtype=torch.int32).view(-1, 5)
            indices = torch.randint(0, 5, (len(some),), generator=random)
            out = area.crop(images, indices.to(device), boxes.to(device), size)
            assert torch.equal(out, crop_area(images[indices.to(device)], boxes.to(device), size))


def test_whole_pixels_are_taken_as_they_are_and_halves_go_up() -> None:
    images = torch.randint(0, 256, (3, 20, 20, 3), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 16, 16], [4, 2, 16, 16], [3, 4, 16, 16]])
    out = crop_area(images, boxes, 16)
    for i, (top, left, _, _) in enumerate(boxes.tolist()):
        assert torch.equal(out[i], images[i, top : top + 16, left : left + 16])
    pair = torch.tensor([10, 11], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 2, 2, 3)
    assert crop_area(pair, torch.tensor([[0, 0, 2, 2]]), 1).flatten().tolist() == [11, 11, 11]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8)
    boxes = torch.stack(
        [torch.randint(0, 8, (64,)), torch.randint(0, 8, (64,)), *torch.randint(9, 25, (2, 64))], 1
    )
    together = crop_area(images, boxes, 24)
    for i in (0, 17, 63):
        assert torch.equal(together[i], crop_area(images[i : i + 1], boxes[i : i + 1], 24)[0])
    assert crop_area(images[:0], boxes[:0], 24).shape == (0, 24, 24, 3)


def test_nothing_depends_on_how_float32_products_are_made() -> None:
    images = torch.randint(0, 256, (8, 61, 47, 3), dtype=torch.uint8)
    boxes = torch.tensor([[7, 11, 33, 21], [0, 0, 61, 47]] * 4)
    expected = crop_area(images, boxes, 16)
    with RoundedProducts():
        assert torch.equal(crop_area(images, boxes, 16), expected)
        factor = torch.tensor([[1 + 2**-12]])
        assert (factor @ factor).item() == 1  # so rounded products would be noticed


def test_large_images_keep_their_sums() -> None:
    """255 times 2,944 x 2,944 px does not fit into 31 bits."""
    images = torch.full((1, 2944, 2944, 1), 255, dtype=torch.uint8)
    boxes = torch.tensor([[1, 2, 2943, 2942]])
    assert (crop_area(images, boxes, 3) == 255).all()
    images[0, -1, -1] = 0
    assert crop_area(images, torch.tensor([[2942, 2942, 2, 2]]), 2).flatten().tolist() == [255, 255, 255, 0]
