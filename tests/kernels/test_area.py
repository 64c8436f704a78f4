"""The device's area resize against running sums and against the CPU decoders' compiled one."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.area import crop_area
from fastpsl.pipelines.image.area import area_resize
from tests.kernels.tf32 import RoundedProducts
from tests.pipelines.photos import area_mean

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
