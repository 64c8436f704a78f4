"""Grey, solarisation and colour distortion against torchvision."""

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastpsl.kernels import colour
from fastpsl.kernels.colour import HUE, ORDERS, ColourDistortion, Grey, Solarise, shift_hue
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused import CPU_MODULES, CUDA_MODULES
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.views import ViewSpec

ADJUST = [
    functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation,
    functional.adjust_hue,
]  # fmt: skip
SIMCLR = ColourDistortion(0.8, 0.8, 0.8, 0.2, p=0.8)


def reference(images, draw):
    """Run torchvision's functions in float32, one image and one op after the other."""
    x = images.to(torch.float32) / (255 if images.dtype == torch.uint8 else 1)
    x = x.clone()
    for row in range(len(x)):
        for op in draw["order"][row].tolist() if draw["apply"][row] else []:
            x[row] = ADJUST[op](x[row], draw["factors"][row, op].item())
    return x


def make_draw(op, num, as_tensors):
    return as_tensors(op.draw(Keys(5, 1, np.arange(num, dtype=np.int64))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 17, 23), (1, 32, 32), (2, 1, 1)])
def test_equals_torchvision(dtype, shape, make_images, as_tensors, assert_close):
    images = make_images(*shape, dtype)
    draw = make_draw(SIMCLR, shape[0], as_tensors)
    assert_close(SIMCLR(images, draw), reference(images, draw))


@pytest.mark.parametrize("order", ORDERS.tolist())
def test_each_order(order, make_images, as_tensors, assert_close):
    op = ColourDistortion(0.8, 0.8, 0.8, 0.5, p=1)
    images = make_images(6, 9, 9, torch.float32)
    draw = make_draw(op, 6, as_tensors)
    draw["order"] = torch.tensor(order).repeat(6, 1)
    assert_close(op(images, draw), reference(images, draw))


def test_without_hue_and_without_anything(make_images, as_tensors, assert_close):
    images = make_images(20, 9, 9, torch.float32)
    for op in (ColourDistortion(0.4, 0.4, 0.4, 0, p=1), ColourDistortion(0, 0, 0, 0.1, p=1)):
        draw = make_draw(op, 20, as_tensors)
        assert_close(op(images, draw), reference(images, draw))
    nothing = ColourDistortion(0, 0, 0, 0, p=1)
    torch.testing.assert_close(nothing(images, make_draw(nothing, 20, as_tensors)), images, rtol=0, atol=0)


def test_not_applied_is_untouched(make_images, as_tensors):
    images = make_images(8, 11, 7, torch.float16)
    op = ColourDistortion(0.8, 0.8, 0.8, 0.2, p=0)
    assert torch.equal(op(images, make_draw(op, 8, as_tensors)), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("op_number", range(4))
def test_two_percent_of_a_factor_are_seen(op_number, dtype, make_images, as_tensors, assert_close):
    images = make_images(16, 17, 23, dtype)
    draw = make_draw(SIMCLR, 16, as_tensors)
    moved = draw | {"factors": draw["factors"].clone()}
    moved["factors"][:, op_number] *= 1.02
    with pytest.raises(AssertionError):
        assert_close(SIMCLR(images, moved), reference(images, draw))


@pytest.mark.parametrize("channel", range(3))
def test_two_percent_of_a_grey_weight_are_seen(channel, monkeypatch, make_images, as_tensors, assert_close):
    images = make_images(16, 17, 23, torch.float32)
    draw = make_draw(SIMCLR, 16, as_tensors)
    weights = list(colour.WEIGHTS)
    weights[channel] *= 1.02
    monkeypatch.setattr(colour, "WEIGHTS", tuple(weights))
    with pytest.raises(AssertionError):
        assert_close(SIMCLR(images, draw), reference(images, draw))


def test_hue_of_every_turn(make_images, assert_close):
    images = make_images(21, 16, 16, torch.float32)
    turns = torch.linspace(-0.5, 0.5, 21)
    expected = torch.stack([functional.adjust_hue(x, t.item()) for x, t in zip(images, turns, strict=True)])
    assert_close(shift_hue(images, turns), expected)
    with pytest.raises(AssertionError):
        assert_close(shift_hue(images, turns * 1.02), expected)


def test_draw_ranges_and_frequencies():
    draw = SIMCLR.draw(Keys(3, 0, np.arange(120_000, dtype=np.int64)))
    assert abs(draw["apply"].mean() - 0.8) < 0.005
    factors = draw["factors"]
    assert factors.dtype == np.float32 and draw["order"].dtype == np.int64 and draw["apply"].dtype == bool
    np.testing.assert_allclose(factors.min(0), [0.2, 0.2, 0.2, -0.2], atol=1e-3)
    np.testing.assert_allclose(factors.max(0), [1.8, 1.8, 1.8, 0.2], atol=1e-3)
    np.testing.assert_allclose(factors.mean(0), [1, 1, 1, 0], atol=0.01)
    columns = np.column_stack([factors, draw["apply"], draw["order"][:, 0]])
    assert np.abs(np.corrcoef(columns.T) - np.eye(6)).max() < 0.02
    _, counts = np.unique(draw["order"], axis=0, return_counts=True)
    assert len(counts) == 24 and counts.min() > 0.9 * 5000 and counts.max() < 1.1 * 5000
    assert ColourDistortion(1.5, 0, 0, 0).draw(Keys(3, 0, np.arange(9999)))["factors"][:, 0].min() >= 0
    assert HUE == 3


@pytest.mark.parametrize(
    "arguments, message",
    [((-1, 0, 0, 0), "brightness -1"), ((0, 0, 0, 0.6), "hue 0.6 turns"), ((0, 0, 0, 0, 2), "probability 2")],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.* given; allowed"):
        ColourDistortion(*arguments)


def applied_and_expected(dtype, shape, make_images):
    images = make_images(*shape, dtype)
    apply = torch.arange(shape[0]) % 3 != 1
    x = images.to(torch.float32) / (255 if dtype == torch.uint8 else 1)
    grey = functional.rgb_to_grayscale(x, num_output_channels=3)
    expected = torch.where(apply[:, None, None, None], grey, x)
    return Grey()(images, {"apply": apply}), expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 17, 23), (1, 32, 32), (2, 1, 1)])
