"""The CPU's fused colour, grey, blur and Sobel against the operations one by one, on equal draws."""

import importlib.util
import threading

import numba
import numpy as np
import pytest
import torch

from fastpsl.kernels import colour
from fastpsl.kernels.colour import ORDERS, WEIGHTS, ColourDistortion, Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused_cpu import photometric
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise, out_shape

STATISTICS = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    2: ((0.1, -0.2), (SOBEL_XY_STD, 0.9 * SOBEL_XY_STD)),
}
MEAN, STD = STATISTICS[3]
COLOUR = ColourDistortion(0.8, 0.8, 0.8, 0.2)
CHAINS = {
    "nothing": (),
    "flip": (Flip(),),
    "colour": (COLOUR,),
    "no hue": (ColourDistortion(0.8, 0.8, 0.8, 0.0, p=1),),
    "grey": (Grey(0.5),),
    "blur": (GaussianBlur(7),),
    "blur of one tap": (GaussianBlur(1, p=1),),
    "sobel": (Sobel(0.5),),
    "T2": (Flip(), COLOUR, Grey()),
    "T3": (Flip(), COLOUR, Grey(), GaussianBlur(5), Sobel(0.5)),
    "gradients": (SobelXY(),),
    "UIC": (Flip(), SobelXY()),
    "UIC, strong": (Flip(), COLOUR, Grey(), GaussianBlur(5), SobelXY()),
}


def make_draws(ops, num, as_tensors):
    keys = Keys(3, 1, np.arange(num, dtype=np.int64))
    return [as_tensors(op.draw(keys)) for op in ops]


def plain(images, ops, draws, dtype=torch.float32):
    for op, draw in zip(ops, draws, strict=True):
        images = op(images, draw)
    return normalise(images, *STATISTICS[images.shape[1]], dtype)


def fused(images, ops, draws, dtype=torch.float32, statistics=None):
    shape = out_shape(ops, images.shape)
    out = torch.full(shape, torch.nan, dtype=dtype).contiguous(memory_format=torch.channels_last)
    mean, std = statistics or STATISTICS[shape[1]]
    photometric.run(images, ops, draws, mean, std, out)
    return out


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num", "height", "width"), [(0, 9, 9), (1, 1, 1), (1, 4, 13), (16, 31, 18)])
def test_values_are_the_plain_path_s(
    name, dtype, num, height, width, make_images, as_tensors, assert_fused_close
):
    ops, images = CHAINS[name], make_images(num, height, width, torch.uint8)
    draws = make_draws(ops, num, as_tensors)
    before = images.clone()
    if any(isinstance(op, GaussianBlur) and op.kernel_px // 2 >= min(height, width) for op in ops):
        with pytest.raises(ValueError, match=f"{height} x {width} px given to a blur of"):
            fused(images, ops, draws, dtype)
        return
    out = fused(images, ops, draws, dtype)
    assert_fused_close(out, plain(images, ops, draws, dtype))
    assert torch.equal(images, before)


def test_every_order_of_a_distortion(make_images, as_tensors, assert_fused_close):
    ops, images = (ColourDistortion(0.8, 0.8, 0.8, 0.5, p=1),), make_images(24, 17, 11, torch.uint8)
    (draw,) = make_draws(ops, 24, as_tensors)
    draw["order"] = torch.from_numpy(ORDERS)
    assert_fused_close(fused(images, ops, [draw]), plain(images, ops, [draw]))


@pytest.mark.parametrize("turns", [-0.5, -1 / 3, -0.25, -1 / 6, 0.0, 1 / 6, 0.25, 1 / 3, 0.5])
def test_hue_at_the_corners_of_its_circle(turns, as_tensors, assert_fused_close):
    """All colours of seven levels per channel (pure, ties, greys), turned by whole sixths and others."""
    levels = torch.tensor([0, 1, 64, 127, 128, 254, 255], dtype=torch.uint8)
    images = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 7, 49)
    ops = (ColourDistortion(0, 0, 0, 0.5, p=1),)
    (draw,) = make_draws(ops, 1, as_tensors)
    draw["factors"] = torch.tensor([[1, 1, 1, turns]], dtype=torch.float32)
    assert_fused_close(fused(images, ops, [draw]), plain(images, ops, [draw]))


def test_any_strides_and_a_slice_of_a_larger_buffer(make_images, as_tensors, assert_fused_close):
    ops, large = CHAINS["T3"], make_images(6, 20, 24, torch.uint8)
    draws = make_draws(ops, 3, as_tensors)
    for images in (large[::2, :, 2:15, 5:21], large[::2].contiguous(), large[1::2].flip(2).transpose(2, 3)):
        out = torch.full((5, 3, *images.shape[2:]), 7.0).contiguous(memory_format=torch.channels_last)
        photometric.run(images, ops, draws, MEAN, STD, out[1:4])
        assert_fused_close(out[1:4], plain(images, ops, draws))
        assert (out[[0, 4]] == 7).all()


def test_what_is_mirrored_rises_where_it_fell(make_images, as_tensors, assert_fused_close):
    """Gradients of mirrored images, blurred and not, within a larger buffer."""
    ops, images = CHAINS["UIC, strong"], make_images(4, 12, 15, torch.uint8)
    draws = make_draws(ops, 4, as_tensors)
    draws[0]["flip"] = torch.tensor([False, True, False, True])
    draws[3]["apply"] = torch.tensor([False, False, True, True])
    out = torch.full((6, 2, 12, 15), 7.0).contiguous(memory_format=torch.channels_last)
    photometric.run(images, ops, draws, *STATISTICS[2], out[1:5])
    assert_fused_close(out[1:5], plain(images, ops, draws))
    assert (out[[0, 5]] == 7).all()


