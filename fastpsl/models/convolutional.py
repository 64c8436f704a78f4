"""AlexNet, VGG and NIN as blocks, and the layers that they share.

AlexNet: facebookresearch/deepcluster, `models/alexnet.py`, to which the paper compares (UIC, section 4);
gidariss/FeatureLearningRotNet, `architectures/AlexNet.py`. Neither has AlexNet's local response
normalisation and groups.

NIN: gidariss/FeatureLearningRotNet, `architectures/NetworkInNetwork.py`, which section V.A and Table III
of SSL++ describe. The second to fourth block return 192 maps of 8 x 8 positions.
"""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from typing_extensions import override

from fastpsl.models.backbone import Backbone


class _MeanOfPositions(Function):
    @staticmethod
    @override
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.size = maps.shape
        return maps.mean((2, 3))

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _, _, height, width = ctx.size
        return (gradient / (height * width))[:, :, None, None].expand(ctx.size)


def mean_of_positions(maps: Tensor) -> Tensor:
    """Return the mean of each channel, whose gradient fits any layout.

    torch's own mean writes its gradient as [B, C, H, W] in this order, and a channels-last network copies it.

    Args:
        maps: Feature maps, float [B, C, H, W].

    Returns:
        Means of the same dtype, [B, C].
    """
    means: Tensor = _MeanOfPositions.apply(maps)
    return means


class AveragePool(nn.Module):
    """A pool that computes `nn.AdaptiveAvgPool2d(1)` by `mean_of_positions`."""

    @override
    def forward(self, maps: Tensor) -> Tensor:
        return mean_of_positions(maps)[:, :, None, None]


def on_vectors(width: int, *layers: nn.Module) -> nn.Sequential:
    """Build a block from layers that read vectors.

    The block flattens maps [B,C,h,w] to [B,C*h*w] and returns [B,width,1,1].
    """
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, (width, 1, 1)))


def normal_weights(network: nn.Module) -> None:
    """Initialise weights as DeepCluster's code and torchvision's VGG and ResNet do.

    Convolutions are drawn from N(0, 2 / (k² · outputs)) and linear layers from N(0, 0.01²); biases are 0.
    BatchNorms keep torch's scale 1 and shift 0.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the name and the module of the convolution that reads the images, or None without one."""
    return next(((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)), None)


def read_channels(network: nn.Module, num_channels: int) -> None:
    """Replace the first convolution, which must exist, by a new one that reads `num_channels` channels."""
    found = first_convolution(network)
    assert found is not None
    place, first = found
    new = nn.Conv2d(
        num_channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
        dilation=first.dilation, bias=first.bias is not None, padding_mode=first.padding_mode,  # type: ignore[arg-type]
    )  # fmt: skip
    normal_weights(new)
    parent, _, attribute = place.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)


WIDTHS = {"alexnet": (96, 256, 384, 384, 256), "alexnet_rotnet": (64, 192, 384, 256, 256)}
DROPOUT = 0.5
# The side of the map that fc6 reads. Images of 224 px lead to a map of this size.
ALEXNET_SIDE = 6


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
        self.pool = nn.AdaptiveAvgPool2d(ALEXNET_SIDE)
        layers: list[nn.Module] = []
        for inputs in (ALEXNET_SIDE**2 * widths[4], fc_width):
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
            convolutions[:3], convolutions[3:7], convolutions[7:11], convolutions[11:14], convolutions[14:17],
            nn.Sequential(convolutions[17], self.pool, *on_vectors(fc_width, *fc[:3])),
            on_vectors(fc_width, *fc[3:]),
        ]  # fmt: skip


def _convolution(inputs: int, width: int, kernel: int, **options: Any) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, width, kernel, **options)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def resnet_blocks(network: Any) -> list[nn.Module]:
    """Return the blocks of a network that has the layers of torchvision's ResNet, by their names."""
    stem = nn.Sequential(network.conv1, network.bn1, network.relu)
    first = nn.Sequential(network.maxpool, network.layer1)
    return [stem, first, network.layer2, network.layer3, network.layer4]


# The width and number of the convolutions in each of conv1_x … conv5_x.
GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# The side of the map that fc6 reads. Images of 224 px lead to a map of this size.
VGG_SIDE = 7


def vgg_blocks(network: Any) -> list[nn.Module]:
    """Return the blocks of a network with a VGG's `features`, `avgpool` and `classifier`.

    A pool and a dropout each begin a block. The last layer of `classifier`, which scores classes, must
    have been removed.
    """

    def cut(layers: nn.Sequential, *at: type[nn.Module]) -> list[nn.Sequential]:
        starts = [number for number, layer in enumerate(layers) if isinstance(layer, at)]
        return [layers[first:end] for first, end in pairwise([0, *starts, len(layers)])]

    *blocks, pool = cut(network.features, nn.MaxPool2d, nn.AvgPool2d)
    for number, layers in enumerate(cut(network.classifier, nn.Dropout) if len(network.classifier) else []):
        width = next(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
        vectors = on_vectors(width, *layers)
        blocks.append(vectors if number else nn.Sequential(*pool, network.avgpool, *vectors))
    return [*blocks]


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
        inputs = 3
        for width, count in GROUPS:
            for _ in range(count):
                layers += _convolution(inputs, width, 3, padding=1)
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((VGG_SIDE, VGG_SIDE))
        self.classifier = nn.Sequential(
            nn.Linear(VGG_SIDE**2 * inputs, fc_width),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT if dropout is None else dropout),
            nn.Linear(fc_width, fc_width),
            nn.ReLU(inplace=True),
        )
        normal_weights(self)

    @override
    def blocks(self) -> list[nn.Module]:
        return vgg_blocks(self)


NUM_BLOCKS = {"nin3": 3, "nin4": 4, "nin5": 5}
WIDTH = 192
_FIRST = ((5, 192), (1, 160), (1, 96))
_SECOND = ((5, 192), (1, 192), (1, 192))
_LATER = ((3, 192), (1, 192), (1, 192))


class NIN(Backbone):
    """A Network in Network.

    B1 has 5x5, 1x1 and 1x1 convolutions and a max-pool. B2 has the same and an average-pool. The later blocks
    start with a 3x3 convolution and have no pool. Each pool halves the sides and belongs to the block before
    it, as in the original. For a 32-px image, B1 returns 96 x 16 x 16. Convolutions have no bias and are
    followed by BatchNorm and ReLU.
    """

    # Two pools halve the side.
    min_px = 4

    def __init__(self, name: str = "nin4"):
        super().__init__()
        self.name, num = name, NUM_BLOCKS[name]
        self.channels = (_FIRST[-1][1], *[WIDTH] * (num - 1))
        self.block_names = tuple(f"block{i + 1}" for i in range(num))
        blocks = [
            convolutions(3, _FIRST, nn.MaxPool2d(3, stride=2, padding=1)),
            convolutions(self.channels[0], _SECOND, nn.AvgPool2d(3, stride=2, padding=1)),
            *(convolutions(WIDTH, _LATER) for _ in range(num - 2)),
        ]
        self.layers = nn.ModuleList(blocks)
        normal_weights(self)

    @override
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


def convolutions(
    inputs: int, layers: tuple[tuple[int, int], ...] = _LATER, pool: nn.Module | None = None
) -> nn.Sequential:
    """Build a block of convolutions, each with BatchNorm and ReLU. Classifiers use it for one block more."""
    parts: list[nn.Module] = []
    for kernel, width in layers:
        parts += _convolution(inputs, width, kernel, padding=kernel // 2, bias=False)
        inputs = width
    return nn.Sequential(*parts, *([pool] if pool is not None else []))
