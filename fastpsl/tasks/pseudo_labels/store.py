"""Store the pseudo-labels of all images: this epoch's, and those made for the next (UIC, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.pipelines.loader.balanced_order import balanced_order

_NONE = -1


@dataclass(frozen=True, eq=False)
class EpochOfLabels:
    """The labels that an epoch made, over all ranks.

    Attributes:
        num_written: Number of images with a new label.
        num_not_drawn: Number of images that no step showed; they keep their labels.
        num_repeated: Number of draws of an image beyond its first.
        num_not_finite: Number of draws without a label, because their logits were not finite.
        num_split: Number of classes that were split to fill empty ones.
        made: int32 [N], the labels before that split.
        previous: int32 [N], the labels of the epoch that ended.
    """

    num_written: int
    num_not_drawn: int
    num_repeated: int
    num_not_finite: int
    num_split: int
    made: np.ndarray
    previous: np.ndarray


class LabelStore:
    """A store of the labels of `num_samples` images in [0, num_classes), the same on every rank.

    It has two arrays of 4 bytes per image on the device: the labels of this epoch, and those that `write`
    makes for the next one. `end_epoch` exchanges the latter between the ranks in one all-reduce.

    If an image is drawn several times, its latest draw counts, in the order of the epoch's positions. If its
    logits were not finite, the image keeps its label. So labels do not depend on the number of ranks. The
    paper does not state what happens to images that are drawn several times or not at all.

    Attributes:
        current: int32 [N], the labels of this epoch; -1 before the first `set`.
        num_split: Number of classes that were split to make them.
    """

    def __init__(self, num_samples: int, num_classes: int, device: torch.device, seed: int):
        self.num_samples, self.num_classes, self.device, self.seed = num_samples, num_classes, device, seed
        self.current = torch.full((num_samples,), _NONE, dtype=torch.int32, device=device)
        self.num_split = 0
        self._forget()

    def _forget(self) -> None:
        # The last place is for padding.
        self._next = torch.full((self.num_samples + 1,), _NONE, dtype=torch.int32, device=self.device)
        self._num_not_finite = torch.zeros((), dtype=torch.int64, device=self.device)  # of this rank
        self._num_positions = self._batch_size = 0
        self._order: np.ndarray | None = None

    def set(self, labels: Tensor | np.ndarray, epoch: int) -> None:
        """Set labels, integers [N] that are equal on all ranks, for `epoch`, and forget what was written.

        Empty classes are filled (`split_empty`); fewer images than classes are a ValueError.
        """
        array = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        assert array.shape == (self.num_samples,), (array.shape, self.num_samples)
        array, self.num_split = split_empty(array, self.num_classes, self.seed, epoch)
        self.current = torch.from_numpy(array).to(self.device)
        self._forget()

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of `epoch`, int64 [N], with equal draws of all classes; batches must follow it."""
        self._order = balanced_order(self.current.cpu().numpy(), self.seed, epoch)
        return self._order

    def labels_of(self, indices: Tensor) -> Tensor:
        """Return the labels, int64 [B], of dataset indices int64 [B]; 0 for padding (-1)."""
        labels = self.current[indices.clamp(min=0)].long()
        return torch.where(indices >= 0, labels, 0)

    @torch.no_grad()
    def write(self, indices: Tensor, logits: Tensor) -> None:
        """Store the arg max of this rank's next batch for the next epoch, without waiting for the device.

        Args:
            indices: int64 [B], in the epoch's order; -1 for padding, which is ignored.
            logits: [B, num_classes].
        """
        assert logits.shape == (len(indices), self.num_classes), (logits.shape, self.num_classes)
        assert self._batch_size in (0, len(indices)), "batches of an epoch are equally long"
        self._batch_size = len(indices)
        finite = logits.isfinite().all(1)
        self._num_not_finite += (~finite & (indices >= 0)).sum()
        labels = torch.where(finite, logits.argmax(1), _NONE).to(torch.int32)
        # Of several rows of one index only the last is written, because a GPU's scatter would take any of
        # them.
        again = (indices[:, None] == indices[None, :]).triu(1).any(1)
        self._next[torch.where((indices >= 0) & ~again, indices, self.num_samples)] = labels
        self._num_positions += len(indices) * place_among_ranks()[1]

    def end_epoch(self, epoch: int) -> EpochOfLabels:
        """Make the written labels current for `epoch`, the next one; every rank must call it."""
        self._exchange()
        previous, new = self.current.cpu().numpy(), self._next[:-1].cpu().numpy()
        num_shown, num_not_finite = len(self._shown()), self._sum_not_finite()
        num_drawn = int((self._latest() >= 0).sum())
        labels = np.where(new >= 0, new, previous)
        self.set(labels, epoch)
        return EpochOfLabels(
            num_written=int((new >= 0).sum()),
            num_not_drawn=self.num_samples - num_drawn,
            num_repeated=num_shown - num_drawn,
            num_not_finite=num_not_finite,
            num_split=self.num_split,
            made=labels,
            previous=previous,
        )

    def _exchange(self) -> None:
        """Send to every rank, for each image, the label of the rank that had its latest position.

        Labels from before a resume, perhaps with another number of ranks, are the same on all ranks.
        """
        rank, world_size = place_among_ranks()
        if world_size == 1 or not self._num_positions or not self._batch_size:
            return
        latest = self._latest()
        owner = np.where(latest >= 0, latest // self._batch_size % world_size, _NONE)
        is_own = torch.from_numpy(owner == rank).to(self.device)
        self._next[:-1][~is_own] = _NONE
        dist.all_reduce(self._next, op=dist.ReduceOp.MAX)

    def _shown(self) -> np.ndarray:
        """Return the images that steps have shown, by position."""
        assert self._order is not None or not self._num_positions
        return np.zeros(0, np.int64) if self._order is None else self._order[: self._num_positions]

    def _latest(self) -> np.ndarray:
        """Return the latest position of each image so far, int64 [N], or -1."""
        latest, indices = np.full(self.num_samples, _NONE), self._shown()
        np.maximum.at(latest, indices, np.arange(len(indices)))
        return latest

    def _sum_not_finite(self) -> int:
        total = self._num_not_finite.clone()
        if place_among_ranks()[1] > 1:
            dist.all_reduce(total)
        return int(total)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the same on every rank; every rank must call it.

        It has the store's own tensors, which steps write on. A run with another number of ranks may load it.
        """
        self._exchange()
        return {
            "current": self.current,
            "next": self._next[:-1],
            "num_split": self.num_split,
            "num_positions": self._num_positions,
            "num_not_finite": self._sum_not_finite(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a partial epoch; `order` of that epoch and `write` must follow."""
        assert len(state["current"]) == self.num_samples, (len(state["current"]), self.num_samples)
        self._forget()
        self.current = state["current"].to(self.device)
        self._next[:-1] = state["next"].to(self.device)
        self.num_split, self._num_positions = state["num_split"], state["num_positions"]
        if place_among_ranks()[0] == 0:
            self._num_not_finite += state["num_not_finite"]
