"""A view is a crop, ops in order and a normalisation; its draws depend on the sample and not on the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.rotate45 import Rotate45
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.views import Crop, Draw, Input, Op, ViewSpec, center_view

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


@dataclass(frozen=True)
class Edges:
    """An operation from elsewhere: horizontal and vertical differences in a grid of two halves per image."""

    channels: ClassVar[str] = "my_ops.Edges"

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[3] % 2:
            raise ValueError(f"images {shape[3]} px wide given to Edges; allowed are even widths")
        return 2 * shape[0], 2, shape[2], shape[3] // 2

    def check_view(self, crop: Crop, ops: Sequence[Op]) -> None:
        if ops[0] is not self:
            raise ValueError("Edges must be first")

    def draw(self, keys: Keys) -> Draw:
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        grey = torch.stack(images.float().mean(1).tensor_split(2, -1), 1).flatten(0, 1) / 255
        return torch.stack(
            [grey.diff(dim=2, append=grey[..., -1:]), grey.diff(dim=1, append=grey[:, -1:])], 1
        )


def test_an_op_from_elsewhere_makes_channels_and_images_of_its_own() -> None:
    view = ViewSpec(RandomResizedCrop(32), (Edges(), Flip()), (0.0, 0.1), (1.0, 0.5))
    assert view.side_px == 16
    draws = ({}, {"flip": torch.zeros(6, dtype=torch.bool)})
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    inputs = view.apply(images, draws, torch.float32)
    assert inputs.shape == (6, 2, 32, 16)
    assert view.denormalise(inputs).shape == (6, 3, 32, 16)
    record = Input.from_dict(view.input_record())
    assert record == view.input() == Input("my_ops.Edges", (0.0, 0.1), (1.0, 0.5), 32)
    assert record.num_channels == 2 and "my_ops.Edges" in record.in_words()
    with pytest.raises(ValueError, match="'my_ops.Edges': no op of fastpsl makes them"):
        center_view(record, 32)
    with pytest.raises(ValueError, match="for my_ops.Edges: give 2 values each"):
        ViewSpec(RandomResizedCrop(32), (Edges(),))
    with pytest.raises(ValueError, match="31 px wide"):
        ViewSpec(RandomResizedCrop(31), (Edges(),), (0.0, 0.1), (1.0, 0.5))
    with pytest.raises(ValueError, match="Edges must be first"):
        ViewSpec(RandomResizedCrop(32), (Flip(), Edges()), (0.0, 0.1), (1.0, 0.5))


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
