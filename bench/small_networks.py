"""Small networks of five blocks for bench/determinism.py: --backbone bench/small_networks.py:NAME."""

from collections.abc import Callable

from torch import nn

_GROUPS = 8


class _SmallNetwork(nn.Module):
    """A network of five blocks: convolution, normalisation, activation. All but the last have stride 2."""

    channels = (16, 24, 32, 48, 64)

    def __init__(self, normalisation: Callable[[int], nn.Module], activation: Callable[[], nn.Module]):
        super().__init__()
        widths = (3, *self.channels)
        self.parts = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, stride=2 if i < 4 else 1, padding=1, bias=False),
                normalisation(widths[i + 1]),
                activation(),
            )
            for i in range(5)
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.parts)


def batch_norm() -> nn.Module:
    """Return the network in which the images of a process's batch are normalised together."""
    return _SmallNetwork(nn.BatchNorm2d, nn.ReLU)


def group_norm() -> nn.Module:
    """Return the network in which each image is normalised alone."""
    return _SmallNetwork(_group_norm, nn.ReLU)


def smooth() -> nn.Module:
    """Return the network in which, besides, no gradient jumps: a ReLU's does where its input is near 0."""
    return _SmallNetwork(_group_norm, nn.GELU)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, channels)
