"""The fused colour, blur and Sobel chain against the operations one by one, on the same draws."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from fastpsl.kernels.colour import ORDERS, ColourDistortion, Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused_cuda import photometric
from fastpsl.kernels.geometry import Flip, Rotate90
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise, out_shape
from tests.slow import slow

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Without a GPU the interpreter runs the kernels.
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
HALVES = (torch.float16, torch.bfloat16)
FLIP, COLOUR, GREY = Flip(0.5), ColourDistortion(0.8, 0.8, 0.8, 0.2, p=0.7), Grey(0.3)
LIGHTNESS, BLUR, SOBEL, XY = Lightness(), GaussianBlur(9, p=0.5), Sobel(0.4), SobelXY()
SIMCLR = (FLIP, COLOUR, GREY, BLUR, SOBEL)
UIC = (FLIP, COLOUR, GREY, BLUR, XY)
CHAINS = [
    (),
    (FLIP,),
    (COLOUR,),
    (GREY, SOBEL),
    (FLIP, COLOUR, GREY),
    (FLIP, ColourDistortion(0.4, 0, 0.4, 0, p=0.7), BLUR),
    (FLIP, ColourDistortion(0, 0.4, 0, 0, p=0.7), LIGHTNESS),
    (FLIP, Sobel(1.0)),
    (LIGHTNESS,),
    (FLIP, COLOUR, GREY, LIGHTNESS, BLUR, SOBEL),
    (FLIP, GREY, LIGHTNESS, Sobel(1.0)),
    (GaussianBlur(1, p=1.0),),
    (XY,),
    (FLIP, XY),
    (COLOUR, XY),
    (FLIP, BLUR, XY),
    (GREY, GaussianBlur(1, p=1.0), XY),
    UIC,
]
# `make test` runs each operation and each end: as bytes, blurred, as one channel, as gradients of either
# kind.
QUICK = (
    (),
    (FLIP, ColourDistortion(0.4, 0, 0.4, 0, p=0.7), BLUR),
    (LIGHTNESS,),
    (FLIP, COLOUR, GREY, LIGHTNESS, BLUR, SOBEL),
    (COLOUR, XY),
    UIC,
)


def statistics(ops: Sequence[object]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std of the result's channels."""
    if XY in ops:
        return (0.0, 0.0), (SOBEL_XY_STD, SOBEL_XY_STD)
    return ((0.449,), (0.226,)) if LIGHTNESS in ops else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_draws(ops, batch, as_tensors):
    return [as_tensors(op.draw(Keys(7, 2, np.arange(batch, dtype=np.int64)))) for op in ops]


def plain(images, ops, draws):
    """Run the operations one after the other on the CPU, in float32."""
    for op, draw in zip(ops, draws, strict=True):
        images = op(images, draw)
    return normalise(images, *statistics(ops), torch.float32)


def fused(images, ops, draws, dtype):
    """Run the fused kernel over NaN, with the result between images that must not change."""
    batch, *shape = out_shape(ops, images.shape)
    whole = torch.full((batch + 2, *shape), torch.nan, dtype=dtype, device=DEVICE)
    whole = whole.contiguous(memory_format=torch.channels_last)
    device_draws = [{name: values.to(DEVICE) for name, values in draw.items()} for draw in draws]
    photometric.run(images.to(DEVICE), ops, device_draws, *statistics(ops), whole[1:-1])
    assert whole[0].isnan().all() and whole[-1].isnan().all()
    return whole[1:-1].cpu()


@pytest.mark.parametrize("dtype", [torch.float32, *map(slow, HALVES)], ids=str)
@pytest.mark.parametrize(
    "ops",
    [ops if ops in QUICK else slow(ops) for ops in CHAINS],
    ids=lambda ops: "-".join(type(op).__name__ for op in ops) or "none",
)
def test_equals_the_operations(ops, dtype, make_images, as_tensors, assert_fused_close):
    if dtype == torch.bfloat16 and (ops and ops[-1] not in (BLUR, COLOUR) and ops not in ((FLIP, XY), UIC)):
        pytest.skip("bfloat16 differs from float16 in the last store alone")
    assert photometric.fits(ops)
    images, draws = make_images(4, 19, 21, torch.uint8), make_draws(ops, 4, as_tensors)
    assert_fused_close(fused(images, ops, draws, dtype), plain(images, ops, draws))


mixes = pytest.mark.parametrize(
    "dtype, shape",
    [
        slow(torch.float32, (19, 20)),
        (torch.float16, (35, 35)),
        slow(torch.float16, (48, 48)),
    ],
    ids=str,
)


@mixes
def test_every_mix_of_choices(dtype, shape, make_images, as_tensors, assert_fused_close):
    """All eight combinations of colour, blur and Sobel, over more than one tile in both directions."""
    images, draws = make_images(8, *shape, torch.uint8), make_draws(SIMCLR, 8, as_tensors)
    bits = torch.arange(8)
    for place, op in ((0, 1), (1, 3), (2, 4)):
        draws[op]["apply"] = (bits >> place) % 2 == 1
    assert_fused_close(fused(images, SIMCLR, draws, dtype), plain(images, SIMCLR, draws))


