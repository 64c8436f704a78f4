"""Train Context-Encoder: restore a hidden part of an image (Pathak et al., arXiv 1604.07379).

SSL++ uses it as a proxy task (SSL++, section III.A).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics
from fastpsl.kernels.geometry import Hole
from fastpsl.kernels.normalise import to_float32
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, TrainCrop, train_view
from fastpsl.tasks.classify import mean_of_valid
from fastpsl.tasks.sslpp.proxy import Proxy

FIRST_SIDE, FIRST_WIDTH, LEAST_WIDTH = 4, 512, 64


class FromVectors(nn.Module):
    """A decoder from [B, channels, 1, 1] to [B, num_maps, side, side], that of Context-Encoder.

    A transposed convolution makes 4 x 4 positions of 512 maps. Further ones, 4 x 4 with stride 2, double the
    side and halve the width, with BatchNorm and ReLU between them. The result is interpolated if `side` is
    not 4, 8, 16, … SSL++ does not state the decoder behind its AlexNet's fc7.
    """

    def __init__(self, channels: int, num_maps: int, side: int):
        super().__init__()
        num_doublings = max(1, math.ceil(math.log2(side / FIRST_SIDE)))
        widths = [max(LEAST_WIDTH, FIRST_WIDTH >> i) for i in range(num_doublings)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(channels, widths[0], FIRST_SIDE, bias=False)]
        for before, after in zip(widths, (*widths[1:], num_maps), strict=True):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
        self.side, self.decode = side, nn.Sequential(*layers)

    @override
    def forward(self, vectors: Tensor) -> Tensor:
        maps: Tensor = self.decode(vectors)
        if maps.shape[-1] != self.side:
            maps = F.interpolate(maps, size=(self.side, self.side), mode="bilinear")
        return maps


_WIDTH = 64


class Context(Proxy):
    """A proxy task that restores a hole in the image, by reconstruction alone.

    SSL++ uses "the reconstruction loss" alone, so there is no adversarial loss. The paper does not state
    the size of the hole; Context-Encoder hides 64 of 128 px. Its ring of 4 px that overlaps the surroundings
    is left out.

    Args:
        hole_share: Side of the hole as a share of the image's side, in (0, 1).
        size_px: Side of the images, in pixels.
        crop: "padded", "random_resized" or a place of `fastpsl.ops.ShorterSideCrop`.
        of_vectors: Whether the backbone ends in fully-connected layers.
    """

    one_size = "the context encoder restores images of one size"

    def __init__(self, hole_share: float, size_px: int, crop: TrainCrop = "padded", of_vectors: bool = False):
        input = Input.usual("RGB", size_px)
        hole = Hole(hole_share, input.mean)
        super().__init__(train_view(input, size_px, crop), hole)
        self.size_px, self.hidden, self.of_vectors = size_px, hole.hidden(size_px), of_vectors

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        if self.of_vectors:
            return nn.Sequential(FromVectors(channels, 3, self.size_px), nn.Tanh())
        return ContextHead(channels, self.size_px)

    @override
    def features_loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the hidden pixels from features [B, C, h, w].

        Pixels are in [-1, 1], as in Context-Encoder. loss_constant is the loss of the best single colour, the
        mean of what the batch hides.
        """
        targets, valid, constant = self._targets(batch), batch.indices >= 0, None
        if not head.training:
            colours = torch.where(valid[:, None], targets.mean((2, 3)), 0.0)
            mean = colours.sum(0) / valid.sum().float().clamp(min=1)
            constant = _errors(mean[:, None, None], targets)
        return mean_of_valid(self.features_losses(features, head, batch), valid, constant)

    @override
    def features_losses(self, features: Tensor, head: nn.Module, batch: Batch) -> Tensor:
        return _errors(head(features).float()[..., self.hidden, self.hidden], self._targets(batch))

    def _targets(self, batch: Batch) -> Tensor:
        """Return the hidden pixels, float32 [B, 3, h, w] in [-1, 1]."""
        images = self._view.before_last_op(batch.images[0], batch.draws[0])
        return 2 * to_float32(images[..., self.hidden, self.hidden]) - 1

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the images with their holes, and beside them the whole ones."""
        masked = self._view.denormalise(inputs[0])
        whole = to_float32(self._view.before_last_op(batch.images[0], batch.draws[0])).cpu()
        return torch.cat([masked, masked.new_ones(*masked.shape[:3], 1), whole], 3)


def _errors(answers: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of each image, [B]."""
    return (answers - targets).square().mean((1, 2, 3))


class ContextHead(nn.Module):
    """A decoder from the feature map to the whole image. Paper: "the decoder", without details.

    Two transposed convolutions double the sides, with 64 maps, BatchNorm and ReLU between them and a final
    tanh, as in Context-Encoder's decoder. NIN's 8 x 8 give 32 px; from maps of other sizes the image is
    interpolated.
    """

    def __init__(self, channels: int, size_px: int):
        super().__init__()
        self.size_px = size_px
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(channels, _WIDTH, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(_WIDTH),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(_WIDTH, 3, 4, stride=2, padding=1),
        )

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Return images, float32 [B, 3, size_px, size_px] in [-1, 1], from [B, channels, h, w]."""
        images = self.decode(features).float()
        if images.shape[-1] != self.size_px:
            images = F.interpolate(images, size=(self.size_px, self.size_px), mode="bilinear")
        return images.tanh()
