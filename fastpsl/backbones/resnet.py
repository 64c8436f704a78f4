"""torchvision's ResNet-18 and ResNet-50 as blocks B1…B5, without the classifier."""

import torchvision
from torch import nn

from fastpsl.backbones.backbone import Backbone

CHANNELS = {"resnet18": (64, 64, 128, 256, 512), "resnet50": (64, 256, 512, 1024, 2048)}


class ResNet(Backbone):
    """Blocks of PSL's section 3.2: B1 = conv1, B2 = conv2_x (its max-pool included, as in ResNet's Table 1), … B5 = conv5_x.

    Parameter names are torchvision's, so `state_dict()` loads into torchvision's model with `strict=False` (only `fc`
    is missing) and torchvision's loads here once `fc.*` is left out.
    """

    block_names = ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")

    def __init__(self, name: str = "resnet50"):
        super().__init__()
        if name not in CHANNELS:
            raise ValueError(f"unknown backbone {name!r}: allowed are {', '.join(CHANNELS)}")
        source = torchvision.models.get_model(name, weights=None)
        self.name = name
        self.channels = CHANNELS[name]
        self.conv1, self.bn1, self.relu, self.maxpool = source.conv1, source.bn1, source.relu, source.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            source.layer1,
            source.layer2,
            source.layer3,
            source.layer4,
        )

    def blocks(self) -> list[nn.Module]:
        return [
            nn.Sequential(self.conv1, self.bn1, self.relu),
            nn.Sequential(self.maxpool, self.layer1),
            self.layer2,
            self.layer3,
            self.layer4,
        ]
