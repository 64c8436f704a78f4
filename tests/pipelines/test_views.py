"""A view is a crop, ops in order and a normalisation; its draws depend on the sample and not on the batch."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Flip, Rotate45
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.views import Draw, ViewSpec

VIEW = ViewSpec(RandomResizedCrop(31), (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1, 0.8), Grey(0.3)))
INDICES = np.arange(100, 116)


def tensors(draws: tuple[Draw, ...]) -> list[dict[str, torch.Tensor]]:
    return [{key: torch.from_numpy(value) for key, value in draw.items()} for draw in draws]


def equal(a: tuple[Draw, ...], b: tuple[Draw, ...]) -> bool:
    pairs = [(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x.keys() | y.keys()]
    return all(np.array_equal(x, y) for x, y in pairs)


def test_apply_is_the_ops_in_order_then_normalisation() -> None:
    images = torch.randint(0, 256, (16, 31, 31, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    draws = tensors(VIEW.draw(Keys(0, 0, INDICES)))
    result = VIEW.apply(images, draws, torch.float32)
    expected = images
    for op, draw in zip(VIEW.ops, draws, strict=True):
        expected = op(expected, draw)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (VIEW.mean, VIEW.std))
    torch.testing.assert_close(result, (expected - mean) / std, rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert VIEW.apply(images, draws, torch.bfloat16).dtype == torch.bfloat16


def test_draws_are_the_samples_own() -> None:
    whole = VIEW.draw(Keys(3, 2, INDICES, 1))
    assert len(whole) == len(VIEW.ops)
    part = VIEW.draw(Keys(3, 2, INDICES[4:9], 1))
    assert equal(part, tuple({key: value[4:9] for key, value in draw.items()} for draw in whole))
    for keys in (
        Keys(4, 2, INDICES, 1),
        Keys(3, 1, INDICES, 1),
        Keys(3, 2, INDICES, 0),
        Keys(3, 2, INDICES + 1, 1),
    ):
        assert not equal(whole, VIEW.draw(keys))


def test_two_ops_of_a_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="Flip, Flip: two of one kind would share their random numbers"):
        ViewSpec(RandomResizedCrop(31), (Flip(), Flip(0.1)))


def test_a_label_of_45_degrees_is_true_or_refused() -> None:
    ViewSpec(RotationCrop(31), (Rotate45(), Grey(0.3)))
    ViewSpec(RotationCrop(31, base=45), (Flip(),))
    with pytest.raises(ValueError, match="Rotate45 and Flip: .* leave out Flip"):
        ViewSpec(RotationCrop(31), (Flip(), Rotate45()))
    for crop in (RandomResizedCrop(31), RotationCrop(31, base=0)):
        with pytest.raises(ValueError, match="give RotationCrop, base drawn"):
            ViewSpec(crop, (Rotate45(),))


def test_draws_of_another_view_are_refused() -> None:
    images = torch.zeros(1, 3, 31, 31, dtype=torch.uint8)
    with pytest.raises(ValueError, match="1 draws were given for 3 ops"):
        VIEW.apply(images, tensors(VIEW.draw(Keys(0, 0, INDICES)))[:1], torch.float32)


def test_the_input_record_says_what_the_weights_expect() -> None:
    view = ViewSpec(RandomResizedCrop(31), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert view.input_record() == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "size_px": 31,
        "channels": "RGB",
    }
