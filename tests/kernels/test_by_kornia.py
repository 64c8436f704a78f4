"""The operations by Kornia against their definitions, and the table of differences in the documentation."""

import contextlib
import re
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import pytest
import torch
from typing_extensions import override

import fastpsl.kernels
from fastpsl.kernels import by_kornia
from fastpsl.kernels.colour import CONTRAST, ORDERS, SATURATION, ColourDistortion, Grey, Solarise, luma
from fastpsl.kernels.device_crops import crop_area
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY, gradient_size
from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Rotate45, Rotate90, Shift, WarpPair, warp
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness, lab, lightness
from fastpsl.kernels.normalise import normalise
from tests.fake_cuda import fake_cuda

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "one_decode.md"
SIDE = 33
OPS: dict[str, Any] = {
    "Flip": Flip(),
    "Rotate90": Rotate90(4),
    "Rotate90, half": Rotate90(2),
    "Rotate45": Rotate45(),
    "AllTurns": AllTurns(4),
    "AllTurns, half": AllTurns(2),
    "Shift": Shift(5),
    "Enlarge": Enlarge(70, 51),
    "WarpPair": WarpPair(SIDE),
    "WarpPair, affine": WarpPair(SIDE, "affine"),
    "ColourDistortion": ColourDistortion(0.8, 0.8, 0.8, 0.5, p=0.9),
    "Grey": Grey(0.5),
    "Lightness": Lightness(),
    "Solarise": Solarise(0.5, 0.3),
    "Sobel": Sobel(0.5),
    "SobelXY": SobelXY(),
    "GaussianBlur": GaussianBlur(9),
    "JigsawTiles": JigsawTiles(3, 11, 8, 500),
    "Hole": Hole(),
}
SQUARE = (Rotate90, Rotate45, AllTurns, WarpPair, JigsawTiles)
DTYPES = [torch.uint8, torch.float32, torch.float16, torch.bfloat16]
NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def rows():
    """Return the cells of the page's table by the operation's name."""
    table = PAGE.read_text().split("| operation | Kornia |")[1].split("\n\n")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {name: row for names, *row in cells for name in re.findall(r"`(\w+)`", names)}


def draw_of(op, num, as_tensors, seed=3):
    return as_tensors(op.draw(Keys(seed, 1, np.arange(num, dtype=np.int64))))


def shape_of(op):
    return (SIDE, SIDE if isinstance(op, SQUARE) else SIDE + 14)


def test_every_operation_has_a_row():
    exported = [getattr(fastpsl.kernels, name) for name in dir(fastpsl.kernels) if name[0].isupper()]
    ops = {op.__name__ for op in exported if "draw" in vars(op)}
    assert rows().keys() == ops | {"normalise"} and ops == {type(op).__name__ for op in OPS.values()}
    by_torch = {name for name, (functions, *_) in rows().items() if functions == "torch"}
    assert by_torch == ops - {op.__name__ for op in by_kornia.FORMS} - {"GaussianBlur"}


def test_the_functions_of_the_table_are_those_of_the_module():
    """GaussianBlur's definition has its own."""
    named = {name for functions, *_ in rows().values() for name in re.findall(r"`(\w+)`", functions)}
    source = Path(by_kornia.__file__).read_text()
    imported = re.findall(r"^from kornia\.\S+ import (.*?)(?: as \w+)?$", source, re.MULTILINE)
    assert named == {name for line in imported for name in line.split(", ")}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_equals_the_definition(op, batch, dtype, make_images, as_tensors, assert_close):
    images, draw = make_images(batch, *shape_of(op), dtype), draw_of(op, batch, as_tensors)
    before, expected = images.clone(), op(images, draw)
    result = by_kornia.apply(op, images, draw)
    assert_close(result, expected)
    assert torch.equal(images, before) and result.dtype == expected.dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    if isinstance(op, Flip | Rotate90 | Rotate45 | AllTurns | Shift):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_normalisation_equals_the_definition(batch, dtype, make_images, assert_close):
    images = make_images(batch, 33, 47, dtype)
    for to in DTYPES[1:]:
        assert_close(by_kornia.normalise(images, *NORM, to), normalise(images, *NORM, to))
    with pytest.raises(ValueError, match="given for 3 channels"):
        by_kornia.normalise(images, NORM[0], NORM[1][:2], torch.float32)


def test_differences_are_those_of_the_table(make_images, as_tensors):
    """In float32, over 48 images; another processor may add up in another order."""
    differences = dict.fromkeys(rows(), 0.0)
    for op in OPS.values():
        images, draw = make_images(48, *shape_of(op), torch.float32), draw_of(op, 48, as_tensors)
        worst = (by_kornia.apply(op, images, draw) - op(images, draw)).abs().max().item()
        differences[type(op).__name__] = max(worst, differences[type(op).__name__])
    images = make_images(48, 33, 47, torch.uint8)
    results = [function(images, *NORM, torch.float32) for function in (by_kornia.normalise, normalise)]
    differences["normalise"] = (results[0] - results[1]).abs().max().item()
    for name, (functions, difference, _) in rows().items():
        stated = 0.0 if functions == "torch" else float(difference)
        assert stated <= 5e-6 and differences[name] <= 2 * stated, (name, differences[name])


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_gradients_equal_those_of_the_definition(op, as_tensors):
    """Of images without two equal channels, where hue has none."""
    generator = torch.Generator().manual_seed(4)
    images = 0.05 + 0.9 * torch.rand(5, 3, *shape_of(op), generator=generator)
    draw, gradients = draw_of(op, 5, as_tensors), list[torch.Tensor]()
    for function in (by_kornia.apply, lambda op, *arguments: op(*arguments)):
        x = images.clone().requires_grad_()
        out = function(op, x, draw)
        weights = torch.rand(out.shape, generator=torch.Generator().manual_seed(5))
        gradients.append(*torch.autograd.grad((out * weights).sum(), x))
    error = (gradients[0] - gradients[1]).abs()
    assert (error <= 1e-5 * (1 + 10 * gradients[1].abs())).all(), error.max()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_the_host_never_waits_for_the_device(op, dtype, make_images, as_tensors):
    images, draw = make_images(3, SIDE, SIDE, dtype), draw_of(op, 3, as_tensors)
    with fake_cuda() as cuda:
        draw_on_device = {name: values.to(cuda.device) for name, values in draw.items()}
        on_device = images.to(cuda.device)
        with cuda.watched() as record:
            out = by_kornia.apply(op, on_device, draw_on_device)
            num = out.shape[1]
            out = by_kornia.normalise(out, (0.5,) * num, (0.2,) * num, torch.float16)
    assert not record.waits and out.is_cuda, record.waits


