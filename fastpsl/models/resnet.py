"""torchvision's ResNet-18, -34 and -50 as blocks, with variants for small images and with an MLP."""

from typing import NamedTuple

import torchvision
from torch import nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import normal_weights, on_vectors, resnet_blocks


class Variant(NamedTuple):
    """A variant of torchvision's ResNet."""

    source: str  # the name of torchvision's network
    channels: tuple[int, ...]  # the output width of each block
    # The first convolution is 3x3 of stride 1, for images of about 32 px, without torchvision's max-pool.
    small: bool = False
    pool: bool = False  # a 2x2 max-pool follows that convolution
    mlp: bool = False  # a hidden layer follows the network, as B6


VARIANTS = {
    "resnet18": Variant("resnet18", (64, 64, 128, 256, 512)),
    "resnet50": Variant("resnet50", (64, 256, 512, 1024, 2048)),
    "resnet18_cifar": Variant("resnet18", (64, 64, 128, 256, 512), small=True),
    "resnet34": Variant("resnet34", (64, 64, 128, 256, 512)),
    "resnet34_iic": Variant("resnet34", (64, 64, 128, 256, 512), small=True, pool=True),
    "resnet50_mlp": Variant("resnet50", (64, 256, 512, 1024, 2048, 2048), mlp=True),
}


BLOCK_NAMES = ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x")


class ResNet(Backbone):
    """A ResNet in the blocks of PSL's section 3.2: B1 = conv1, B2 = conv2_x, … B5 = conv5_x.

    The max-pool belongs to conv2_x, as in ResNet's Table 1. The variants:

    - resnet18_cifar: B1 is a 3x3 convolution of stride 1 without a max-pool, which SimCLR (its appendix B.9)
      and others use for 32-px images.
    - resnet34_iic: The same convolution, then a 2x2 max-pool with padding 1. This is IIC's ClusterNet5g
      (xu-ji/IIC), which returns 3 x 3 positions for 32 px.
    - resnet50_mlp: B6 = average pool, Linear 2048, BatchNorm, ReLU, with output [B,2048,1,1]. It is the
      hidden layer of SimCLR's projection, which remains when the classifier behind it is removed (UIC,
      Table 8: "ResNet50+MLP").

    Parameter names are torchvision's. `state_dict()` loads into torchvision's model with `strict=False`,
    where only `fc` is missing and `mlp` is unknown, and torchvision's state dict without `fc.*` loads here.
    """

    def __init__(self, name: str = "resnet50"):
        super().__init__()
        assert name in VARIANTS, name
        variant = VARIANTS[name]
        source = torchvision.models.get_model(variant.source, weights=None)
        self.name, self.channels = name, variant.channels
        self.block_names = (*BLOCK_NAMES, "mlp")[: len(self.channels)]
        self.conv1, self.bn1, self.relu, self.maxpool = source.conv1, source.bn1, source.relu, source.maxpool
        if variant.small:
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.maxpool = nn.MaxPool2d(2, stride=2, padding=1) if variant.pool else nn.Identity()
            normal_weights(self.conv1)
        self.layer1, self.layer2 = source.layer1, source.layer2
        self.layer3, self.layer4 = source.layer3, source.layer4
        if variant.mlp:
            width = self.channels[-1]
            self.avgpool = source.avgpool
            linear, norm = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width)
            self.mlp = nn.Sequential(linear, norm, nn.ReLU(inplace=True))

    @override
    def blocks(self) -> list[nn.Module]:
        blocks = resnet_blocks(self)
        if VARIANTS[self.name].mlp:
            blocks.append(nn.Sequential(self.avgpool, *on_vectors(self.channels[-1], *self.mlp)))
        return blocks
