"""The contract of all ops: dtypes, channels-last, batch 0, independent samples, no wait for the device."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.colour import ORDERS, ColourDistortion, Grey, Solarise
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Rotate45, Rotate90, Shift, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.normalise import normalise, out_shape
from tests.fake_cuda import fake_cuda

MOVES = [Flip(), Rotate90(4), Rotate90(2), Rotate45(), AllTurns(4), AllTurns(2), JigsawTiles(3, 11, 8, 500)]
MOVES += [WarpPair(33), WarpPair(33, "affine"), Hole()]
CHANGES = [ColourDistortion(0.8, 0.8, 0.8, 0.2), Grey(0.5), GaussianBlur(9), Sobel(0.5), SobelXY()]
CHANGES += [Solarise(0.5)]
OPS = MOVES + CHANGES
RANDOM = [op for op in OPS if not isinstance(op, AllTurns | SobelXY | Hole)]
DTYPES = [torch.uint8, torch.float32, torch.float16, torch.bfloat16]
NAMES = [type(op).__name__ for op in OPS]


def keys(num):
    return Keys(9, 4, np.arange(num, dtype=np.int64))


def num_channels(op):
    return 2 if isinstance(op, SobelXY) else 3


def num_images(op):
    if isinstance(op, AllTurns):
        return op.num
    return {JigsawTiles: 9, WarpPair: 2}.get(type(op), 1)


def normalised(op, images):
    num = num_channels(op)
    return normalise(images, (0.5,) * num, (0.2,) * num, torch.float16)


@pytest.mark.parametrize("op", OPS, ids=NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_dtype_layout_and_range(op, dtype, batch, layout, make_images, as_tensors):
    images = make_images(batch, 33, 33, dtype).contiguous(memory_format=layout)
    before = images.clone()
    out = op(images, as_tensors(op.draw(keys(batch))))
    assert torch.equal(images, before)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == (torch.float32 if op in CHANGES and dtype == torch.uint8 else dtype)
    side = 8 if isinstance(op, JigsawTiles) else 33
    assert out.shape == (batch * num_images(op), num_channels(op), side, side)
    assert out.shape == out_shape([op], images.shape)
    if batch and out.dtype != torch.uint8:
        low, high = (-0.5, 0.5) if isinstance(op, SobelXY) else (0, 1)
        assert low <= out.min() and out.max() <= high


@pytest.mark.parametrize("op", OPS, ids=NAMES)
def test_a_sample_alone_is_as_in_its_batch(op, make_images, as_tensors, assert_close):
    images = make_images(12, 33, 33, torch.float32)
    whole = op(images, as_tensors(op.draw(keys(12))))
    part = Keys(9, 4, np.array([7, 2], np.int64))
    alone = op(images[[7, 2]], as_tensors(op.draw(part)))
    assert_close(alone, whole.unflatten(0, (12, -1))[[7, 2]].flatten(0, 1))
    for name, values in op.draw(part).items():
        np.testing.assert_array_equal(values, op.draw(keys(12))[name][[7, 2]])


@pytest.mark.parametrize("op", [op for op in RANDOM if num_images(op) == 1], ids=lambda op: type(op).__name__)
def test_something_happens(op, make_images, as_tensors):
    """The batch of these tests has samples of both kinds, changed and unchanged."""
    images = make_images(24, 33, 33, torch.float32)
    changed = (op(images, as_tensors(op.draw(keys(24)))) != images).flatten(1).any(1)
    assert 0 < changed.sum() < 24


@pytest.mark.parametrize("op", [*OPS, Shift(3), Enlarge(40, 33)], ids=[*NAMES, "Shift", "Enlarge"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_host_never_waits_for_the_device(op, dtype, make_images, as_tensors):
    images, draw = make_images(3, 33, 33, dtype), as_tensors(op.draw(keys(3)))
    with fake_cuda() as cuda:
        draw_on_device = {name: values.to(cuda.device) for name, values in draw.items()}
        on_device = images.to(cuda.device)
        with cuda.watched() as record:
            out = normalised(op, op(on_device, draw_on_device))
    assert not record.waits, record.waits
    assert out.is_cuda and out.shape[1] == num_channels(op) and out.dtype == torch.float16


@pytest.mark.parametrize("op", OPS, ids=NAMES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_device_agrees_with_the_cpu_and_never_waits(op, device, make_images, as_tensors, assert_close):
    images = make_images(5, 33, 33, torch.float32)
    draw = as_tensors(op.draw(keys(5)))
    expected = normalised(op, op(images, draw))
    draw_on_device = {name: values.to(device) for name, values in draw.items()}
    on_device = images.to(device)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        out = normalised(op, op(on_device, draw_on_device))
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert out.device.type == device
    assert_close(out.cpu(), expected)


def shares(slot, num=1):
    """Return each sample's first numbers in [0, 1) of a slot, float64 [num, 50]."""
    return (words(keys(50), slot, num).T >> 8) / 2**24


def wholes(slot, num, high):
    """Return each sample's first integers below `high` of a slot, int64 [50, num]."""
    return words(keys(50), slot, num).astype(np.int64) * high >> 32


def test_every_op_draws_from_its_own_slot():
    """Two ops of one slot would depend on each other: all flipped images would be grey, say."""
    low, high = np.array([0.2, 0.6, 0.8, -0.1]), np.array([1.8, 1.4, 1.2, 0.1])
    label, sigma, factors = wholes(Slot.ROTATION, 1, 8)[:, 0], shares(Slot.BLUR, 2)[1], shares(Slot.COLOUR, 6)
    colours = {"apply": factors[0] < 0.3, "order": ORDERS[wholes(Slot.COLOUR, 2, 24)[:, 1]]}
    places = wholes(Slot.TILES, 18, 4).reshape(50, 9, 2)
    for op, expected in (
        (Flip(0.3), {"flip": shares(Slot.FLIP)[0] < 0.3}),
        (Grey(0.3), {"apply": shares(Slot.GREY)[0] < 0.3}),
        (Sobel(0.3), {"apply": shares(Slot.SOBEL)[0] < 0.3}),
        (Solarise(0.3), {"apply": shares(Slot.SOLARISE)[0] < 0.3}),
        (GaussianBlur(9, (0.5, 2), 0.3), {"apply": shares(Slot.BLUR)[0] < 0.3, "sigma": 0.5 + 1.5 * sigma}),
        (
            ColourDistortion(0.8, 0.4, 0.2, 0.1, p=0.3),
            colours | {"factors": low + (high - low) * factors[2:].T},
        ),
        (Rotate90(4), {"turns": wholes(Slot.ROTATION, 1, 4)[:, 0]}),
        (Rotate90(2), {"turns": 2 * wholes(Slot.ROTATION, 1, 2)[:, 0]}),
        (Rotate45(), {"label": label, "turns": label // 2}),
        (JigsawTiles(3, 11, 8, 500, 2), {"offsets": places, "permutation": wholes(Slot.PERMUTATION, 2, 500)}),
        (Shift(3), {"shift": wholes(Slot.SHIFT, 2, 7)}),
    ):
        draw = op.draw(keys(50))
        assert draw.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(draw[name], values, atol=1e-6, err_msg=f"{op}: {name}")


@pytest.mark.parametrize("op", RANDOM, ids=lambda op: type(op).__name__)
def test_views_differ(op):
    one, other = op.draw(keys(200)), op.draw(Keys(9, 4, keys(200).indices, view=1))
    assert any((one[name] != other[name]).mean() > 0.05 for name in one)
