import pytest
import torch
import torchvision
from torch import nn

from fastpsl.models.resnet import VARIANTS, ResNet
from tests.slow import slow


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_blocks_compute_torchvisions_features_from_its_state_dict(name: str) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None).eval()
    network = ResNet(name).eval()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    network.load_state_dict(state)
    model = torchvision.models.get_model(name, weights=None)
    missing, unexpected = model.load_state_dict(network.state_dict(), strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"] and not unexpected
    images = torch.randn(2, 3, 65, 47)
    x = images
    with torch.no_grad():
        for block, channels in zip(network.blocks(), network.channels, strict=True):
            x = block(x)
            assert x.shape[1] == channels
        expected = reference.layer4(
            reference.layer3(
                reference.layer2(
                    reference.layer1(
                        reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
                    )
                )
            )
        )
        assert torch.equal(x, expected)
        assert torch.equal(network(images), expected)


@torch.no_grad()
def test_the_one_for_small_images_keeps_their_size_up_to_conv2() -> None:
    torch.manual_seed(0)
    reference = torchvision.models.resnet18().eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    network = ResNet("resnet18_cifar").eval()
    state = reference.state_dict()
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
    reference.fc = nn.Identity()
    images, sides = torch.randn(2, 3, 32, 30), []
    x = images
    for block in network.blocks():
        x = block(x)
        sides.append(tuple(x.shape[2:]))
    assert sides == [(32, 30), (32, 30), (16, 15), (8, 8), (4, 4)]
    assert torch.equal(x.mean((2, 3)), reference(images))
    # N(0, 2 / (9 · 64)): the standard error of the standard deviation of 1,728 values is 1.7 %.
    assert ResNet("resnet18_cifar").conv1.weight.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.07)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "last"), [slow((32, 32), (3, 3)), slow((24, 24), (2, 2)), ((33, 29), (3, 2)), ((1, 1), (1, 1))]
)
@pytest.mark.usefixtures("published_widths")
def test_iics_has_a_pool_of_two_behind_the_small_convolution(
    size: tuple[int, int], last: tuple[int, int]
) -> None:
    """ClusterNet5g returns 3 x 3 positions for 32 px, which it averages, and 2 x 2 for 24 px."""
    torch.manual_seed(0)
    reference = torchvision.models.resnet34().eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    reference.maxpool = nn.MaxPool2d(2, stride=2, padding=1)
    network = ResNet("resnet34_iic").eval()
    state = reference.state_dict()
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
    reference.fc = nn.Identity()
    images = torch.randn(2, 3, *size)
    first, second = network.blocks()[:2]
    half = tuple(side // 2 + 1 for side in size)
    assert first(images).shape == (2, 64, *size) and second(first(images)).shape == (2, 64, *half)
    assert network(images).shape == (2, 512, *last) and network(images[:0]).shape == (0, 512, *last)
    assert torch.equal(network(images).mean((2, 3)), reference(images))
    assert ResNet("resnet34_iic").conv1.weight.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.07)


@torch.no_grad()
@pytest.mark.usefixtures("published_widths")
def test_the_mlp_is_a_sixth_block_behind_resnet50s_average() -> None:
    torch.manual_seed(0)
    network = ResNet("resnet50_mlp").eval()
    plain = ResNet("resnet50").eval()
    plain.load_state_dict({n: t for n, t in network.state_dict().items() if not n.startswith("mlp.")})
    linear, norm, _ = network.mlp
    assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    mean.normal_()
    variance.uniform_(0.5, 2.0)
    norm.bias.normal_()
    images = torch.randn(2, 3, 48, 33)
    hidden = plain(images).mean((2, 3)) @ linear.weight.T
    expected = ((hidden - mean) / (variance + 1e-5).sqrt() + norm.bias).clamp(min=0)
    assert network(images).shape == (2, 2048, 1, 1) and len(network.blocks()) == network.num_blocks == 6
    torch.testing.assert_close(network(images)[:, :, 0, 0], expected, rtol=1e-5, atol=1e-5)
    assert set(network.state_dict()) - set(plain.state_dict()) == {
        f"mlp.{name}"
        for name in (
            "0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
        )
    }  # fmt: skip


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.usefixtures("published_widths")
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        network, reference = ResNet(name), torchvision.models.get_model(VARIANTS[name].source)
    expected = sum(p.numel() for n, p in reference.named_parameters() if not n.startswith("fc."))
    if VARIANTS[name].small:
        expected -= 64 * 3 * (49 - 9)
    if name == "resnet50_mlp":
        expected += 2048 * 2048 + 2 * 2048
    assert sum(p.numel() for p in network.parameters()) == expected
