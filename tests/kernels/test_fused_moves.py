"""Shift and Flip with other operations, AET's pairs and enlarged images, by Triton against one by one."""

from types import ModuleType

import numpy as np
import pytest
import torch

from tests.slow import slow

tl = pytest.importorskip("triton.language", reason="triton is not installed")
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, Sobel, SobelXY
from fastpsl.kernels.fused_cuda import geometric, prepared, shifted, warped
from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Rotate90, Shift, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise, out_shape
from tests.kernels.close_calls import close_calls, one_by_one

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Without a GPU the interpreter runs the kernels.
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS = {1: (MEAN[:1], STD[:1]), 2: ((0.1, -0.2), (SOBEL_XY_STD,) * 2), 3: (MEAN, STD)}
SHIFT, FLIP, SIDE = Shift(3), Flip(), 13
CHAINS: dict[str, tuple[ModuleType, tuple[object, ...]]] = {
    "nothing": (shifted, ()),
    "shift": (shifted, (SHIFT,)),
    "plain": (shifted, (SHIFT, FLIP)),
    "hole": (shifted, (Hole(0.4),)),
    "flip, hole": (shifted, (FLIP, Hole(0.4, (1.0, 0.0, 0.501)))),
    "context": (shifted, (SHIFT, FLIP, Hole())),
    "colorization": (shifted, (SHIFT, FLIP, Lightness())),
    "rotation": (geometric, (SHIFT, FLIP, AllTurns(4))),
    "flip, half turns": (geometric, (FLIP, AllTurns(2))),
    "shift, one turn": (geometric, (SHIFT, Rotate90(4))),
    "AET": (warped, (SHIFT, FLIP, WarpPair(SIDE))),
    "flip, affine": (warped, (FLIP, WarpPair(SIDE, "affine"))),
    "pair": (warped, (WarpPair(SIDE),)),
    "gradients": (prepared, (SHIFT, FLIP, SobelXY())),
    "shift, Sobel": (prepared, (SHIFT, Sobel(0.5))),
    "enlarged": (prepared, (Enlarge(20, 15),)),
    "enlarged, gradients": (prepared, (Enlarge(20, 15), SobelXY())),
}
SQUARE = ("rotation", "shift, one turn", "AET", "flip, affine", "pair")
every_chain = pytest.mark.parametrize("name", CHAINS)


def make_draws(ops, num, as_tensors):
    """Return the operations' draws, with every other image flipped, from the first on."""
    draws = [as_tensors(op.draw(Keys(2, 0, np.arange(num, dtype=np.int64)))) for op in ops]
    for draw in draws:
        if "flip" in draw:
            draw["flip"] = torch.arange(num) % 2 == 0
    return draws


def normalised(images, dtype):
    out = normalise(images, *STATISTICS[images.shape[1]], torch.float32)
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        # Triton's interpreter truncates where a GPU rounds.
        out = (out.view(torch.int32) & -(2**16)).view(torch.float32)
    return out.to(dtype)


def fused(module, images, ops, draws, dtype=torch.float32):
    """Run the fused kernel, with the result between images that must not change."""
    shape = out_shape(ops, images.shape)
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, dtype=dtype, device=DEVICE)
    whole = whole.contiguous(memory_format=torch.channels_last)
    device_draws = [{k: v.to(DEVICE) for k, v in draw.items()} for draw in draws]
    module.run(images.to(DEVICE), ops, device_draws, *STATISTICS[shape[1]], whole[1:-1])
    assert whole[0].isnan().all() and whole[-1].isnan().all()
    assert not whole[1:-1].isnan().any()
    return whole[1:-1].cpu()


@pytest.fixture
def check(assert_fused_close):
    """Return a check that `out` equals the operations one after the other.

    Values that are rounded from near a half may be off by a level.
    """

    def compare(out, images, ops, draws):
        expected = normalised(one_by_one(images, ops, draws), out.dtype)
        close = close_calls(images, ops, draws)
        assert close.sum() <= 0.5 * close.numel()
        level = 1 if out.shape[1] == 3 else 0.5  # because a gradient has at most a sixth of a byte
        level *= 1.2 / (255 * min(STATISTICS[out.shape[1]][1]))
        assert torch.allclose(out[close].float(), expected[close].float(), rtol=2**-7, atol=level)
        assert_fused_close(torch.where(close, expected, out), expected)

    return compare


