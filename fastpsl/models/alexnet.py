"""AlexNet with BatchNorm as in DeepCluster and RotNet: five convolutions and two linear layers, B1…B7.

Sources: facebookresearch/deepcluster, `models/alexnet.py`, to which the paper compares (UIC, section 4);
gidariss/FeatureLearningRotNet, `architectures/AlexNet.py`. Neither has AlexNet's local response normalisation
and groups.
"""

from torch import nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone
from fastpsl.models.layers import normal_weights, on_vectors

WIDTHS = {"alexnet": (96, 256, 384, 384, 256), "alexnet_rotnet": (64, 192, 384, 256, 256)}
DROPOUT = 0.5
# The side of the map that fc6 reads. Images of 224 px lead to a map of this size.
SIDE = 6


class AlexNet(Backbone):
    """An AlexNet: B1…B5 are conv1…conv5, and B6 and B7 are fc6 and fc7 with outputs [B,4096,1,1].

    Each block of B1…B5 ends with its ReLU, so a max-pool belongs to the block after it. `alexnet` has dropout
    before fc6 and fc7. `alexnet_rotnet` has no dropout. Its fc6 and fc7 have no bias and are followed by
    BatchNorm. RotNet's code keeps torch's default initial weights, but here both variants use DeepCluster's.

    A last map of another size than 6 x 6 is average-pooled to 6 x 6, so that fc6 accepts images of any size.
    The originals accept 224 px only, and there the pooling changes nothing. Parameter names are those of
    DeepCluster's code.

    Args:
        name: "alexnet" or "alexnet_rotnet".
        dropout: The probability of dropout, or None for 0.5. It must be None for "alexnet_rotnet".
        fc_width: The width of fc6 and fc7.
    """

    block_names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    # At 63 px, conv1 returns maps of 15 x 15, and the three pools 7 x 7, 3 x 3 and 1 x 1.
    min_px = 63

    def __init__(self, name: str = "alexnet", *, dropout: float | None = None, fc_width: int = 4096):
        super().__init__()
        widths = WIDTHS[name]
        self.name, self.channels = name, (*widths, fc_width, fc_width)
        self.features = nn.Sequential(
            *_convolution(3, widths[0], 11, stride=4, padding=2),
            nn.MaxPool2d(3, stride=2),
            *_convolution(widths[0], widths[1], 5, padding=2),
            nn.MaxPool2d(3, stride=2),
            *_convolution(widths[1], widths[2], 3, padding=1),
            *_convolution(widths[2], widths[3], 3, padding=1),
            *_convolution(widths[3], widths[4], 3, padding=1),
            nn.MaxPool2d(3, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(SIDE)
        layers: list[nn.Module] = []
        for inputs in (SIDE**2 * widths[4], fc_width):
            if name == "alexnet":
                p = DROPOUT if dropout is None else dropout
                layers += [nn.Dropout(p), nn.Linear(inputs, fc_width), nn.ReLU(inplace=True)]
            else:
                assert dropout is None
                normalised = nn.Linear(inputs, fc_width, bias=False), nn.BatchNorm1d(fc_width)
                layers += [*normalised, nn.ReLU(inplace=True)]
        self.classifier = nn.Sequential(*layers)
        normal_weights(self)

    @override
    def blocks(self) -> list[nn.Module]:
        convolutions, fc = self.features, self.classifier
        fc_width = self.channels[-1]
        return [
            convolutions[:3],
            convolutions[3:7],
            convolutions[7:11],
            convolutions[11:14],
            convolutions[14:17],
            nn.Sequential(convolutions[17], self.pool, *on_vectors(fc_width, *fc[:3])),
            on_vectors(fc_width, *fc[3:]),
        ]


def _convolution(inputs: int, width: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, width, kernel, stride=stride, padding=padding)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
