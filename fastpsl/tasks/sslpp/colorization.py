"""Train colorization, a proxy task of SSL++ (section III.A; Zhang et al., 2016).

Zhang et al.: "Colorful image colorization".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fastpsl.engine.distributed import place_among_ranks, total_over_ranks
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.kernels.lab import NUM_BINS, ab_bins, lab, soft_bins
from fastpsl.kernels.normalise import to_float32
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, TrainCrop, train_view
from fastpsl.tasks.sslpp.context import FromVectors
from fastpsl.tasks.sslpp.proxy import Proxy

NUM_LOOKED_AT = 50_000
REBALANCING = 0.5
GREY_AB = 5.0
_GAP_PX = 4
_MIN_SHARE = 1e-6  # of a bin that does not occur in the smoothed training data


class Colorization(Proxy):
    """A proxy task that predicts, from lightness, the ab bin (of 313) at each position of the feature map.

    As in Zhang et al., the target is soft, over the 10 nearest bins. Rare colours weigh more, by the inverse
    of 0.5 p + 0.5 / 313 for the target's nearest bin, scaled to a mean of 1 over p. The prior p is the
    frequency of bins in the training data, smoothed by the target's Gaussian. It is estimated on about 50,000
    images, as they are shown, before the first step. An image in which no pixel has abs(a) or abs(b) above 5
    is grey, and nothing is learned from it. A grey image counts as 0 in the mean of the loss that is
    minimised, and not at all in the metrics.

    SSL++ does not state the decoder and the target's resolution. Here, the decoder is one 1x1 convolution.
    The target is the mean colour over the area of a position of the feature map. This is 4 x 4 px with NIN at
    32 px. Zhang et al. take every fourth pixel. A backbone that ends in fully-connected layers gets a
    decoder from vectors, to a quarter of the image's side.

    Args:
        size_px: Side of the images, in pixels.
        crop: "padded", "random_resized" or a place of `fastpsl.ops.ShorterSideCrop`.
        of_vectors: Whether the backbone ends in fully-connected layers.
    """

    one_size = "colorization learns the colours of a feature map of one size"

    def __init__(self, size_px: int, crop: TrainCrop = "padded", of_vectors: bool = False):
        super().__init__(train_view(Input.usual("L", size_px), size_px, crop))
        self.of_vectors = of_vectors

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Build the head from [B, channels, h, w] to logits [B, 313, h, w]."""
        if self.of_vectors:
            return FromVectors(channels, NUM_BINS, self._view.crop.size_px // 4)
        return nn.Conv2d(channels, NUM_BINS, 1)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Store how many images p is estimated on, in batches of how many; accumulated ones have fewer."""
        self.num_to_look_at, self.batch_size = min(data.num_samples, NUM_LOOKED_AT), batch_size

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        """Reset the counts, and measure the feature map by a forward pass.

        The pass changes no running statistics.
        """
        device, size = next(head.parameters()).device, self._view.crop.size_px
        self.bins = torch.from_numpy(ab_bins().copy()).to(device)
        self.counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=device)
        # Of this rank, in the current epoch.
        self.num_grey = torch.zeros((), dtype=torch.int64, device=device)
        with torch.no_grad():
            self.map_size = blocks.eval()(torch.zeros(1, 1, size, size, device=device)).shape[-2:]
        blocks.train()
        if self.of_vectors:
            self.map_size = torch.Size((size // 4, size // 4))

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        self.num_to_come = -(-self.num_to_look_at // (stage.batch_size or self.batch_size))
        return self.num_to_come

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        """Count the colours of all ranks' images; after the last batch, some must have had a colour."""
        indices, _, coloured = self._target(batch)
        is_counted = (coloured & (batch.indices >= 0))[:, None, None].expand(indices.shape[:3])
        self.counts.scatter_add_(0, indices[..., 0].flatten(), is_counted.flatten().long())
        self.num_to_come -= 1
        if not self.num_to_come:
            self.counts = total_over_ranks(self.counts)
            self._take_prior()

    def _take_prior(self) -> None:
        counts, bins = self.counts.cpu().double(), self.bins.cpu()
        if not counts.sum():
            raise ValueError(
                f"all images that were looked at are grey, no pixel's a or b is above {GREY_AB:g}: "
                "Colorization needs coloured ones; give other --data, or another recipe"
            )
        indices, shares = soft_bins(bins, bins)
        smooth = torch.zeros(NUM_BINS, NUM_BINS, dtype=torch.float64).scatter_(1, indices, shares.double())
        frequency = counts / counts.sum()
        prior = frequency @ smooth
        weights = 1 / ((1 - REBALANCING) * prior + REBALANCING / NUM_BINS)
        weights /= (prior * weights).sum()
        # The best constant answer is each bin's share of all positions' weights.
        constant = (frequency * weights / (frequency * weights).sum()) @ smooth
        self.weights = weights.float().to(self.bins.device)
        self.log_constant = constant.clamp(min=_MIN_SHARE).log().float().to(self.bins.device)

    @override
    def features_loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the rebalanced cross-entropy; accuracy is the share of positions with the nearest bin."""
        logits = head(features).float().movedim(1, 3)
        assert logits.shape[1:3] == self.map_size, (logits.shape, self.map_size)
        indices, shares, coloured = self._target(batch)
        valid = batch.indices >= 0
        counts = valid & coloured
        if head.training:
            self.num_grey += (valid & ~coloured).sum()
        weights, num = self.weights[indices[..., 0]], valid.float().sum()

        def total(log_probabilities: Tensor) -> Tensor:
            return torch.where(counts, _losses(log_probabilities, indices, shares, weights), 0.0).sum()

        loss = total(logits.log_softmax(3))
        right = torch.where(counts, (logits.argmax(3) == indices[..., 0]).float().mean((1, 2)), 0.0).sum()
        num_counted = counts.float().sum()
        metrics = {"loss": (loss.detach(), num_counted), "accuracy": (right, num_counted)}
        if not head.training:
            metrics["loss_constant"] = (total(self.log_constant.expand_as(logits)), num_counted)
        return loss / num.clamp(min=1), metrics

    @override
    def features_losses(self, features: Tensor, head: nn.Module, batch: Batch) -> Tensor:
        """Return the rebalanced cross-entropy of each image, 0 of a grey one."""
        indices, shares, coloured = self._target(batch)
        logs = head(features).float().movedim(1, 3).log_softmax(3)
        losses = _losses(logs, indices, shares, self.weights[indices[..., 0]])
        return torch.where(coloured, losses, 0.0)

    def _target(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return nearest bins int64 [B, h, w, 10], their shares, float32, and whether images have colours."""
        ab = lab(self._coloured_images(batch))[:, 1:]
        cells = functional.adaptive_avg_pool2d(ab, self.map_size).movedim(1, 3)
        indices, shares = soft_bins(cells.reshape(-1, 2), self.bins)
        return indices.unflatten(0, cells.shape[:3]), shares.unflatten(0, cells.shape[:3]), _has_colours(ab)

    def _coloured_images(self, batch: Batch) -> Tensor:
        """Return the images, float32 [B, 3, S, S] in [0, 1], as the network sees them but with colours."""
        return to_float32(self._view.before_last_op(batch.images[0], batch.draws[0]))

    @override
    def step_state(self) -> list[Tensor]:
        return [self.num_grey]

    @override
    def end_epoch(self) -> EpochMetrics:
        """Return num_grey, the number of grey images of the epoch."""
        num = int(total_over_ranks(self.num_grey))
        self.num_grey.zero_()
        return {"num_grey": float(num)}

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state, the same on every rank; every rank must call it.

        A run with another number of ranks may load it.
        """
        return {"counts": self.counts.cpu(), "num_grey": int(total_over_ranks(self.num_grey))}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.counts.copy_(state["counts"])
        self.num_grey.fill_(state["num_grey"] if place_among_ranks()[0] == 0 else 0)
        self._take_prior()

    @override
    def chance(self, level: int) -> float:
        return float(self.counts.max() / self.counts.sum())

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the images as the network sees them, and beside them the same with colours."""
        grey, coloured = self._view.denormalise(inputs[0]), self._coloured_images(batch).cpu()
        return torch.cat([grey, grey.new_ones(*grey.shape[:3], _GAP_PX), coloured], 3)

    @override
    def captions(self, batch: Batch) -> list[str]:
        coloured = _has_colours(lab(self._coloured_images(batch))[:, 1:])
        return ["" if has_colours else "grey" for has_colours in coloured.tolist()]


def _losses(log_probabilities: Tensor, indices: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of each image's weighted cross-entropies, [B], from logarithms [B, h, w, 313]."""
    losses = -(log_probabilities.gather(3, indices) * shares).sum(3)
    return (losses * weights).mean((1, 2))


def _has_colours(ab: Tensor) -> Tensor:
    """Return whether images [B, 2, h, w] of ab have colours, bool [B]."""
    return ab.abs().amax((1, 2, 3)) > GREY_AB
