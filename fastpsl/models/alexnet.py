"""AlexNet with BatchNorm, as DeepCluster and RotNet have it: five convolutions and two fully-connected layers, B1…B7.

facebookresearch/deepcluster, `models/alexnet.py`, which the paper compares with (uic.txt, section 4); gidariss/FeatureLearningRotNet,
`architectures/AlexNet.py`. Neither has AlexNet's local response normalisation and groups.
"""

from torch import nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone
from fastpsl.models.layers import normal_weights, on_vectors

WIDTHS = {"alexnet": (96, 256, 384, 384, 256), "alexnet_rotnet": (64, 192, 384, 256, 256)}
DROPOUT = 0.5
# Positions a side that fc6 reads: what 224 px leave.
SIDE = 6


class AlexNet(Backbone):
    """B1…B5 = conv1…conv5, each up to its ReLU: a max-pool begins the block behind it. B6, B7 = fc6, fc7, [B,4096,1,1].

    alexnet: a dropout before fc6 and fc7. alexnet_rotnet: none, but a BatchNorm behind each of the two, which have no bias.
    RotNet's code leaves torch's own first weights; here both have DeepCluster's.

    Where the last pool leaves other than 6 x 6 positions, they are averaged to as many, so that fc6 reads pictures of any size; the
    originals read 224 px alone, where this does nothing. Parameter names are those of DeepCluster's code.

    dropout: its probability, None for 0.5; alexnet_rotnet takes None alone. fc_width: of fc6 and fc7.
    """

    block_names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    # conv1 leaves 15 positions a side, the pools 7, 3 and 1.
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