def test_grey_equals_torchvision(dtype, shape, make_images, assert_close):
    assert_close(*applied_and_expected(dtype, shape, make_images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channel", range(3))
def test_two_percent_of_a_weight_are_seen(channel, dtype, monkeypatch, make_images, assert_close):
    weights = list(colour.WEIGHTS)
    weights[channel] *= 1.02
    monkeypatch.setattr(colour, "WEIGHTS", tuple(weights))
    with pytest.raises(AssertionError):
        assert_close(*applied_and_expected(dtype, (7, 17, 23), make_images))


def test_probability():
    keys = Keys(1, 2, np.arange(400_000, dtype=np.int64))
    bound = 5 * (0.2 * 0.8 / 400_000) ** 0.5
    apart = [abs(Grey(p).draw(keys)["apply"].mean() - 0.2) for p in (0.2, 0.2 * 1.02)]
    assert apart[0] < bound < apart[1]
    with pytest.raises(ValueError, match="probability -0.1 given"):
        Grey(-0.1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 17, 23), (1, 32, 32), (2, 1, 1), (0, 4, 4)])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_solarise_equals_torchvision(dtype, shape, threshold, make_images, assert_close):
    images = make_images(*shape, dtype)
    apply = torch.arange(shape[0]) % 3 != 1
    x = images.to(torch.float32) / (255 if dtype == torch.uint8 else 1)
    expected = torch.where(apply[:, None, None, None], functional.solarize(x, threshold), x)
    assert_close(Solarise(threshold=threshold)(images, {"apply": apply}), expected)


def test_bytes_from_128_on_are_inverted_as_by_pil() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[None, :, None]
    result = Solarise()(images, {"apply": torch.ones(1, dtype=torch.bool)})
    expected = [value if value < 128 else 255 - value for value in range(256)]
    assert (result * 255).round().int()[0, 0, 0].tolist() == expected


def test_probability_and_threshold():
    keys = Keys(1, 2, np.arange(400_000, dtype=np.int64))
    bound = 5 * (0.2 * 0.8 / 400_000) ** 0.5
    assert abs(Solarise(0.2).draw(keys)["apply"].mean() - 0.2) < bound
    with pytest.raises(ValueError, match="probability 1.5 given"):
        Solarise(1.5)
    with pytest.raises(ValueError, match="threshold 128 given"):
        Solarise(0.2, threshold=128)


def test_no_fused_kernel_takes_it_for_another_op() -> None:
    ops, view = (Flip(), Solarise()), ViewSpec(RandomResizedCrop(8), (Flip(), Solarise()))
    folders = {"fused_cpu": CPU_MODULES} | ({"fused_cuda": CUDA_MODULES} if find_spec("triton") else {})
    for folder, names in folders.items():
        for name in names:
            assert not importlib.import_module(f"fastpsl.kernels.{folder}.{name}").fits(ops)
    cpu = torch.device("cpu")
    with pytest.raises(
        ValueError, match="no fused kernel for Flip Solarise on cpu; use --augment-backend kornia"
    ):
        choose_augment("fused", [view], cpu)
    chosen = choose_augment("auto", [view], cpu)
    assert (chosen.path, chosen.reason) == ("torch", "no fused kernel for Flip Solarise on cpu")
