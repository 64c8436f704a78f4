"""normalise against torchvision's."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from fastpsl.kernels.normalise import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def reference(images):
    x = images.to(torch.float32) / (255 if images.dtype == torch.uint8 else 1)
    return functional.normalize(x, MEAN, STD)


@pytest.mark.parametrize("source", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 17, 23), (1, 1, 1), (0, 8, 8)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_equals_torchvision(source, target, shape, layout, make_images, assert_close):
    images = make_images(*shape, source).contiguous(memory_format=layout)
    out = normalise(images, MEAN, STD, target)
    assert out.dtype == target and out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, reference(images) if shape[0] else torch.empty(0, 3, 8, 8))


@pytest.mark.parametrize("target", [torch.float32, torch.float16])
@pytest.mark.parametrize("constant", ["mean", "std"])
@pytest.mark.parametrize("channel", range(3))
def test_two_percent_are_seen(constant, channel, target, make_images, assert_close):
    images = make_images(5, 17, 23, torch.uint8)
    constants = {"mean": list(MEAN), "std": list(STD)}
    constants[constant][channel] *= 1.02
    with pytest.raises(AssertionError):
        assert_close(normalise(images, constants["mean"], constants["std"], target), reference(images))


@pytest.mark.parametrize("mean, std", [((0.5,), (0.5,)), (MEAN, (0.2, 0.2)), (MEAN, (0.2, 0.0, 0.2))])
def test_bad_values(mean, std, make_images):
    with pytest.raises(ValueError, match="for 3 channels; allowed is one value"):
        normalise(make_images(1, 4, 4, torch.uint8), mean, std, torch.float32)
