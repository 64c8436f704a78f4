"""Solarise against torchvision's solarize, the frequency of its draws, and what fused kernels say of it."""

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastpsl.kernels.colour import Solarise
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused import CPU_MODULES, CUDA_MODULES
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.views import ViewSpec


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 17, 23), (1, 32, 32), (2, 1, 1), (0, 4, 4)])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_equals_torchvision(dtype, shape, threshold, make_images, assert_close):
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
