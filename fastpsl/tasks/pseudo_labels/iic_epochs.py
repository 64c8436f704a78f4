"""Collect an epoch's clusters and losses: the best sub-head, and figures that show a collapse."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.tasks.pseudo_labels.figures import watched_figures

_NONE = -1


class ClusterEpochs:
    """A record of each head's epoch on the device, which the host reads only when the epoch ends.

    It is the same on every rank after `end`. Clusters are kept for one sub-head alone, the best one when the
    epoch began, in 4 bytes per image.

    Attributes:
        best: For each head, the sub-head with the lowest mean loss in that head's last epoch, int64 on the
            device. The first of equal ones counts; it is 0 before.
    """

    def __init__(self, num_heads: int, num_sub_heads: int, num_samples: int, device: torch.device):
        self.num_sub_heads, self.num_samples, self.device = num_sub_heads, num_samples, device
        # Captured steps read and write these tensors, so they are never replaced.
        self.best = torch.zeros(num_heads, dtype=torch.int64, device=device)
        # The sums of the steps' finite losses, and their counts.
        self._sums = torch.zeros((2, num_sub_heads), dtype=torch.float64, device=device)
        # The last place is for padding.
        self._clusters = torch.full((num_samples + 1,), _NONE, dtype=torch.int32, device=device)
        self._previous = [torch.full((num_samples,), _NONE, dtype=torch.int32) for _ in range(num_heads)]

    def written(self) -> list[Tensor]:
        """Return the tensors that `see` writes."""
        return [self._sums, self._clusters]

    @torch.no_grad()
    def see(self, number: int, indices: Tensor, losses: Tensor, logits: Tensor) -> None:
        """Record a step; values that are not finite are ignored.

        Args:
            number: The head that learned.
            indices: int64 [B], -1 for padding.
            losses: [num_sub_heads], the same on all ranks.
            logits: [B, num_sub_heads, clusters] of this rank's images.
        """
        counts = losses.isfinite()
        self._sums += torch.stack([torch.where(counts, losses, 0.0), counts.float()])
        logits = logits.index_select(1, self.best[number : number + 1])[:, 0]
        clusters = torch.where(logits.isfinite().all(1), logits.argmax(1), _NONE)
        self._clusters[torch.where(indices >= 0, indices, self.num_samples)] = clusters.to(torch.int32)

    def end(
        self, number: int, num_clusters: int, true: np.ndarray | None, seed: int
    ) -> dict[str, float | None]:
        """End the epoch: choose the best sub-head, and warn on rank 0 if the clusters have collapsed.

        Args:
            number: The head (from 0) that has learned.
            num_clusters: Clusters of the head.
            true: True labels, int [N], negative where there is none.
            seed: Seed of the shuffled labels.

        Returns:
            On rank 0 `label_figures` of the images that were drawn, the best sub-head and its mutual
            information. This is in nats, averaged over the epoch's batches. On other ranks nothing.
        """
        if place_among_ranks()[1] > 1:
            # All ranks must choose the same sub-head, and their sums may differ by rounding.
            dist.broadcast(self._sums, src=0)
        total, num = self._sums.cpu()
        losses = torch.where(num > 0, total / num, torch.inf)
        best = int(losses.argmin())
        self.best[number] = best
        clusters = self._gathered()
        previous, self._previous[number] = self._previous[number], clusters
        self._sums.zero_()
        self._clusters.fill_(_NONE)
        labels = clusters.numpy()
        is_drawn = labels >= 0
        if place_among_ranks()[0] != 0 or not is_drawn.any():
            return {}
        previous_labels = previous.numpy()[is_drawn]
        figures = watched_figures(
            labels[is_drawn],
            previous_labels if (previous_labels >= 0).any() else None,
            None if true is None else true[is_drawn],
            num_clusters,
            seed,
        )
        return {"mutual_information": -float(losses[best]), "best_sub_head": float(best), **figures}

    def _gathered(self) -> Tensor:
        """Return all ranks' clusters, int32 [num_samples], on the CPU; an epoch draws an image once."""
        if place_among_ranks()[1] > 1:
            dist.all_reduce(self._clusters, op=dist.ReduceOp.MAX)
        return self._clusters[:-1].to("cpu", copy=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state on the CPU, the same on every rank; every rank must call it."""
        return {
            "best": self.best.tolist(),
            "previous": list(self._previous),
            "sums": self._sums.to("cpu", copy=True),
            "clusters": self._gathered(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a partial epoch."""
        assert len(state["clusters"]) == self.num_samples, (len(state["clusters"]), self.num_samples)
        self.best.copy_(torch.tensor(state["best"]))
        self._previous = list(state["previous"])
        self._sums.copy_(state["sums"])
        self._clusters[:-1] = state["clusters"].to(self.device)
