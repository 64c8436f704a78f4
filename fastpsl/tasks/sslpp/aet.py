"""Train AET: tell the transformation between an image and its copy (Zhang et al., arXiv 1901.04596).

SSL++ uses it as a proxy task (SSL++, section III.A).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import NUM_TARGETS, Kind, WarpPair
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, TrainCrop, train_view
from fastpsl.tasks.classify import mean_of_valid
from fastpsl.tasks.sslpp.proxy import Proxy

_NUM_FOR_MEAN = 10_000


class AET(Proxy):
    """A proxy task that predicts the transformation between an image and its copy (arXiv 1901.04596).

    Crop and flip come first, as in AET's code; `fastpsl.ops.WarpPair` makes the copy. SSL++ does not state
    which of AET's two kinds of transformation it uses. "projective" is the more general. A sample is one
    pair, which the batch size counts once, as AET's 512 does; the network sees two images of each.

    Args:
        transform: "projective" or "affine".
        size_px: Side of the images, in pixels.
        crop: "padded", "random_resized" or a place of `fastpsl.ops.ShorterSideCrop`.
    """

    one_size = "AET's targets are lengths in the pixels of one size"

    def __init__(self, transform: Kind, size_px: int, crop: TrainCrop = "padded"):
        self.warp = WarpPair(size_px, transform)
        super().__init__(train_view(Input.usual("RGB", size_px), size_px, crop), self.warp)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return AETHead(channels, self.warp)

    @override
    def features_loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the mean squared error over the targets from features [2 * B, C, h, w]."""
        assert isinstance(head, AETHead)
        constant = None if head.training else _errors(head.mean_target, batch)
        return mean_of_valid(self.features_losses(features, head, batch), batch.indices >= 0, constant)

    @override
    def features_losses(self, features: Tensor, head: nn.Module, batch: Batch) -> Tensor:
        return _errors(head(features).float(), batch)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return each image with its copy on the right."""
        images = F.pad(self._view.denormalise(inputs[0]), (0, 1, 0, 0), value=1.0)
        return images.unflatten(0, (-1, 2)).permute(0, 2, 3, 1, 4).flatten(3, 4)[..., :-1]

    @override
    def captions(self, batch: Batch) -> list[str]:
        targets = batch.draw(WarpPair)["target"].unflatten(1, (2, -1)).tolist()
        return ["\n".join(" ".join(f"{value:+.1f}" for value in row) for row in rows) for rows in targets]


def _errors(answers: Tensor, batch: Batch) -> Tensor:
    """Return the mean squared error of each image's answers, [B] of [B, 8 or 6]."""
    return (answers - batch.draw(WarpPair)["target"]).square().mean(1)


class AETHead(nn.Module):
    """A head that averages both images' features, puts them side by side and regresses the targets.

    The answers pass through tanh if the targets are in [-1, 1] (affine), as in AET.
    """

    mean_target: Tensor  # [8 or 6], the best constant answer: the mean of 10,000 draws with seed 0

    def __init__(self, channels: int, warp: WarpPair):
        super().__init__()
        self.regress = nn.Linear(2 * channels, NUM_TARGETS[warp.kind])
        self.bounded = warp.kind == "affine"
        targets = warp.draw(Keys(0, 0, np.arange(_NUM_FOR_MEAN)))["target"]
        self.register_buffer("mean_target", torch.from_numpy(targets.mean(0)), persistent=False)

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Return the answers [B, 8 or 6] from features [2 * B, C, h, w], image-major."""
        answers: Tensor = self.regress(mean_of_positions(features).unflatten(0, (-1, 2)).flatten(1))
        return answers.tanh() if self.bounded else answers
