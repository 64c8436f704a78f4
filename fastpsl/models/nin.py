"""Network in Network with BatchNorm for 32-px images, as in RotNet: three to five blocks of convolutions.

Source: gidariss/FeatureLearningRotNet, `architectures/NetworkInNetwork.py`, which section V.A and Table III
of SSL++ describe. The second to fourth block return 192 maps of 8 x 8 positions.
"""

from torch import nn
from typing_extensions import override

from fastpsl.models.backbone import Backbone
from fastpsl.models.layers import normal_weights

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
    """Build a block of convolutions, each with BatchNorm and ReLU. Classifiers use it for one block more.

    Args:
        inputs: The number of input channels.
        layers: The kernel size and width of each convolution.
        pool: The last layer, or None.
    """
    parts: list[nn.Module] = []
    for kernel, width in layers:
        parts += [
            nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        inputs = width
    return nn.Sequential(*parts, *([pool] if pool is not None else []))
