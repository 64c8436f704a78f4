"""normalise against torchvision's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms.v2 import functional

from fastpsl.kernels.normalise import joined, normalise

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


def buffer(num: int = 7, channels: int = 3) -> Tensor:
    values = torch.arange(num * channels * 5 * 4, dtype=torch.float32).view(num, channels, 5, 4)
    return values.contiguous(memory_format=torch.channels_last)


def is_view_of(whole: Tensor, tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("sizes", [[3, 4], [1, 1, 5], [7, 0], [0, 7], [2, 0, 5]])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_parts_of_a_buffer_are_the_buffer(sizes: list[int], channels: int, dtype: torch.dtype) -> None:
    whole = buffer(channels=channels).to(dtype)
    out = joined(whole.split(sizes))
    assert out.is_set_to(whole)
    whole[-1] = 9
    assert (out[-1] == 9).all()


def test_parts_of_a_part_are_that_part() -> None:
    whole = buffer(9)
    out = joined([whole[2:4], whole[4:7]])
    assert out.is_set_to(whole[2:7])
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_one_is_itself() -> None:
    one = buffer().requires_grad_()
    assert joined([one]) is one


@pytest.mark.parametrize(
    "parts",
    [
        lambda x: [x[:2], x[3:]],  # a gap
        lambda x: [x[:2], x[1:4]],  # an overlap
        lambda x: [x[4:], x[:4]],  # another order
        lambda x: [x[:4], x[4:].contiguous()],  # another layout
        lambda x: [x[:4], x[4:].clone()],  # another storage
        lambda x: [x[:4].clone(), x[4:]],
        lambda x: [x[:3], x[:3], x[:3]],
        lambda x: [x[0::2], x[1::2]],  # interleaved
        lambda x: [x[5:], buffer(2)],  # no memory behind the first
        lambda x: [x[:4], x[4:].double()],
        lambda x: [x[:4].requires_grad_(), x[4:]],
        lambda x: list(x.clone().requires_grad_().split([4, 3])),
    ],
)
def test_others_are_concatenated(parts: Callable[[Tensor], list[Tensor]]) -> None:
    whole = buffer()
    tensors = parts(whole)
    out = joined(tensors)
    assert not any(is_view_of(tensor, out) for tensor in tensors)
    assert torch.equal(out, torch.cat(tensors)) and out.dtype == torch.cat(tensors).dtype


def test_gradients_flow_through_both() -> None:
    parts = [buffer(2).requires_grad_(), buffer(3).requires_grad_()]
    (joined(parts) ** 2).sum().backward()
    for part in parts:
        torch.testing.assert_close(part.grad, 2 * part.detach())


def test_tensors_without_values_are_concatenated() -> None:
    """The shape is right, and nothing is computed on the host."""
    with FakeTensorMode() as mode:
        whole = mode.from_tensor(buffer())
        assert joined([whole[:4], whole[4:]]).shape == whole.shape
