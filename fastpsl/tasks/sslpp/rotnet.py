"""Train RotNet: name an image's quarter turns (Gidaris et al., arXiv 1803.07728; SSL++, section III.A)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics
from fastpsl.kernels.geometry import AllTurns
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, TrainCrop, train_view
from fastpsl.tasks.classify import cross_entropies, scored
from fastpsl.tasks.rotation import RotationHead
from fastpsl.tasks.sslpp.proxy import Proxy

NUM_TURNS = 4


class RotNet(Proxy):
    """A proxy task that names all four quarter turns of an image (Gidaris et al., arXiv 1803.07728).

    Crop and flip come first, as in RotNet's code. The turns are exact, pixel for pixel. PSL's task, in levels
    and without a flip, is `fastpsl.tasks.Rotation`.

    Args:
        size_px: Side of the images, in pixels.
        crop: "padded", "random_resized" or a place of `fastpsl.ops.ShorterSideCrop`.
    """

    def __init__(self, size_px: int, crop: TrainCrop = "padded"):
        super().__init__(train_view(Input.usual("RGB", size_px), size_px, crop), AllTurns(NUM_TURNS))

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return RotationHead(channels, NUM_TURNS)

    @override
    def features_loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the cross-entropy over the four turns from features [4 * B, C, h, w].

        Accuracy is the share of turns named correctly.
        """
        logits = head(features).float()
        labels = batch.draw(AllTurns)["turns"].flatten()
        valid = (batch.indices >= 0).float().repeat_interleave(NUM_TURNS)
        loss, metrics = scored(logits, labels, valid)
        if not head.training:
            num = valid.sum()
            metrics["loss_constant"] = (num * math.log(NUM_TURNS), num)
        return loss, metrics

    @override
    def features_losses(self, features: Tensor, head: nn.Module, batch: Batch) -> Tensor:
        labels = batch.draw(AllTurns)["turns"]
        return cross_entropies(head(features).float(), labels.flatten()).view(labels.shape).mean(1)

    @override
    def inputs_per_image(self, level: int) -> int:
        return NUM_TURNS

    @override
    def chance(self, level: int) -> float:
        return 1 / NUM_TURNS

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the four turns of each image in a row."""
        images = functional.pad(self._view.denormalise(inputs[0]), (0, 1, 0, 0), value=1.0)
        rows = images.unflatten(0, (-1, NUM_TURNS)).permute(0, 2, 3, 1, 4).flatten(3, 4)
        return rows[..., :-1]
