"""Test IIC's task: the pairs of Table XIV, crops, first weights, refusals."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.views import Input
from fastpsl.tasks.pseudo_labels.iic import IIC, ClusterHeads, Transforms
from tests.engine.tiny import noise_batch


def iic(**options: Any) -> IIC:
    """Return IIC with the values of SSL++."""
    values: dict[str, Any] = {
        "num_clusters": 70,
        "size_px": 32,
        "crop_share": 0.625,
        "transforms": "sobel",
        "num_copies": 3,
        "num_sub_heads": 5,
    }
    return IIC(**(values | options))


JITTER = ColourDistortion(0.4, 0.4, 0.4, 0.125, p=1.0)


@pytest.mark.parametrize(
    ("transforms", "weak", "strong"),
    [
        ("crop", "", ""),
        ("flip", "", "Flip"),
        ("colour", "", "Flip ColourDistortion"),
        ("grey", "Grey", "Flip ColourDistortion Grey"),
        ("sobel", "SobelXY", "Flip ColourDistortion SobelXY"),
    ],
)
def test_pairs_are_those_of_table_xiv(transforms: Transforms, weak: str, strong: str) -> None:
    task = iic(transforms=transforms, num_copies=2)
    first, *others = task.views(1)
    names = [" ".join(type(op).__name__ for op in view.ops) for view in (first, *others, task.center)]
    assert names == [weak, strong, strong, weak]
    ops = [op for view in task.views(1) for op in view.ops]
    assert all(op in (Flip(0.5), JITTER, Grey(1.0)) for op in ops if type(op).__name__ != "SobelXY")
    usual = Input.usual("SobelXY" if transforms == "sobel" else "RGB", 32)
    assert first.input() == others[0].input() == task.center.input() == usual


@pytest.mark.parametrize(
    ("size_px", "height", "width", "side"), [(32, 32, 32, 20), (32, 96, 96, 60), (224, 300, 400, 188)]
)
def test_crops_are_of_the_share_of_the_shorter_side(size_px: int, height: int, width: int, side: int) -> None:
    task = iic(size_px=size_px)
    sizes = [np.full(50, value, np.int32) for value in (height, width)]
    boxes = [view.crop.boxes(Keys(0, 0, np.arange(50), n), *sizes) for n, view in enumerate(task.views(1))]
    assert all((box[:, 2:] == side).all() and len(np.unique(box[:, 0])) > 5 for box in boxes)
    assert not np.array_equal(boxes[1], boxes[2])  # each copy has its own draws
    center = task.center.crop.boxes(Keys(0, 0, np.arange(50), 0), *sizes)
    assert center.tolist() == [[(height - side) // 2, (width - side) // 2, side, side]] * 50
    assert {view.crop.size_px for view in (*task.views(1), task.center)} == {size_px}


def test_grey_images_have_equal_channels() -> None:
    task = iic(transforms="grey")
    for images in noise_batch(task.views(1), 3).inputs(task.views(1), torch.float32):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (task.center.mean, task.center.std))
        colours = images * std + mean
        assert torch.allclose(colours[:, :1].expand_as(colours), colours, atol=1e-6)


def test_first_weights_are_iics() -> None:
    torch.manual_seed(0)
    head = iic(second_clusters=10).head(1, 512)
    assert isinstance(head, ClusterHeads)
    assert [tuple(part.weight.shape) for part in head.classify] == [(350, 512), (50, 512)]  # type: ignore[operator, arg-type]
    for part in head.classify:
        assert isinstance(part, nn.Linear) and not part.bias.any()
        assert part.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head(torch.zeros(3, 512, 2, 2), 1).shape == (3, 5, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_copies": 0}, "--num-copies 0: IIC compares an image with transformed copies, so it needs 1"),
        ({"num_clusters": 1}, "--num-clusters 1: .* give 2 or more"),
        ({"second_clusters": 1}, "--second-clusters 1: .* give 2 or more"),
        ({"num_sub_heads": 0}, "--num-sub-heads 0"),
        ({"crop_share": 0.0}, "--crop-share 0: "),
        ({"crop_share": 1.01}, "--crop-share 1.01: "),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        iic(**options)


def test_the_limits_themselves_are_possible() -> None:
    """As many clusters as images, and as many pairs of a step as clusters, of either head."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iic(crop_share=1.0, num_copies=1, num_sub_heads=1, num_clusters=2).check_data(Synthetic(2), 2)
        iic(num_copies=2).check_data(Synthetic(70), 35)
    with pytest.warns(UserWarning, match="--batch-size 35 makes 70 pairs per step, .* how 72 clusters"):
        iic(num_copies=2, second_clusters=72).check_data(Synthetic(72), 35)


def test_contact_sheet_shows_all_views_of_each_image() -> None:
    task = iic(num_copies=2)
    batch = noise_batch(task.views(1), 3)
    inputs = batch.inputs(task.views(1), torch.float32)
    sheet = task.contact_sheet(inputs, batch)
    for number, (view, images) in enumerate(zip(task.views(1), inputs, strict=True)):
        assert torch.equal(sheet[..., 36 * number : 36 * number + 32], view.denormalise(images))
    assert sheet.shape == (3, 3, 32, 3 * 32 + 2 * 4) and 0 <= sheet.min() and sheet.max() == 1
