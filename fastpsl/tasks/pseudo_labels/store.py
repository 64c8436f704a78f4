"""Store the pseudo-labels of all images: this epoch's, and those made for the next (UIC, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import place_among_ranks, total_over_ranks
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.pipelines.loader.order import balanced_order

_NONE = -1


@dataclass(frozen=True, eq=False)
class EpochOfLabels:
    """The labels that an epoch made, over all ranks; arrays are int32 [N]."""

    num_written: int  # images with a new label
    num_not_drawn: int  # images that no step showed, or skipped steps alone; they keep their labels
    num_repeated: int  # draws of an image beyond its first
    num_not_finite: int  # draws without a label, because their logits were not finite
    num_split: int  # classes that were split to fill empty ones
    made: np.ndarray  # the labels before that split
    previous: np.ndarray  # the labels of the epoch that ended


class LabelStore:
    """A store of the labels of `num_samples` images in [0, num_classes), the same on every rank.

    It has two arrays on the device. One has the labels of this epoch, 4 bytes per image. The other has those
    that `write` makes for the next one, with their positions in the epoch, 8 bytes per image. `end_epoch`
    exchanges the latter between the ranks in one all-reduce.

    If an image is drawn several times, its latest draw counts, in the order of the epoch's positions. If its
    logits were not finite, the image keeps its label. So labels do not depend on the number of ranks. The
    paper does not state what happens to images that are drawn several times or not at all.
    """

    def __init__(self, num_samples: int, num_classes: int, device: torch.device, seed: int):
        self.num_samples, self.num_classes, self.device, self.seed = num_samples, num_classes, device, seed
        # Captured steps read and write these tensors, so they are never replaced.
        # The labels of this epoch; -1 before the first `set`.
        self.current = torch.full((num_samples,), _NONE, dtype=torch.int32, device=device)
        # position * (num_classes + 1) + label + 1, or -1 for an image that was not drawn. So the greatest of
        # all ranks is the latest. The last place is for padding.
        self._written = torch.empty(num_samples + 1, dtype=torch.int64, device=device)
        # The draws of this rank, and those of them whose logits were not finite.
        self._num_draws = torch.zeros((), dtype=torch.int64, device=device)
        self._num_not_finite = torch.zeros_like(self._num_draws)
        self._num_positions = torch.zeros_like(self._num_draws)  # of all ranks
        self.num_split = 0  # classes that were split to make the labels
        self._forget()

    def _forget(self) -> None:
        self._written.fill_(_NONE)
        self._num_draws.zero_()
        self._num_not_finite.zero_()
        self._num_positions.zero_()

    def written(self) -> list[Tensor]:
        """Return the tensors that `write` writes."""
        return [self._written, self._num_draws, self._num_not_finite, self._num_positions]

    def set(self, labels: np.ndarray, epoch: int) -> None:
        """Set labels, integers [N] that are equal on all ranks, for `epoch`, and forget what was written.

        Empty classes are filled (`split_empty`); fewer images than classes are a ValueError.
        """
        assert labels.shape == (self.num_samples,), (labels.shape, self.num_samples)
        array, self.num_split = split_empty(labels, self.num_classes, self.seed, epoch)
        self.current.copy_(torch.from_numpy(array))
        self._forget()

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of `epoch`, int64 [N], with equal draws of all classes; batches must follow it."""
        return balanced_order(self.current.cpu().numpy(), self.seed, epoch)

    def labels_of(self, indices: Tensor) -> Tensor:
        """Return the labels, int64 [B], of dataset indices int64 [B]; 0 for padding (-1)."""
        labels = self.current[indices.clamp(min=0)].long()
        return torch.where(indices >= 0, labels, 0)

    @torch.no_grad()
    def write(self, indices: Tensor, logits: Tensor) -> None:
        """Store the arg max of logits [B, num_classes] for the next epoch, without waiting for the device.

        The indices, int64 [B], are this rank's next ones in the epoch's order; -1 for padding is ignored.
        """
        assert logits.shape == (len(indices), self.num_classes), (logits.shape, self.num_classes)
        finite = logits.isfinite().all(1)
        self._num_draws += (indices >= 0).sum()
        self._num_not_finite += (~finite & (indices >= 0)).sum()
        labels = torch.where(finite, logits.argmax(1), _NONE)
        # Of several rows of one index only the last is written, because a GPU's scatter would take any of
        # them.
        again = (indices[:, None] == indices[None, :]).triu(1).any(1)
        places = torch.where((indices >= 0) & ~again, indices, self.num_samples)
        rank, world_size = place_among_ranks()
        of_rank = torch.arange(rank * len(indices), (rank + 1) * len(indices), device=self.device)
        self._written[places] = (self._num_positions + of_rank) * (self.num_classes + 1) + labels + 1
        self._num_positions += len(indices) * world_size

    def end_epoch(self, epoch: int) -> EpochOfLabels:
        """Make the written labels current for `epoch`, the next one; every rank must call it."""
        self._exchange()
        previous, written = (t.to("cpu", copy=True).numpy() for t in (self.current, self._written[:-1]))
        num_draws, num_not_finite = self._sums()
        num_drawn = int((written >= 0).sum())
        new = np.where(written >= 0, written % (self.num_classes + 1) - 1, _NONE)
        labels = np.where(new >= 0, new, previous).astype(np.int32)
        self.set(labels, epoch)
        return EpochOfLabels(
            num_written=int((new >= 0).sum()),
            num_not_drawn=self.num_samples - num_drawn,
            num_repeated=num_draws - num_drawn,
            num_not_finite=num_not_finite,
            num_split=self.num_split,
            made=labels,
            previous=previous,
        )

    def _exchange(self) -> None:
        """Send to every rank, for each image, the label of the rank that had its latest position."""
        if place_among_ranks()[1] > 1:
            dist.all_reduce(self._written, op=dist.ReduceOp.MAX)

    def _sums(self) -> tuple[int, int]:
        """Return the draws of all ranks, and those whose logits were not finite."""
        own = torch.stack([self._num_draws, self._num_not_finite])
        num_draws, num_not_finite = total_over_ranks(own).tolist()
        return num_draws, num_not_finite

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the same on every rank; every rank must call it.

        It has the store's own tensors, which steps write on. A run with another number of ranks may load it.
        """
        self._exchange()
        num_draws, num_not_finite = self._sums()
        return {
            "current": self.current, "written": self._written[:-1], "num_split": self.num_split,
            "num_positions": self._num_positions, "num_draws": num_draws, "num_not_finite": num_not_finite,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a partial epoch; `order` of that epoch and `write` must follow."""
        assert len(state["current"]) == self.num_samples, (len(state["current"]), self.num_samples)
        self._forget()
        self.current.copy_(state["current"])
        self._written[:-1] = state["written"].to(self.device)
        self.num_split = state["num_split"]
        self._num_positions.copy_(torch.as_tensor(state["num_positions"]))
        if place_among_ranks()[0] == 0:
            self._num_draws += state["num_draws"]
            self._num_not_finite += state["num_not_finite"]