@every_chain
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        *map(slow, (torch.float32, torch.bfloat16)),
    ],
)
def test_equals_the_operations(name, dtype, make_images, as_tensors, check):
    """The size is odd, and not square if the chain allows it."""
    module, ops = CHAINS[name]
    images = make_images(3, SIDE if name in SQUARE else SIDE - 2, SIDE, torch.uint8)
    before, draws = images.clone(), make_draws(ops, 3, as_tensors)
    out = fused(module, images, ops, draws, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    check(out, images, ops, draws)


@every_chain
@pytest.mark.parametrize("num", [0, 1])
def test_few_images(name, num, make_images, as_tensors, check):
    """No image, and one that is larger than a program handles."""
    module, ops = CHAINS[name]
    side = SIDE if module is warped else 34
    images, draws = make_images(num, side, side, torch.uint8), make_draws(ops, num, as_tensors)
    out = fused(module, images, ops, draws)
    assert out.shape == out_shape(ops, images.shape) and bool(len(out)) == bool(num)
    if num:
        check(out, images, ops, draws)


def test_pairs_of_more_than_a_programs_share(make_images, as_tensors, check):
    ops, images = (SHIFT, FLIP, WarpPair(35)), make_images(1, 35, 35, torch.uint8)
    draws = make_draws(ops, 1, as_tensors)
    check(fused(warped, images, ops, draws), images, ops, draws)


def test_every_shift(make_images, as_tensors, check):
    """All shifts that max_px allows, of images so small that some become black; flipped and not."""
    num, ops = 49, (SHIFT, FLIP)
    images = make_images(2 * num, 2, 3, torch.uint8)
    draws = make_draws(ops, 2 * num, as_tensors)
    draws[0]["shift"] = torch.cartesian_prod(torch.arange(7), torch.arange(7)).repeat_interleave(2, 0)
    check(fused(shifted, images, ops, draws), images, ops, draws)
    assert (one_by_one(images, ops, draws)[::2].flatten(1).amax(1) == 0).any()


@pytest.mark.filterwarnings("ignore:divide by zero")  # from numpy in Triton's interpreter
def test_where_a_copy_comes_from_nowhere(make_images, as_tensors, check):
    """Grey lies outside the source, on the horizon and behind it; half a pixel inside, the edge's pixels."""
    ops, images = (WarpPair(8),), make_images(4, 8, 8, torch.uint8)
    draws = make_draws(ops, 4, as_tensors)
    draws[0]["matrix"] = torch.tensor(
        [
            [[1, 0, 20], [0, 1, 0], [0, 0, 1]],  # all outside
            [[1, 0, 0], [0, 1, 0], [1, 0, -3.5]],  # w = 0 at x = 3.5, below 0 left of it
            [[0.9, 0, 0], [0, 0.9, 0.2], [0, 0, 1]],
            [[1, 0, -0.25], [0, 1, 0.25], [0, 0, 1]],
        ],
        dtype=torch.float32,
    )
    check(fused(warped, images, ops, draws), images, ops, draws)
    copies = one_by_one(images, ops, draws)[1::2]
    assert (copies[0] == 128).all() and (copies[1] == 128).any() and (copies[1] != 128).any()


@pytest.mark.parametrize("name", ["context", "colorization", "rotation", "AET", "gradients", "enlarged"])
def test_any_strides(name, make_images, as_tensors):
    """The images and the draws have any strides."""
    module, ops = CHAINS[name]
    large = make_images(4, SIDE, SIDE + 3, torch.uint8)
    draws = make_draws(ops, 2, as_tensors)
    apart = [{k: torch.stack([v, v.flip(0)], -1)[..., 0] for k, v in draw.items()} for draw in draws]
    images = large[::2, :, :, 3:]
    expected = fused(module, images.contiguous(), ops, draws)
    assert torch.equal(fused(module, images, ops, apart), expected)


def test_what_fits():
    for module, ops in CHAINS.values():
        assert module.fits(ops)
    tiles, colour = JigsawTiles(), ColourDistortion(0.4, 0.4, 0.4, 0.1)
    others: list[tuple[object, ...]] = [
        (FLIP, SHIFT), (SHIFT, FLIP, Grey()), (Hole(), FLIP), (WarpPair(8), FLIP), (SHIFT, FLIP, tiles),
    ]  # fmt: skip
    assert not any(module.fits(ops) for ops in others for module in (geometric, shifted, warped))
    assert prepared.fits((SHIFT, FLIP, colour)) and prepared.fits((Enlarge(9, 8), Lightness()))
    others = [(), (FLIP,), (SHIFT, Enlarge(9, 8)), (SHIFT, Hole()), (Enlarge(9, 8), AllTurns(4))]
    assert not any(prepared.fits(ops) for ops in others)


@pytest.mark.parametrize(
    ("module", "ops", "size"),
    [
        (shifted, (FLIP, Hole(0.05)), (8, 8)),
        (shifted, (Hole(0.5, (0.5,)),), (8, 8)),
        (geometric, (SHIFT, FLIP, AllTurns(4)), (8, 9)),
        (warped, (FLIP, WarpPair(8)), (8, 9)),
    ],
)
def test_what_the_operation_refuses_is_refused_in_its_words(module, ops, size, make_images, as_tensors):
    images = make_images(2, *size, torch.uint8)
    with pytest.raises(ValueError) as op_error:
        one_by_one(images, ops, make_draws(ops, 2, as_tensors))
    with pytest.raises(ValueError) as module_error:
        out_shape(ops, images.shape)
    assert str(module_error.value) == str(op_error.value)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")
@every_chain
def test_the_host_never_waits(name, make_images, as_tensors):
    module, ops = CHAINS[name]
    images = make_images(2, SIDE, SIDE, torch.uint8).to(DEVICE)
    draws = [{k: v.to(DEVICE) for k, v in draw.items()} for draw in make_draws(ops, 2, as_tensors)]
    shape = out_shape(ops, images.shape)
    out = torch.empty(shape, device=DEVICE).contiguous(memory_format=torch.channels_last)
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.run(images, ops, draws, *STATISTICS[shape[1]], out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# INTEGERS rounds by being added, and 2 % more changes nothing. Four times as much rounds to fours.
MOVED = {"UNIT": 1.02, "GREY": 1.02, "INTEGERS": 4.0}


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a compiled kernel keeps its constants")
@pytest.mark.parametrize(
    "name, constant",
    [("colorization", "UNIT"), ("AET", "GREY"), ("AET", "INTEGERS"), ("enlarged", "INTEGERS")],
)
def test_a_constant_that_moves_is_seen(name, constant, monkeypatch, make_images, as_tensors, check):
    module, ops = CHAINS[name]
    value = getattr(module, constant).value * MOVED[constant]
    monkeypatch.setattr(module, constant, tl.constexpr(value))
    images, draws = make_images(3, SIDE, SIDE, torch.uint8), make_draws(ops, 3, as_tensors)
    out = fused(module, images, ops, draws)
    with pytest.raises(AssertionError):
        check(out, images, ops, draws)
