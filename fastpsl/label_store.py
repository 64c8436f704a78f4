"""Pseudo-labels of all images: those of this epoch, and those that this epoch's forward passes make for the next (uic.txt, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.distributed import gathered
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.pipelines.balanced_order import balanced_order


@dataclass(frozen=True, eq=False)
class EpochOfLabels:
    """What an epoch made of its labels, over all ranks.

    num_written: images with a new label. num_not_drawn: all others; they keep theirs. num_repeated: draws beyond an image's first.
    num_not_finite: draws that made no label, as their logits were not finite. num_split: classes that were split to fill empty
    ones. previous: int32 [N], the labels of the epoch that ended.
    """

    num_written: int
    num_not_drawn: int
    num_repeated: int
    num_not_finite: int
    num_split: int
    previous: np.ndarray


class LabelStore:
    """Labels of `num_samples` images in [0, num_classes), the same on every rank.

    current: int32 [N] on `device`, the labels of this epoch; -1 before the first `set`. num_split: classes split to make them.
    What `write` makes stays apart until `end_epoch`. Of an image drawn several times the latest draw counts, in the order of the
    epoch's positions: rank after rank within a batch of all ranks, row after row within a rank's. So labels depend on no number of ranks.
    The paper is silent on images that are not drawn, or several times.

    Memory: 4 bytes an image for `current`, 8 on the device for each row that this rank has written since the last exchange, 4 an
    image on the host after one; as much as a few orders for a moment at the end of an epoch. An exchange sends every row to
    every rank once, 8 bytes each: as much as a ring's all-reduce of 4 bytes an image.
    """

    def __init__(self, num_samples: int, num_classes: int, device: torch.device, seed: int):
        assert num_samples < 2**31, num_samples  # an index is an int32 here
        self.num_samples, self.num_classes, self.device, self.seed = num_samples, num_classes, device, seed
        self.current = torch.full((num_samples,), -1, dtype=torch.int32, device=device)
        self.num_split = 0
        self._forget()

    def _forget(self) -> None:
        self._rows: list[
            Tensor
        ] = []  # int32 [2, B] a batch: index and label, of this rank since the last exchange
        self._next = np.full(self.num_samples, -1, np.int32)  # of all ranks until the last exchange; -1: none
        self._num_labels = self._num_not_finite = 0  # rows until the last exchange

    def set(self, labels: Tensor | np.ndarray, epoch: int) -> None:
        """New labels, int [N], the same on every rank, for `epoch`; empty classes are filled (`split_empty`). What was written is forgotten.

        ValueError where there are fewer images than classes.
        """
        array = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        assert array.shape == (self.num_samples,), (array.shape, self.num_samples)
        array, self.num_split = split_empty(array, self.num_classes, self.seed, epoch)
        self.current = torch.from_numpy(array).to(self.device)
        self._forget()

    def order(self, epoch: int) -> np.ndarray:
        """int64 [N], the order of `epoch`, in which all classes stand equally often (`balanced_order`)."""
        return balanced_order(self.current.cpu().numpy(), self.seed, epoch)

    def labels_of(self, indices: Tensor) -> Tensor:
        """int64 [B], the labels of dataset indices int64 [B]; 0 for padding (-1)."""
        labels = self.current[indices.clamp(min=0)].long()
        return torch.where(indices >= 0, labels, 0)

    @torch.no_grad()
    def write(self, indices: Tensor, logits: Tensor) -> None:
        """Labels for the next epoch: the arg max of logits [B, num_classes] of indices int64 [B], B the same in all of an epoch's batches.

        Padding (-1) and rows that are not finite make none. The host does not wait for the device.
        """
        assert logits.shape == (len(indices), self.num_classes), (
            logits.shape,
            len(indices),
            self.num_classes,
        )
        assert not self._rows or len(indices) == self._rows[0].shape[1], (
            "batches of an epoch are equally long"
        )
        labels = torch.where(logits.isfinite().all(1), logits.argmax(1), -1)
        self._rows.append(torch.stack([indices, labels]).to(torch.int32))

    def end_epoch(self, epoch: int) -> EpochOfLabels:
        """What was written becomes `current`, for `epoch`, the one to come. Every rank calls it."""
        self._exchange()
        previous = self.current.cpu().numpy()
        is_new = self._next >= 0
        num_written, num_labels, num_not_finite = int(is_new.sum()), self._num_labels, self._num_not_finite
        self.set(np.where(is_new, self._next, previous), epoch)
        return EpochOfLabels(
            num_written, self.num_samples - num_written, num_labels - num_written, num_not_finite, self.num_split, previous
        )  # fmt: skip

    def _exchange(self) -> None:
        """Rows of all ranks to `_next` of every rank."""
        if not self._rows:
            return
        # [world, batches, 2, B] to two of [batches, world, B], which is the order of the epoch's positions.
        rows = gathered(torch.stack(self._rows)[None]).cpu().numpy()
        index, label = rows.transpose(2, 1, 0, 3).reshape(2, -1)
        self._rows = []
        self._num_not_finite += int(((index >= 0) & (label < 0)).sum())
        places = np.flatnonzero((index >= 0) & (label >= 0))
        self._num_labels += len(places)
        latest = np.full(self.num_samples, -1)
        np.maximum.at(latest, index[places], places)
        drawn = latest >= 0
        self._next[drawn] = label[latest[drawn]]

    def state_dict(self) -> dict[str, Any]:
        """On the CPU, the same on every rank; every rank calls it. Any number of ranks may go on."""
        self._exchange()
        return {
            "current": self.current.cpu(), "next": torch.from_numpy(self._next.copy()), "num_split": self.num_split,
            "num_labels": self._num_labels, "num_not_finite": self._num_not_finite,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert len(state["current"]) == self.num_samples, (len(state["current"]), self.num_samples)
        self._forget()
        self.current = state["current"].to(self.device)
        self._next = state["next"].cpu().numpy().copy()
        self.num_split = state["num_split"]
        self._num_labels, self._num_not_finite = state["num_labels"], state["num_not_finite"]
