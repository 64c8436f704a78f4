"""VGG16 with BatchNorm (UIC, section 4.3): thirteen convolutions and two linear layers, B1…B7."""

from torch import nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone
from fastpsl.models.layers import normal_weights, on_vectors

# The width and number of the convolutions in each of conv1_x … conv5_x.
GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
DROPOUT = 0.5
# The side of the map that fc6 reads. Images of 224 px lead to a map of this size.
SIDE = 7


class VGG(Backbone):
    """A VGG16: B1…B5 are conv1_x…conv5_x, and B6 and B7 are fc6 and fc7 with outputs [B,4096,1,1].

    Each block of B1…B5 ends with its last ReLU, so a max-pool belongs to the block after it. Parameter names
    are those of torchvision's `vgg16_bn`, where `state_dict()` loads with `strict=False` (only `classifier.6`
    is missing). DeepCluster's VGG16 has the same names. Dropout precedes fc7; torchvision's second dropout
    belongs to its classifier. A last map of another size than 7 x 7 is average-pooled to 7 x 7, as in
    torchvision.

    Args:
        dropout: The probability of dropout, or None for 0.5.
        fc_width: The width of fc6 and fc7.
    """

    block_names = ("conv1_x", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "fc6", "fc7")
    # Five pools halve the side.
    min_px = 32

    def __init__(self, *, dropout: float | None = None, fc_width: int = 4096):
        super().__init__()
        self.name = "vgg16"
        self.channels = (*(width for width, _ in GROUPS), fc_width, fc_width)
        layers: list[nn.Module] = []
        # The index of each block's first layer. All blocks but the first start with a pool.
        self._starts: list[int] = []
        inputs = 3
        for width, count in GROUPS:
            self._starts.append(len(layers) - 1 if layers else 0)
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
