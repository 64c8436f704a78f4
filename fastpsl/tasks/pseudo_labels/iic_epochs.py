"""What heads of clusters were like over an epoch of steps: which sub-head is best, and whether its clusters collapse."""

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
    """Kept on the device, the same on every rank once an epoch ends; the host looks only then.

    number: the head (from 0) of the epoch under way. best: of each head the sub-head whose mean loss was lowest in that head's last
    epoch (the first of equals; 0 before). Of the images' clusters those of one sub-head are kept, 4 bytes an image: of the one that
    was best as the epoch began.
    """

    def __init__(self, num_heads: int, num_sub_heads: int, num_samples: int, device: torch.device):
        self.num_sub_heads, self.num_samples, self.device = num_sub_heads, num_samples, device
        self.number, self.best = 0, [0] * num_heads
        self._previous = [torch.full((num_samples,), _NONE, dtype=torch.int32) for _ in range(num_heads)]
        self._forget()

    def _forget(self) -> None:
        # Sums of the steps' losses, and how many they are.
        self._sums = torch.zeros((2, self.num_sub_heads), dtype=torch.float64, device=self.device)
        # One place more, for what is no image's.
        self._clusters = torch.full((self.num_samples + 1,), _NONE, dtype=torch.int32, device=self.device)

    @torch.no_grad()
    def see(self, number: int, indices: Tensor, losses: Tensor, logits: Tensor) -> None:
        """A step of head `number`: losses [num_sub_heads], alike on all ranks; logits [B, num_sub_heads, clusters] of this rank's images.

        indices: int64 [B], -1 for padding. What is not finite counts for nothing.
        """
        self.number = number
        counts = losses.isfinite()
        self._sums += torch.stack([torch.where(counts, losses, 0.0), counts.float()])
        logits = logits[:, self.best[number]]
        clusters = torch.where(logits.isfinite().all(1), logits.argmax(1), _NONE)
        self._clusters[torch.where(indices >= 0, indices, self.num_samples)] = clusters.to(torch.int32)

    def end(self, num_clusters: int, true: np.ndarray | None, seed: int) -> dict[str, float | None]:
        """The epoch is over: which sub-head is best now, and on rank 0 the figures, of which it warns where clusters collapse.

        `label_figures` of the images that were drawn; mutual_information: of the best sub-head, in nats, the mean over the epoch's
        batches. true: labels int [N], negative where there are none.
        """
        number = self.number
        if place_among_ranks()[1] > 1:
            # Equal already, unless a sum over ranks was rounded unlike on two of them: all must choose one sub-head.
            dist.broadcast(self._sums, src=0)
        total, num = self._sums.cpu()
        losses = torch.where(num > 0, total / num, torch.inf)
        self.best[number] = best = int(losses.argmin())
        clusters = self._gathered()
        previous, self._previous[number] = self._previous[number], clusters
        self._forget()
        made = clusters.numpy()
        drawn = made >= 0
        if place_among_ranks()[0] != 0 or not drawn.any():
            return {}
        before = previous.numpy()[drawn]
        figures = watched_figures(
            made[drawn],
            before if (before >= 0).any() else None,
            None if true is None else true[drawn],
            num_clusters,
            seed,
        )
        return {"mutual_information": -float(losses[best]), "best_sub_head": float(best), **figures}

    def _gathered(self) -> Tensor:
        """All ranks' clusters, int32 [num_samples], on the CPU. An epoch draws an image once."""
        if place_among_ranks()[1] > 1:
            dist.all_reduce(self._clusters, op=dist.ReduceOp.MAX)
        return self._clusters[:-1].to("cpu", copy=True)

    def state_dict(self) -> dict[str, Any]:
        """On the CPU, the same on every rank; every rank calls it."""
        return {
            "number": self.number,
            "best": list(self.best),
            "previous": list(self._previous),
            "sums": self._sums.to("cpu", copy=True),
            "clusters": self._gathered(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """To go on in mid-epoch."""
        assert len(state["clusters"]) == self.num_samples, (len(state["clusters"]), self.num_samples)
        self.number = state["number"]
        self.best, self._previous = list(state["best"]), list(state["previous"])
        self._sums = state["sums"].to(self.device)
        self._clusters[:-1] = state["clusters"].to(self.device)
