import pytest
import torch
import torchvision

from fastpsl.backbones.resnet import CHANNELS, ResNet


@pytest.mark.parametrize("name", list(CHANNELS))
def test_blocks_compute_torchvisions_features_from_its_state_dict(name: str) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    ours = ResNet(name).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state)
    missing, unexpected = torchvision.models.get_model(name, weights=None).load_state_dict(
        ours.state_dict(), strict=False
    )
    assert sorted(missing) == ["fc.bias", "fc.weight"] and not unexpected
    images = torch.randn(2, 3, 65, 47)
    x = images
    with torch.no_grad():
        for block, channels in zip(ours.blocks(), ours.channels, strict=True):
            x = block(x)
            assert x.shape[1] == channels
        expected = theirs.layer4(
            theirs.layer3(
                theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))))
            )
        )
        assert torch.equal(x, expected)
        assert torch.equal(ours(images), expected)


def test_unknown_backbone_names_the_known() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet50"):
        ResNet("resnet51")
