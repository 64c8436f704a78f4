"""torchvision's ResNets and VGGs, which are cut into blocks as ours are."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models import VGG, ResNet

from fastpsl.models import convolutional, resnet

# By the class itself: a subclass may compute something else.
CUTS: dict[type[nn.Module], Callable[[Any], list[nn.Module]]] = {
    ResNet: convolutional.resnet_blocks,
    VGG: convolutional.vgg_blocks,
}


def prepare(network: Any) -> None:
    """Remove what is behind the last block of one of them, in place; set `block_names` and `min_px`."""
    if type(network) is ResNet:
        network.fc, network.block_names = nn.Identity(), resnet.BLOCK_NAMES
        return
    layers = network.classifier if isinstance(network.classifier, nn.Sequential) else nn.Sequential()
    num = max((number for number, layer in enumerate(layers, 1) if isinstance(layer, nn.ReLU)), default=0)
    network.classifier = layers[:num]
    network.block_names = convolutional.VGG.block_names[: len(convolutional.vgg_blocks(network))]
    network.min_px = convolutional.VGG.min_px
