"""Flip and normalisation by a table against torch's own expression, bit by bit."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.colour import Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused import fused_modules, module_for
from fastpsl.kernels.fused_cpu import by_table
from fastpsl.kernels.geometry import Flip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture(params=["C", "numba"])
def by(request, monkeypatch):
    """Run a test by the C library, where it was built, and by numba."""
    if request.param == "numba":
        monkeypatch.setattr(by_table, "look_up", lambda: None)
    elif by_table.look_up() is None:
        pytest.skip("the C library was not built")


def plain(images, ops, draws, mean, std, dtype):
    """Flip, then x * (1 / std) / 255 - mean / std in float32, rounded once."""
    for op, draw in zip(ops, draws, strict=True):
        images = op(images, draw)
    scale = torch.tensor([1 / s for s in std]).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1)
    out = torch.empty(images.shape, dtype=dtype, memory_format=torch.channels_last)
    return torch.addcmul(shift, images.to(torch.float32), scale / 255, out=out)


def by_a_table(images, ops, draws, mean, std, dtype):
    larger = torch.full((len(images) + 2, *images.shape[1:]), 7, dtype=dtype)
    larger = larger.contiguous(memory_format=torch.channels_last)
    by_table.run(images, ops, draws, mean, std, larger[1:-1])
    assert (larger[[0, -1]] == 7).all()
    return larger[1:-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num", "height", "width"), [(0, 9, 9), (1, 1, 1), (1, 4, 13), (16, 31, 18), (32, 224, 216)]
)
@pytest.mark.parametrize("ops", [(), (Flip(),)], ids=["nothing", "flip"])
def test_values_are_torchs_to_the_bit(ops, num, height, width, dtype, by, make_images, as_tensors):
    images = make_images(num, height, width, torch.uint8)
    draws = [as_tensors(op.draw(Keys(3, 1, np.arange(num)))) for op in ops]
    for mean, std in ((MEAN, STD), ((0.1, 0.9, 1 / 3), (0.3, 0.07, 2.0))):
        result = by_a_table(images, ops, draws, mean, std, dtype)
        assert torch.equal(result, plain(images, ops, draws, mean, std, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides_and_each_byte_of_each_channel(dtype, by):
    every = torch.arange(256).view(1, 1, 16, 16)
    large = torch.cat([every, every.flip(2), every.transpose(2, 3)], 1).to(torch.uint8).repeat(4, 1, 1, 1)
    draws = [{"flip": torch.tensor([True, False, False, True])}]
    channels_last = large.contiguous(memory_format=torch.channels_last)
    for images in (large, channels_last, large.flip(3), large.transpose(2, 3), channels_last[:, :, 2:, 3:12]):
        result = by_a_table(images, (Flip(),), draws, MEAN, STD, dtype)
        assert torch.equal(result, plain(images, (Flip(),), draws, MEAN, STD, dtype))


def test_threads_and_parts_change_nothing(by, monkeypatch, make_images, as_tensors):
    images = make_images(40, 24, 20, torch.uint8)
    draws = [as_tensors(Flip().draw(Keys(0, 0, np.arange(40))))]
    monkeypatch.setattr(by_table, "_BYTES_PER_THREAD", images.nbytes // 3)
    monkeypatch.setattr("fastpsl.kernels.fused_cpu.threads._VALUES_PER_PART", 7 * images[0].numel())
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        results = [by_a_table(x, (Flip(),), draws, MEAN, STD, torch.float16) for x in (images, images.clone(
            memory_format=torch.contiguous_format))]  # fmt: skip
    finally:
        torch.set_num_threads(threads_before)
    expected = plain(images, (Flip(),), draws, MEAN, STD, torch.float16)
    assert all(torch.equal(result, expected) for result in results)


def test_it_is_chosen_for_views_of_crop_and_flip():
    modules, _ = fused_modules(torch.device("cpu"))
    assert module_for(modules, ()) is by_table and module_for(modules, (Flip(),)) is by_table
    assert module_for(modules, (Flip(), Grey())) is not by_table
