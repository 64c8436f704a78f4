"""VGG16 with BatchNorm (uic.txt, section 4.3): thirteen convolutions and two fully-connected layers, B1…B7."""

from torch import nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone
from fastpsl.models.layers import normal_weights, on_vectors

# Width and number of the convolutions of conv1_x … conv5_x.
GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
DROPOUT = 0.5
# Positions a side that fc6 reads: what 224 px leave.
SIDE = 7


class VGG(Backbone):
    """B1…B5 = conv1_x…conv5_x, each up to its last ReLU: a max-pool begins the block behind it. B6, B7 = fc6, fc7, [B,4096,1,1].

    Parameter names are those of torchvision's `vgg16_bn`: `state_dict()` loads there with `strict=False` (only `classifier.6` is missing),
    and DeepCluster's VGG16 has them too. A dropout stands before fc7; torchvision's second one belongs to its classifier.
    Where the last pool leaves other than 7 x 7 positions, they are averaged to as many, as torchvision does.

    dropout: its probability, None for 0.5. fc_width: of fc6 and fc7.
    """

    block_names = ("conv1_x", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "fc6", "fc7")
    # Halved by each of five pools.
    min_px = 32

    def __init__(self, *, dropout: float | None = None, fc_width: int = 4096):
        super().__init__()
        self.name = "vgg16"
        self.channels = (*(width for width, _ in GROUPS), fc_width, fc_width)
        layers: list[nn.Module] = []
        # Where blocks begin; a pool stands at the beginning of all but the first.
        self._starts: list[int] = []
        inputs = 3
        for width, count in GROUPS:
            self._starts.append(len(layers) - bool(layers))
            for _ in range(count):
                layers += [
                    nn.Conv2d(inputs, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(SIDE)
        self.classifier = nn.Sequential(
            nn.Linear(SIDE**2 * inputs, fc_width),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT if dropout is None else dropout),
            nn.Linear(fc_width, fc_width),
            nn.ReLU(inplace=True),
        )
        normal_weights(self)

    @override
    def blocks(self) -> list[nn.Module]:
        convolutions, fc = self.features, self.classifier
        ends = (*self._starts[1:], len(convolutions) - 1)
        return [
            *(convolutions[start:end] for start, end in zip(self._starts, ends, strict=True)),
            nn.Sequential(convolutions[-1], self.avgpool, *on_vectors(self.channels[-2], *fc[:2])),
            on_vectors(self.channels[-1], *fc[2:]),
        ]
