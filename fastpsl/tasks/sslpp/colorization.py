"""Colorization, a proxy task of SSL++ (sslpp.txt, section III.A; Zhang et al., "Colorful image colorization", 2016)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import Figures
from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.kernels.ab_bins import NUM_BINS, ab_bins, soft_bins
from fastpsl.kernels.lab import lab
from fastpsl.kernels.layout import to_float32
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.standard_views import TrainCrop, train_view
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.sslpp.decoder import FromVectors
from fastpsl.tasks.sslpp.proxy import Proxy

NUM_LOOKED_AT = 50_000
REBALANCING = 0.5
GREY_AB = 5.0
_GAP_PX = 4
_MIN_SHARE = 1e-6  # of a bin that the training data, smoothed, do not have


class Colorization(Proxy):
    """Tell a picture's colours by its lightness: at each position of the feature map, which of 313 bins of the ab plane.

    Zhang et al.: the target is soft, of the 10 nearest bins; rare colours weigh more, by (0.5 p + 0.5 / 313)^-1 of the target's nearest bin,
    scaled to a mean of 1 over p; p is how often bins are seen in the training data, smoothed by the target's own Gaussian; a picture in which no pixel
    has |a| or |b| above 5 is grey, and nothing is learned from it. It counts in the mean that is learned from as 0, in what is told not at all.
    p comes from the training data as they are shown, about 50,000 of them, before the first step.

    SSL++ gives no decoder, nor the target's resolution. Here: one 1x1 convolution, and the colours' mean over what is one position of the feature
    map: over 4 x 4 px with NIN at 32 px, where Zhang et al. take every fourth pixel. Of a backbone that ends in fully-connected layers
    (of_vectors): `FromVectors`, to a quarter of the picture's side.
    """

    def __init__(self, size_px: int = 32, crop: TrainCrop = "padded", of_vectors: bool = False):
        self._view, self.of_vectors = train_view(Input.usual("L", size_px), size_px, crop), of_vectors

    @override
    def view(self) -> ViewSpec:
        """Crop and flip, then the lightness alone."""
        return self._view

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """[B, channels, h, w] → logits [B, 313, h, w]."""
        if self.of_vectors:
            return FromVectors(channels, NUM_BINS, self._view.crop.size_px // 4)
        return nn.Conv2d(channels, NUM_BINS, 1)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Takes how many batches make the pictures that p is estimated of. Where batches are accumulated, it is of fewer pictures."""
        self.num_to_look_at = -(-min(data.num_samples, NUM_LOOKED_AT) // batch_size)

    @override
    def start_stage(self, stage: Stage, trunk: Trunk, head: nn.Module) -> None:
        """Nothing seen yet; takes the size of the feature map, by a forward pass that moves no running statistics."""
        device, size = next(head.parameters()).device, self._view.crop.size_px
        self.bins = torch.from_numpy(ab_bins().copy()).to(device)
        self.counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=device)
        # Of this rank, in the epoch under way.
        self.num_grey = torch.zeros((), dtype=torch.int64, device=device)
        with torch.no_grad():
            self.map_size = trunk.eval()(torch.zeros(1, 1, size, size, device=device)).shape[-2:]
        trunk.train()
        if self.of_vectors:
            self.map_size = torch.Size((size // 4, size // 4))

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        """Batches in which colours are counted."""
        self.num_to_come = self.num_to_look_at
        return self.num_to_look_at

    @override
    def warm_up(self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        """Count the colours of all ranks' pictures. ValueError after the last batch where all were grey."""
        indices, _, coloured = self._target(batch)
        kept = (coloured & (batch.indices >= 0))[:, None, None].expand(indices.shape[:3])
        self.counts.scatter_add_(0, indices[..., 0].flatten(), kept.flatten().long())
        self.num_to_come -= 1
        if not self.num_to_come:
            self.counts = _over_ranks(self.counts)
            self._take_prior()

    def _take_prior(self) -> None:
        counts, bins = self.counts.cpu().double(), self.bins.cpu()
        if not counts.sum():
            raise ValueError(
                f"all pictures that were looked at are grey, no pixel's a or b is above {GREY_AB:g}: Colorization needs coloured ones; give "
                f"other --data, or another recipe"
            )
        indices, shares = soft_bins(bins, bins)
        smooth = torch.zeros(NUM_BINS, NUM_BINS, dtype=torch.float64).scatter_(1, indices, shares.double())
        frequency = counts / counts.sum()
        prior = frequency @ smooth
        weights = 1 / ((1 - REBALANCING) * prior + REBALANCING / NUM_BINS)
        weights /= (prior * weights).sum()
        # What a network that sees nothing can best answer: each bin's share of all positions' weights.
        constant = (frequency * weights / (frequency * weights).sum()) @ smooth
        self.weights = weights.float().to(self.bins.device)
        self.log_constant = constant.clamp(min=_MIN_SHARE).log().float().to(self.bins.device)

    @override
    def features_loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Rebalanced cross-entropy; accuracy = positions whose nearest bin is named."""
        logits = head(features).float().movedim(1, 3)
        assert logits.shape[1:3] == self.map_size, (logits.shape, self.map_size)
        indices, shares, coloured = self._target(batch)
        valid = batch.indices >= 0
        kept = valid & coloured
        if head.training:
            self.num_grey += (valid & ~coloured).sum()
        weights, num = self.weights[indices[..., 0]], valid.float().sum()

        def total(log_probabilities: Tensor) -> Tensor:
            losses = -(log_probabilities.gather(3, indices) * shares).sum(3)
            return torch.where(kept, (losses * weights).mean((1, 2)), 0.0).sum()

        loss = total(logits.log_softmax(3))
        right = torch.where(kept, (logits.argmax(3) == indices[..., 0]).float().mean((1, 2)), 0.0).sum()
        num_kept = kept.float().sum()
        metrics = {"loss": (loss.detach(), num_kept), "accuracy": (right, num_kept)}
        if not head.training:
            metrics["loss_constant"] = (total(self.log_constant.expand_as(logits)), num_kept)
        return loss / num.clamp(min=1), metrics

    def _target(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest bins int64 [B, h, w, 10] and their shares, float32; and bool [B], whether the picture has colours."""
        ab = lab(self._pictures(batch))[:, 1:]
        cells = functional.adaptive_avg_pool2d(ab, self.map_size).movedim(1, 3)
        indices, shares = soft_bins(cells.reshape(-1, 2), self.bins)
        return indices.unflatten(0, cells.shape[:3]), shares.unflatten(0, cells.shape[:3]), _has_colours(ab)

    def _pictures(self, batch: Batch) -> Tensor:
        """float32 [B, 3, S, S] in [0, 1]: what the network sees, with its colours."""
        return to_float32(self._view.before_last_op(batch.images[0], batch.draws[0]))

    @override
    def end_epoch(self) -> Figures:
        """num_grey: of the pictures that the epoch showed, those nothing was learned from."""
        num = int(_over_ranks(self.num_grey))
        self.num_grey.zero_()
        return {"num_grey": float(num)}

    @override
    def state_dict(self) -> dict[str, Any]:
        """The same on every rank; every rank calls it. Any number of ranks may go on."""
        return {"counts": self.counts.cpu(), "num_grey": int(_over_ranks(self.num_grey))}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.counts.copy_(state["counts"])
        self.num_grey.fill_(state["num_grey"] if place_among_ranks()[0] == 0 else 0)
        self._take_prior()

    @override
    def chance(self, level: int) -> float:
        """Accuracy of always naming the most frequent bin."""
        return float(self.counts.max() / self.counts.sum())

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """What the network sees, and beside it the colours that are asked for."""
        seen, asked = self._view.pictures(inputs[0]), self._pictures(batch).cpu()
        return torch.cat([seen, seen.new_ones(*seen.shape[:3], _GAP_PX), asked], 3)

    @override
    def captions(self, batch: Batch) -> list[str]:
        """Which pictures are grey."""
        coloured = _has_colours(lab(self._pictures(batch))[:, 1:])
        return ["" if has_colours else "grey" for has_colours in coloured.tolist()]


def _has_colours(ab: Tensor) -> Tensor:
    """[B, 2, h, w] → bool [B]"""
    return ab.abs().amax((1, 2, 3)) > GREY_AB


def _over_ranks(counts: Tensor) -> Tensor:
    """A copy, summed over all ranks, on every rank."""
    counts = counts.clone()
    if place_among_ranks()[1] > 1:
        dist.all_reduce(counts)
    return counts
