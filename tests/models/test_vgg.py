"""VGG16 equals torchvision's vgg16_bn in names, values, parameter counts and initial weights."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from fastpsl.models.convolutional import VGG


@pytest.fixture(scope="module")
def narrow() -> VGG:
    torch.manual_seed(0)
    network = VGG(fc_width=32)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def reference(narrow: VGG) -> Iterator[torchvision.models.VGG]:
    """Build torchvision's VGG16 with the same fully-connected widths and our weights."""
    with torch.device("meta"):
        network = torchvision.models.vgg16_bn()
    network.classifier[0] = nn.Linear(25088, 32)
    network.classifier[3] = nn.Linear(32, 32)
    network.classifier[6] = nn.Identity()
    network.features.to_empty(device="cpu")
    network.load_state_dict(narrow.state_dict())
    yield network.eval()


@pytest.mark.usefixtures("published_widths")
def test_parameters_and_names_are_torchvisions() -> None:
    with torch.device("meta"):
        network, torchvision_network = VGG(), torchvision.models.vgg16_bn()
    expected = {name: tensor.shape for name, tensor in torchvision_network.state_dict().items()}
    last = {name: expected.pop(name) for name in ("classifier.6.weight", "classifier.6.bias")}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == expected
    missing, unexpected = torchvision_network.load_state_dict(network.state_dict(), strict=False)
    assert missing == list(last) and not unexpected
    # 3x3 convolutions with biases, BatchNorms, and two linear layers.
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    by_hand = sum(9 * a * b + 3 * b for a, b in pairwise(widths))
    by_hand += 25088 * 4096 + 4096 * 4096 + 2 * 4096
    assert sum(p.numel() for p in network.parameters()) == by_hand == 134_268_992
    assert network.channels == (64, 128, 256, 512, 512, 4096, 4096)


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (65, 47)])
def test_blocks_compute_torchvisions_features(
    narrow: VGG, reference: torchvision.models.VGG, size: tuple[int, int]
) -> None:
    images = torch.randn(1, 3, *size)
    # The indices of the ReLUs of conv1_2, conv2_2, conv3_3, conv4_3 and conv5_3.
    stops, x, expected = (5, 12, 22, 32, 42), images, []
    for number, layer in enumerate(reference.features):
        x = layer(x)
        if number in stops:
            expected.append(x.clone())
    x = images
    for number, block in enumerate(narrow.blocks()):
        x = block(x)
        if number < 5:
            assert torch.equal(x, expected[number])
    assert x.shape == (1, 32, 1, 1)
    torch.testing.assert_close(x.flatten(1), reference(images))
    assert torch.equal(narrow(images), x)


def test_one_dropout_before_fc7(narrow: VGG) -> None:
    assert not any(isinstance(part, nn.Dropout) for block in narrow.blocks()[:6] for part in block.modules())
    last = VGG(dropout=0.2, fc_width=8).blocks()[6]
    assert [part.p for part in last.modules() if isinstance(part, nn.Dropout)] == [0.2]
    assert isinstance(list(last)[1], nn.Dropout)  # type: ignore[call-overload]


def test_first_weights_are_torchvisions() -> None:
    torch.manual_seed(0)
    for name, value in VGG(fc_width=64).named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        elif value.ndim == 4:
            assert value.std().item() == pytest.approx((2 / (9 * len(value))) ** 0.5, rel=0.05)
        elif value.ndim == 2:
            assert value.std().item() == pytest.approx(0.01, rel=0.05)
        else:
            assert (value == 1).all()


def test_the_smallest_image(narrow: VGG) -> None:
    assert narrow(torch.randn(2, 3, 32, 33)).shape == (2, 32, 1, 1)
    assert narrow(torch.randn(0, 3, 40, 40)).shape == (0, 32, 1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        narrow(torch.randn(1, 3, 33, 31))