def test_threads_change_nothing(make_images, as_tensors, monkeypatch):
    """Neither torch's number of threads nor concurrent callers change a bit."""
    ops, images = CHAINS["T3"], make_images(40, 48, 48, torch.uint8)
    monkeypatch.setattr(photometric, "_BYTES_PER_THREAD", images.nbytes // 3)
    draws, threads_before = make_draws(ops, 40, as_tensors), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = fused(images, ops, draws)
        torch.set_num_threads(2)
        results = [fused(images, ops, draws)]
        callers = [
            threading.Thread(target=lambda: results.append(fused(images, ops, draws))) for _ in range(3)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
    finally:
        torch.set_num_threads(threads_before)
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)


def test_which_operations_fit():
    assert all(photometric.fits(ops) for ops in CHAINS.values())
    for ops in (
        (SobelXY(), Flip()),
        (Sobel(), SobelXY()),
        (Grey(), COLOUR),
        (Flip(), Flip()),
        (Lightness(),),
        (JigsawTiles(),),
        (COLOUR, Flip()),
    ):
        assert not photometric.fits(ops)


def test_statistics_of_other_channels_are_refused(make_images, as_tensors):
    images, ops = make_images(1, 8, 8, torch.uint8), CHAINS["T2"]
    out = torch.empty((1, 3, 8, 8)).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="given for 3 channels"):
        photometric.run(images, ops, make_draws(ops, 1, as_tensors), (0.5,), (0.2,), out)
    with pytest.raises(ValueError, match="given for 2 channels"):
        photometric.run(
            images, (SobelXY(),), [{}], MEAN, STD, out[:, :2].contiguous(memory_format=torch.channels_last)
        )


def test_it_is_compiled_once_for_all_operations(make_images, as_tensors):
    for ops in CHAINS.values():
        fused(make_images(2, 9, 9, torch.uint8), ops, make_draws(ops, 2, as_tensors))
    assert len(photometric.process_images.signatures) == 1


def test_the_loops_constants_are_those_of_the_operations():
    assert (photometric._CONTRAST, photometric._SATURATION, photometric._HUE) == (
        colour.CONTRAST, colour.SATURATION, colour.HUE,
    )  # fmt: skip
    assert [photometric._RED, photometric._GREEN, photometric._BLUE] == [
        np.float32(weight) for weight in WEIGHTS
    ]


@pytest.fixture
def uncompiled(monkeypatch):
    """Load the compiled functions again as plain Python, so that their constants can be moved."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    spec = importlib.util.spec_from_file_location("uncompiled", photometric.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(photometric, "process_images", module.process_images)
    return module


# _SIXTH chooses a multiple and changes no value, nor do 2 % of _REACH_SIGMAS (see the last test).
CONSTANTS = ("_RED", "_GREEN", "_BLUE", "_UNIT", "_ONE", "_TWO", "_FOUR", "_SIX", "_EIGHTH")
ARGUMENTS = ("mean", "std", "factors", "sigma")
STRONG = (ColourDistortion(0.8, 0.8, 0.8, 0.5, p=1), Grey(0.3), GaussianBlur(5))


@pytest.mark.parametrize(
    ("last", "name"),
    [(Sobel(0.4), name) for name in ("none", *CONSTANTS, *ARGUMENTS)]
    + [(SobelXY(), name) for name in ("none", "_THIRD", "_TWO", "_EIGHTH", *ARGUMENTS)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_constant_matters(
    last, name, uncompiled, monkeypatch, make_images, as_tensors, assert_fused_close
):
    """Moved by 2 %, each fails the comparison; unmoved, the same code passes it."""
    ops, images = (*STRONG, last), make_images(8, 9, 6, torch.uint8)
    draws = make_draws(ops, len(images), as_tensors)
    expected = plain(images, ops, draws)
    mean, std = (
        tuple((1.02 if part == name else 1) * value for value in values)
        for part, values in zip(("mean", "std"), STATISTICS[expected.shape[1]], strict=True)
    )
    for draw in draws:
        if name in draw:
            draw[name] = draw[name] * 1.02
    if hasattr(uncompiled, name):
        monkeypatch.setattr(uncompiled, name, np.float32(1.02) * getattr(uncompiled, name))
    result = fused(images, ops, draws, statistics=(mean, std))
    if name == "none":
        assert_fused_close(result, expected)
    else:
        with pytest.raises(AssertionError, match="off by"):
            assert_fused_close(result, expected)


def test_taps_are_left_out_where_they_weigh_nothing(as_tensors, assert_fused_close):
    """Edges from black to white, with sigmas for which the kernel holds all, some or none of the reach."""
    num, ops = 40, (GaussianBlur(9, p=1.0),)
    images = (torch.arange(23) // 3 % 2 * 255).to(torch.uint8).expand(num, 3, 21, 23)
    draws = make_draws(ops, num, as_tensors)
    draws[0]["sigma"] = torch.linspace(0.1, 2, num)
    assert_fused_close(fused(images, ops, draws), plain(images, ops, draws))