@pytest.mark.parametrize("op", [Sobel(1.0), SobelXY()], ids=["Sobel", "SobelXY"])
def test_autocast_does_not_round(op, make_images, as_tensors, assert_close):
    images, draw = make_images(4, 20, 21, torch.float32), draw_of(op, 4, as_tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = by_kornia.apply(op, images, draw)
    assert_close(result, op(images, draw))


def test_an_operation_of_ones_own_is_called(make_images):
    class Inverted(Grey):
        @override
        def __call__(self, images, draw):
            return 255 - images

    images = make_images(2, 9, 9, torch.uint8)
    assert torch.equal(by_kornia.apply(Inverted(), images, {}), 255 - images)


def colour_alone(which, x, factors):
    """Return one of the parts of ColourDistortion, the others with factors that change nothing."""
    all_factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(x), 1)
    all_factors[:, which] = factors
    orders = torch.from_numpy(ORDERS[:1]).repeat(len(x), 1)
    draw = {"apply": torch.ones(len(x), dtype=torch.bool), "order": orders}
    return ColourDistortion(1, 1, 1, 0)(x, draw | {"factors": all_factors})


def perspective(x, matrices):
    """Return warped images by `warp_perspective`, whose pixels lie at whole numbers, black outside."""
    half = torch.eye(3, dtype=torch.float64)
    half[:2, 2] = 0.5
    onto = half.inverse() @ matrices.double().inverse() @ half
    out = kornia.geometry.transform.warp_perspective(x, onto.float(), x.shape[-2:], padding_mode="border")
    return torch.where(warp(torch.ones_like(x), matrices, 0.0) > 0, out, 0.0)


def test_what_kornia_computes_otherwise(make_images, as_tensors):
    """The differences for which the page gives reasons, on 8 images of 225 px."""
    x, transform, enhance = make_images(8, 225, 225, torch.float32), kornia.geometry.transform, kornia.enhance
    factors, turns = torch.linspace(0.2, 1.8, 8), torch.arange(8) % 4
    shift, pair = draw_of(Shift(9), 8, as_tensors), draw_of(WarpPair(225), 8, as_tensors)
    boxes = torch.tensor([[10, 20, 150, 180]]).repeat(8, 1)
    corners = torch.tensor([[[20.0, 10], [199, 10], [199, 159], [20, 159]]]).repeat(8, 1, 1)
    area = crop_area((255 * x).round().byte().permute(0, 2, 3, 1), boxes, 64).permute(0, 3, 1, 2) / 255
    found = {
        "rotate": (transform.rotate(x, 90.0 * turns), Rotate90(4)(x, {"turns": turns})),
        "translate": (transform.translate(x, 9.0 - shift["shift"].flip(1)), Shift(9)(x, shift)),
        "warp_perspective": (perspective(x, pair["matrix"]), warp(x, pair["matrix"], 0.0)),
        "adjust_contrast_with_mean_subtraction": (
            enhance.adjust_contrast_with_mean_subtraction(x, factors), colour_alone(CONTRAST, x, factors)
        ),
        "adjust_saturation_with_gray_subtraction": (
            enhance.adjust_saturation_with_gray_subtraction(x, factors), colour_alone(SATURATION, x, factors)
        ),
        "rgb_to_grayscale": (kornia.color.rgb_to_grayscale(x), luma(x)),
        "rgb_to_lab": (kornia.color.rgb_to_lab(x)[:, :1] / 100, lightness(x)),
        "sobel": (kornia.filters.sobel(x), gradient_size(x)),
        "crop_and_resize": (transform.crop_and_resize(x, corners, (64, 64)), area),
    }  # fmt: skip
    stated = dict(re.findall(r"`(\w+)` differs by ([\d.]+(?:e-\d+)?)\b", PAGE.read_text()))
    measured = {name: (one - other).abs().max().item() for name, (one, other) in found.items()}
    colours = (kornia.color.rgb_to_lab(x) - lab(x)).abs().max().item()
    assert 0.01 < colours < 0.03, colours
    assert stated.keys() == measured.keys()
    for name, value in measured.items():
        assert float(stated[name]) / 2 < value < 2 * float(stated[name]), (name, value)


@pytest.mark.parametrize("name", ["spatial_gradient", "gaussian_blur2d"])
def test_what_kornia_makes_the_host_wait_for(name):
    with fake_cuda() as cuda:
        x, sigma = torch.zeros(2, 3, 9, 9, device=cuda.device), torch.ones(2, 2, device=cuda.device)
        with cuda.watched() as record:
            arguments = ((3, 3), sigma) if name == "gaussian_blur2d" else ()
            with contextlib.suppress(torch._subclasses.fake_tensor.DataDependentOutputException):
                getattr(kornia.filters, name)(x, *arguments)
    assert record.waits