@mixes
def test_gradients_of_every_mix_of_choices(dtype, shape, make_images, as_tensors, assert_fused_close):
    """All eight combinations of flip, colour and blur; a mirror changes the sign of a gradient."""
    images, draws = make_images(8, *shape, torch.uint8), make_draws(UIC, 8, as_tensors)
    bits = torch.arange(8)
    for place, (op, name) in enumerate(((0, "flip"), (1, "apply"), (3, "apply"))):
        draws[op][name] = (bits >> place) % 2 == 1
    assert_fused_close(fused(images, UIC, draws, dtype), plain(images, UIC, draws))


@pytest.mark.parametrize("dtype", [torch.float16, *map(slow, (torch.float32, torch.bfloat16))], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 1, 1), (2, 1, 40), (2, 33, 1), (1, 2, 3), slow((2, 33, 66)), (0, 9, 9)], ids=str
)
def test_gradients_of_bytes(dtype, shape, make_images, as_tensors, assert_fused_close):
    """Directly from bytes nothing is rounded before the result, because sums of bytes are exact.

    The images may begin at any address.
    """
    ops, (batch, *size) = (FLIP, XY), shape
    images, draws = make_images(batch + 1, *size, torch.uint8)[1:], make_draws(ops, batch, as_tensors)
    draws[0]["flip"] = torch.arange(shape[0]) % 2 == 1
    out, expected = fused(images, ops, draws, dtype), plain(images, ops, draws)
    assert_fused_close(out, expected)
    if shape[0] and dtype != torch.bfloat16:
        relative = 2**-11 if dtype == torch.float16 else 0.0
        error = (out.double() - expected.double()).abs() - relative * expected.abs()
        assert error.max() < 1e-4


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.float16], ids=str)
@pytest.mark.parametrize(
    "ops",
    [slow((FLIP, XY)), slow((GREY, XY)), (GaussianBlur(9, p=1.0), XY)],
    ids=["bytes", "sharp", "blurred"],
)
def test_flat_images_have_no_gradients(ops, dtype, as_tensors):
    """Gradients are below a quarter of a level of 255, also at the border."""
    images = torch.tensor([0, 77, 200, 255], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 21, 30)
    assert (fused(images, ops, make_draws(ops, 4, as_tensors), dtype) * SOBEL_XY_STD).abs().max() < 0.25 / 255


def test_each_order(make_images, as_tensors, assert_fused_close):
    """All 24 orders, with hue shifts of up to half a turn."""
    ops = (ColourDistortion(0.8, 0.8, 0.8, 0.5, p=1.0),)
    images, draws = make_images(24, 11, 10, torch.uint8), make_draws(ops, 24, as_tensors)
    draws[0]["order"] = torch.from_numpy(ORDERS)
    assert_fused_close(fused(images, ops, draws, torch.float32), plain(images, ops, draws))


@pytest.mark.parametrize("turns", [-0.5, -1 / 6, 0.0, 1 / 3, 0.5])
def test_hue_where_channels_tie(turns, as_tensors, assert_fused_close):
    """Every colour of four levels: greys, pure colours, and each kind of tie."""
    levels = torch.tensor([0, 1, 128, 255], dtype=torch.uint8)
    images = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8)
    ops = (ColourDistortion(0, 0, 0, 0.5, p=1.0),)
    draws = make_draws(ops, 1, as_tensors)
    draws[0]["factors"] = torch.tensor([[1.0, 1.0, 1.0, turns]])
    assert_fused_close(fused(images, ops, draws, torch.float32), plain(images, ops, draws))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 40), (1, 33, 2)])
def test_small_and_thin(shape, make_images, as_tensors, assert_fused_close):
    ops = (FLIP, COLOUR, Sobel(1.0))
    images, draws = make_images(*shape, torch.uint8), make_draws(ops, shape[0], as_tensors)
    assert_fused_close(fused(images, ops, draws, torch.float16), plain(images, ops, draws))


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.float16], ids=str)
@pytest.mark.parametrize("kernel_px, shape", [(51, (26, 29)), slow(23, (12, 48)), slow(33, (17, 17))])
def test_kernels_up_to_the_largest_that_is_allowed(
    kernel_px, shape, dtype, make_images, as_tensors, assert_fused_close
):
    ops = (GaussianBlur(kernel_px, sigma=(2.0, 8.0), p=1.0), Sobel(0.5))
    images, draws = make_images(2, *shape, torch.uint8), make_draws(ops, 2, as_tensors)
    draws[1]["apply"] = torch.tensor([False, True])
    assert_fused_close(fused(images, ops, draws, dtype), plain(images, ops, draws))


