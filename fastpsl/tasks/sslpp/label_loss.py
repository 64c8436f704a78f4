"""Watch whether SSL++'s second head learns its pseudo-labels: its loss beside their entropy."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.engine.distributed import place_among_ranks, total_over_ranks
from fastpsl.tasks.pseudo_labels.figures import class_entropy

# Losses are added as integers, so the mean does not depend on the order, the ranks or an interruption.
_ONE_NAT = 1 << 20
_LEARNED = 0.99  # of the entropy


class LabelLoss:
    """The mean loss of the pseudo-labels in an epoch, beside the labels' entropy.

    The entropy is the loss of a head that looks at no image and names each cluster as often as it occurs. A
    head whose loss is not below it has taught the network nothing about the clusters.

    Attributes:
        entropy: float32 [], on the device.
        sums: int64 [2], the sum of the losses and the number of labels, of this rank in the current epoch.

    Args:
        labels: Integers [N], negative before the first labels are made.
        num_classes: Number of pseudo-classes.
        num_epochs: Epochs of the stage.
        device: Where the losses are.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, num_epochs: int, device: torch.device):
        self.num_classes, self.num_epochs, self.epoch = num_classes, num_epochs, 0
        self.sums = torch.zeros(2, dtype=torch.int64, device=device)
        # The same tensor for all labels, because a captured step goes on reading it.
        self.entropy = torch.zeros((), device=device)
        self.labels_are(labels)

    def labels_are(self, labels: np.ndarray) -> None:
        """Set the labels whose entropy, in nats, is compared with; NaN if there are none yet."""
        sizes = np.bincount(labels[labels >= 0], minlength=self.num_classes)
        self.entropy.fill_(class_entropy(sizes) if sizes.any() else math.nan)

    def see(self, loss: Tensor, num: Tensor) -> None:
        """Add the mean loss of a step over `num` labels; one that is not finite is left out."""
        sums = torch.stack([loss.double() * num * _ONE_NAT, num.double()])
        self.sums += torch.where(loss.isfinite(), sums, 0.0).round().long()

    def end_epoch(self) -> dict[str, float]:
        """Return the epoch's loss_labels and entropy_labels, in nats, on every rank.

        Warn on rank 0 after a tenth of the stage and at its end if the loss is not 1 % below the entropy.
        """
        total, num = total_over_ranks(self.sums).tolist()
        self.sums.zero_()
        self.epoch += 1
        if not num:
            return {}
        loss, entropy = total / _ONE_NAT / num, float(self.entropy)
        is_due = self.epoch in (math.ceil(self.num_epochs / 10), self.num_epochs)
        if is_due and loss > _LEARNED * entropy and place_among_ranks()[0] == 0:
            warnings.warn(
                f"the second head has not learned the pseudo-labels: its loss was {loss:.3f} in epoch "
                f"{self.epoch} of {self.num_epochs}, and {entropy:.3f} is the loss of naming each "
                "cluster by its frequency; more epochs or a higher --lambda may help: "
                "https://fastpsl.github.io/fastpsl/explanation/sslpp.html",
                stacklevel=2,
            )
        return {"loss_labels": loss, "entropy_labels": entropy}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the same on every rank; every rank must call it."""
        return {"epoch": self.epoch, "sums": total_over_ranks(self.sums).cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, for any number of ranks."""
        self.epoch = state["epoch"]
        self.sums.copy_(state["sums"] * (place_among_ranks()[0] == 0))
