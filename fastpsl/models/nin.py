"""Network in Network with BatchNorm, for pictures of 32 px, as RotNet has it: three to five blocks B1…B5 of three convolutions.

gidariss/FeatureLearningRotNet, `architectures/NetworkInNetwork.py`, which sslpp.txt's section V.A and Table III describe: the second to
fourth block give 192 maps of 8 x 8 positions.
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
    """B1: 5x5, 1x1, 1x1, then a max-pool; B2: the same, then an average-pool; later ones begin with 3x3 and have no pool.

    Each pool halves the sides and belongs to the block before it, as in the original, so B1 gives 96 x 16 x 16 of a picture of 32 px.
    No convolution has a bias; behind each are BatchNorm and ReLU. `convolutions` makes a further such block for classifiers.
    """

    # Halved by each of two pools.
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
    """Maps of `inputs` channels through `layers` (kernel, width), each with BatchNorm and ReLU, and `pool`."""
    made: list[nn.Module] = []
    for kernel, width in layers:
        made += [
            nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        inputs = width
    return nn.Sequential(*made, *([pool] if pool is not None else []))
