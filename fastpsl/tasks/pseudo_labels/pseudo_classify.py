"""Learn classes from pseudo-labels: the base of UIC (sections 3.2 and 4.2) and DeepCluster."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import place_among_ranks
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.classify import average_and_linear, cross_entropies, scored
from fastpsl.tasks.pseudo_labels.scores import Settling, watched_figures
from fastpsl.tasks.pseudo_labels.store import LabelStore

_NOT_FINITE = 2**31 - 1


class PseudoClassify(Task):
    """A task that trains a linear classifier on pseudo-labels, in an order that balances their classes.

    A subclass sets the labels, which a `LabelStore` holds.
    Paper: "Avoid empty classes", "Class balance sampling" (section 4.2).

    Its metric "agreement" is no accuracy, because no true label is looked at. In training it is the share of
    images classified as their pseudo-label. Validation images have none: there it is the share whose two
    views get the same class.
    """

    has_own_order = True

    def __init__(
        self, num_classes: int, view: ViewSpec, center: ViewSpec, *, seed: int, head_std: float | None = None
    ):
        if num_classes < 2:
            raise ValueError(f"--num-clusters {num_classes}: a classifier needs 2 or more")
        self.num_classes, self.view, self.center = num_classes, view, center
        self.seed, self.head_std = seed, head_std
        self.true_labels: np.ndarray | None = None

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Store the true labels for comparison alone; ValueError if there are more classes than images."""
        if self.num_classes > data.num_samples:
            raise ValueError(
                f"--num-clusters {self.num_classes:,} for {data.num_samples:,} training images, "
                f"and none may be empty: give at most {data.num_samples:,}"
            )
        self.num_samples = data.num_samples
        self.true_labels = data.labels()

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view,)

    @override
    def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.center,)

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view, self.view)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return average_and_linear(channels, self.num_classes, self.head_std)

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        """Forget the labels, because the new head does not know the classes of the previous one."""
        device = next(head.parameters()).device
        self.store = LabelStore(self.num_samples, self.num_classes, device, self.seed)
        self.settling = Settling()  # on rank 0
        self.begun: tuple[int, np.ndarray] | None = None  # the next epoch and its order, once they are known

    @override
    def epoch_order(self, epoch: int) -> np.ndarray:
        self.epoch = epoch  # for `end_epoch` of subclasses
        begun, self.begun = self.begun, None
        return begun[1] if begun is not None and begun[0] == epoch else self.store.order(epoch)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        logits = head(blocks(inputs[0])).float()
        if head.training:
            labels = self.store.labels_of(batch.indices)
            self.see(batch.indices, logits.detach())
        else:
            labels = head(blocks(inputs[1])).float().argmax(1)
        valid = (batch.indices >= 0).float()
        return scored(logits, labels, valid, "agreement")

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return cross_entropies(head(blocks(inputs[0])).float(), self.store.labels_of(batch.indices))

    @override
    def step_state(self) -> list[Tensor]:
        return self.store.written()

    def see(self, indices: Tensor, logits: Tensor) -> None:
        """Receive the outputs of a training step; this class ignores them."""

    def relabel(self, labels: Tensor | np.ndarray, epoch: int) -> EpochMetrics:
        """Set labels int [N], the same on all ranks, for `epoch`, and return their figures."""
        array = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        previous = self.store.current.to("cpu", copy=True).numpy()
        self.store.set(array, epoch)
        return {
            **self.figures(array, previous if previous[0] >= 0 else None),
            "num_split": float(self.store.num_split),
        }

    def figures(self, made: np.ndarray, previous: np.ndarray | None) -> EpochMetrics:
        """Return the figures of labels int [N] before empty classes are split, on rank 0 alone.

        Warn there if the labels have collapsed or do not settle.
        """
        if place_among_ranks()[0] != 0:
            return {}
        figures = watched_figures(made, previous, self.true_labels, self.num_classes, self.seed)
        if (warning := self.settling.see(figures)) is not None:
            warnings.warn(warning, stacklevel=2)
        return figures

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"store": self.store.state_dict(), "settling": list(self.settling.shares)}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.store.load_state_dict(state["store"])
        self.settling.shares = list(state["settling"])

    @override
    def chance(self, level: int) -> float:
        return 1 / self.num_classes

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self.view.denormalise(inputs[0])

    @override
    def captions(self, batch: Batch) -> list[str]:
        """Return each image's pseudo-label, once there are some."""
        if not hasattr(self, "store") or self.store.current[0] < 0:
            return []
        labels = self.store.labels_of(batch.indices.to(self.store.device))
        return [f"cluster {label}" for label in labels.tolist()]


def gathered_labels(context: EpochContext, outputs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the arg max of all ranks' outputs, int32 [N], on every rank; 0 for undecodable images."""
    num, device = context.data.num_samples, context.world.device
    labels = torch.full((num + 1,), -1, dtype=torch.int32, device=device)  # the last place is for padding
    for indices, logits in outputs:
        classes = torch.where(logits.isfinite().all(1), logits.argmax(1), _NOT_FINITE)
        labels[torch.where(indices >= 0, indices, num)] = classes.to(torch.int32)
    if context.world.size > 1:
        dist.all_reduce(labels, op=dist.ReduceOp.MAX)
    num_bad = int((labels[:num] == _NOT_FINITE).sum())
    if num_bad:
        raise ValueError(
            f"epoch {context.epoch}: the network's outputs for {num_bad:,} of {num:,} images are not finite, "
            "so they have no label; lower --lr, give --precision bf16, or look at the weights"
        )
    return labels[:num].clamp(min=0)