def test_flat_images_stay_flat(as_tensors):
    """Taps are rounded to halves, but their sum stays 1. 200 / 255 is off its half by 2^-13."""
    ops = (GaussianBlur(23, p=1.0),)
    images = torch.full((6, 3, 24, 24), 200, dtype=torch.uint8)
    draws = make_draws(ops, 6, as_tensors)
    error = fused(images, ops, draws, torch.float16) - plain(images, ops, draws)
    assert error.abs().max() < 4.5 * 2**-12 + 2 * 2**-11


@pytest.mark.parametrize(
    "take",
    [lambda x: x.contiguous(), lambda x: x[::2], lambda x: x[:, :, 1:, :-2], lambda x: x.flip(1)],
    ids=["planar", "strided batch", "part", "flipped channels"],
)
def test_any_strides(take, make_images, as_tensors, assert_fused_close):
    images = take(make_images(4, 20, 23, torch.uint8))
    before, ops = images.clone(), SIMCLR[:3]
    draws = make_draws(ops, len(images), as_tensors)
    assert_fused_close(fused(images, ops, draws, torch.float16), plain(images, ops, draws))
    assert torch.equal(images, before)


def test_no_samples(make_images, as_tensors):
    images, draws = make_images(0, 12, 12, torch.uint8), make_draws(SIMCLR, 0, as_tensors)
    assert fused(images, SIMCLR, draws, torch.float16).shape == (0, 3, 12, 12)


def test_equal_twice(make_images, as_tensors, assert_fused_close):
    """The result is right and always has the same bits: no sum depends on the order of the programs."""
    images, draws = make_images(3, 20, 33, torch.uint8), make_draws(SIMCLR, 3, as_tensors)
    once = fused(images, SIMCLR, draws, torch.float16)
    assert torch.equal(once, fused(images, SIMCLR, draws, torch.float16))
    assert_fused_close(once, plain(images, SIMCLR, draws))


def test_what_fits():
    assert photometric.fits(SIMCLR) and photometric.fits(()) and photometric.fits((LIGHTNESS,))
    assert photometric.fits(UIC) and photometric.fits((FLIP, XY)) and photometric.fits((XY,))
    assert not photometric.fits((LIGHTNESS, XY)) and not photometric.fits((SOBEL, XY))
    assert not photometric.fits((COLOUR, FLIP)) and not photometric.fits((SOBEL, BLUR))
    assert not photometric.fits((FLIP, FLIP)) and not photometric.fits((FLIP, Rotate90(4)))
    assert not photometric.fits((JigsawTiles(3, 11, 8, 500),))


def test_shapes_and_what_is_refused(make_images):
    assert out_shape(SIMCLR, (5, 3, 30, 20)) == (5, 3, 30, 20)
    assert out_shape((LIGHTNESS, BLUR), (5, 3, 30, 20)) == (5, 1, 30, 20)
    assert out_shape(UIC, (5, 3, 30, 20)) == (5, 2, 30, 20)
    images = make_images(1, 4, 30, torch.uint8)
    with pytest.raises(ValueError, match="images of 4 x 30 px given to a blur of 9 px; allowed are") as error:
        out_shape((BLUR,), images.shape)
    with pytest.raises(ValueError) as op_error:
        BLUR(images, {})
    assert str(error.value) == str(op_error.value)
    out = torch.empty(1, 1, 4, 30).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="given for 1 channels; allowed is one value per channel"):
        photometric.run(images, (LIGHTNESS,), ({},), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), out)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="waiting needs a device to wait for")
def test_nothing_waits(make_images, as_tensors):
    images = make_images(2, 24, 24, torch.uint8).to(DEVICE)
    device_draws = [
        {name: values.to(DEVICE) for name, values in d.items()} for d in make_draws(SIMCLR, 2, as_tensors)
    ]
    out = torch.empty(2, 3, 24, 24, device=DEVICE).contiguous(memory_format=torch.channels_last)
    photometric.run(images, SIMCLR, device_draws, *statistics(SIMCLR), out)
    torch.cuda.set_sync_debug_mode("error")
    try:
        photometric.run(images, SIMCLR, device_draws, *statistics(SIMCLR), out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("height, width", [(70, 71), (90, 130)], ids=["two blocks", "three"])
def test_contrast_sees_all_of_an_image(height, width, as_tensors, assert_fused_close):
    """The mean is added up in blocks of 4,096 pixels. Rows go from bright to dark, so all blocks differ."""
    rows = torch.linspace(250, 5, height)[:, None] * torch.linspace(1, 0.6, width)
    images = torch.stack([rows, rows.flip(0)])[:, None].expand(-1, 3, -1, -1).to(torch.uint8)
    ops = (ColourDistortion(0.0, 0.9, 0.0, 0.0, p=1.0),)
    draws = make_draws(ops, 2, as_tensors)
    assert_fused_close(fused(images, ops, draws, torch.float32), plain(images, ops, draws))
