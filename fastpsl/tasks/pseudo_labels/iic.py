"""Train invariant information clustering (IIC) for SSL++'s pseudo-labels (SSL++, sections IV.B and V).

Values that the paper does not state are those of xu-ji/IIC.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fastpsl.console.words import percent, warn
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import place_among_ranks
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import adam
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.options import at_end
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.filters import SobelXY
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.normalise import joined
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import was_cut_short
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, Op, ViewSpec
from fastpsl.tasks.classify import linear
from fastpsl.tasks.pseudo_labels import scores
from fastpsl.tasks.pseudo_labels.file import NAME, SECOND_NAME, write_labels
from fastpsl.tasks.pseudo_labels.options import IICOptions, Transforms
from fastpsl.tasks.pseudo_labels.pseudo_classify import gathered_labels

# The value of IIC's code (xu-ji/IIC), 2.2e-16. In half precision it would be 0, and its logarithm infinite.
EPS = sys.float_info.epsilon


def mutual_information_loss(first: Tensor, others: Tensor, valid: Tensor) -> Tensor:
    """Return -I(z, z') of equation 2 in nats, float32 [S] for S sub-heads, even under autocast.

        P    = mean over all ranks' pairs of z z'^T, then (P + P^T) / 2 over its sum,
               no cell and no marginal below EPS
        loss = -sum of P_cd (log P_cd - log P_c - log P_d)

    The loss is -log C at best, and 0 for one cluster or for independent views. It is that of all ranks'
    pairs, on every rank. The gradient of this rank's inputs is multiplied by the number of ranks. So the mean
    over ranks that DDP takes is the gradient of the loss. Without a valid sample, the loss is within C^2 *
    1e-14 of 0.
    """
    with no_tf32(), torch.autocast(first.device.type, enabled=False):
        ignored = ~valid[:, None, None]
        z = first.float().masked_fill(ignored, 0.0)
        # P is linear in z', so the mean of the other views suffices.
        z_other = others.float().mean(0).masked_fill(ignored, 0.0)
        joint: Tensor = _SumOverRanks.apply(torch.einsum("bsc,bsd->scd", z, z_other))
        joint = (joint + joint.transpose(1, 2)) / 2
        total = joint.sum((1, 2), keepdim=True)
        joint = joint / torch.where(total > 0, total, 1.0)
        rows, columns = joint.sum(2, keepdim=True), joint.sum(1, keepdim=True)
        logs = [part.clamp(min=EPS).log() for part in (joint, rows, columns)]
        return (joint.clamp(min=EPS) * (logs[1] + logs[2] - logs[0])).sum((1, 2))


class _SumOverRanks(torch.autograd.Function):
    """An autograd function for the sum of all ranks' tensors, without communication in the backward pass.

    All ranks compute the same from the sum, so its gradient is known everywhere.
    """

    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        _, ctx.world_size = place_among_ranks()
        total = tensor.clone(memory_format=torch.contiguous_format)
        if ctx.world_size > 1:
            dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.world_size


_NONE = -1


class ClusterEpochs:
    """A record of each head's epoch on the device, which the host reads only when the epoch ends.

    It is the same on every rank after `end`. Clusters are kept for one sub-head alone, the best one when the
    epoch began, in 4 bytes per image. `best`, int64 on the device, has each head's sub-head of the lowest
    mean loss in that head's last epoch. The first of equal ones counts; it is 0 before.
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
        """Record a step of head `number`; values that are not finite are ignored.

        The indices are int64 [B], -1 for padding. The losses [num_sub_heads] are the same on all ranks, and
        the logits [B, num_sub_heads, clusters] are of this rank's images.
        """
        counts = losses.isfinite()
        self._sums += torch.stack([torch.where(counts, losses, 0.0), counts.float()])
        logits = logits.index_select(1, self.best[number : number + 1])[:, 0]
        clusters = torch.where(logits.isfinite().all(1), logits.argmax(1), _NONE)
        self._clusters[torch.where(indices >= 0, indices, self.num_samples)] = clusters.to(torch.int32)

    def end(
        self, number: int, num_clusters: int, true: np.ndarray | None, seed: int
    ) -> dict[str, float | None]:
        """End the epoch: choose the best sub-head, and warn on rank 0 if the clusters have collapsed."""
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
        before = previous.numpy()[is_drawn]
        known = before if (before >= 0).any() else None
        true = None if true is None else true[is_drawn]
        figures = scores.watched_figures(labels[is_drawn], known, true, num_clusters, seed)
        return {"mutual_information": -float(losses[best]), "best_sub_head": float(best), **figures}

    def _gathered(self) -> Tensor:
        """Return all ranks' clusters, int32 [num_samples], on the CPU; an epoch draws an image once."""
        if place_among_ranks()[1] > 1:
            dist.all_reduce(self._clusters, op=dist.ReduceOp.MAX)
        return self._clusters[:-1].to("cpu", copy=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state on the CPU, the same on every rank; every rank must call it."""
        sums, clusters = self._sums.to("cpu", copy=True), self._gathered()
        return {"best": self.best.tolist(), "previous": [*self._previous], "sums": sums, "clusters": clusters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a partial epoch."""
        assert len(state["clusters"]) == self.num_samples, (len(state["clusters"]), self.num_samples)
        self.best.copy_(torch.tensor(state["best"]))
        self._previous = list(state["previous"])
        self._sums.copy_(state["sums"])
        self._clusters[:-1] = state["clusters"].to(self.device)


# IIC's jitter for CIFAR-10 and STL-10, applied to every image.
JITTER = ColourDistortion(0.4, 0.4, 0.4, 0.125, p=1.0)
# The ops after the crop in Table XIV's five columns, of the weak view and of the strong view.
_OPS: dict[str, tuple[tuple[Op, ...], tuple[Op, ...]]] = {
    "crop": ((), ()),
    "flip": ((), (Flip(),)),
    "colour": ((), (Flip(), JITTER)),
    "grey": ((Grey(1.0),), (Flip(), JITTER, Grey(1.0))),
    "sobel": ((SobelXY(),), (Flip(), JITTER, SobelXY())),
}
HEAD_EPOCHS = (1, 2)  # epochs of head A and of head B in turn, as in IIC
_HEAD_STD = 0.01  # of the initial weights, as in IIC, with biases of 0
_GAP_PX = 4


class IIC(Task):
    """A task that maximises the mutual information of the clusters of an image and its copies.

    The loss is SSL++'s equation 2. A pair is a random crop ("weak") and a random crop that `transforms`
    changes further ("strong", SSL++, Table XIV). Each image has `num_copies` pairs, which share the weak
    crop, from one decode.

    Head A makes the labels. IIC clusters by another head, B, and uses A to learn better features; SSL++ needs
    one set of labels, the 70 of A. One epoch of head A and two of head B alternate, from the stage's first. A
    head has several classifiers, the sub-heads, and its loss is their mean. The best sub-head has the lowest
    loss in its head's last epoch, so no true label is used.

    Compared with the paper and with IIC's code:

    - The paper does not state network, batch, heads and crops. Here, they are IIC's.
    - The paper does not state how grey is made. Here, it is the mean of the colours for Sobel, and luma for
      "grey". IIC's code makes grey by luma for both.
    - IIC's code learns from CIFAR-10's test images, too. Here, it learns from --data alone.
    - IIC's code has separate batch statistics for weak and strong crops, in evaluation, too. Here, all crops
      pass through the network as one batch. Labels are made with running statistics, so that an image's label
      does not depend on other images.
    - As in IIC's code, Adam's momentum also moves the head whose turn it is not.

    Args:
        num_clusters: Clusters of head A, 2 or more.
        size_px: Side to which the crops are resized, in pixels.
        crop_share: Side of the crops as a share of the image's shorter side, in (0, 1].
        transforms: A column of SSL++'s Table XIV: "crop", "flip", "colour", "grey" or "sobel".
        num_copies: Pairs per image.
        num_sub_heads: Sub-heads per head.
        second_clusters: Clusters of head B; None for no such head.
        seed: Seed of the shuffled labels that NMI is compared with.

    Raises:
        ValueError: A value is out of range.
    """

    why_not_blockwise = "IIC makes labels on the last block alone"
    num_levels = 1

    def __init__(
        self, num_clusters: int, *, size_px: int, crop_share: float, transforms: Transforms, num_copies: int,
        num_sub_heads: int, second_clusters: int | None = None, seed: int = 0,
    ):  # fmt: skip
        if not 0 < crop_share <= 1:
            raise ValueError(f"--crop-share {crop_share:g}: a share of the image's side, above 0 and up to 1")
        if num_copies < 1:
            raise ValueError(
                f"--num-copies {num_copies}: IIC compares an image with transformed copies, "
                "so it needs 1 or more"
            )
        if num_sub_heads < 1:
            raise ValueError(f"--num-sub-heads {num_sub_heads}: a head needs 1 or more")
        self.sizes = {"--num-clusters": num_clusters}
        if second_clusters is not None:
            self.sizes["--second-clusters"] = second_clusters
        for flag, size in self.sizes.items():
            if size < 2:
                raise ValueError(f"{flag} {size}: one cluster says nothing of an image; give 2 or more")
        self.num_clusters, self.num_copies, self.num_sub_heads = num_clusters, num_copies, num_sub_heads
        self.seed = seed
        input = input_of(transforms, size_px)
        sides = (round(size_px / crop_share), size_px)
        weak, strong = (
            ViewSpec(ShorterSideCrop(*sides), ops, input.mean, input.std) for ops in _OPS[transforms]
        )
        self._views = (weak, *(strong,) * num_copies)
        self.center = ViewSpec(ShorterSideCrop(*sides, "center"), weak.ops, input.mean, input.std)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Check the numbers of clusters, and store true labels, if there are any, for comparison alone."""
        for flag, size in self.sizes.items():
            if size > data.num_samples:
                raise ValueError(
                    f"{flag} {size:,} for {data.num_samples:,} training images: "
                    f"give at most {data.num_samples:,}"
                )
        num_pairs, most = batch_size * self.num_copies, max(self.sizes.values())
        if num_pairs < most:
            warn(
                f"--batch-size {batch_size} makes {num_pairs} pairs per step, which say little of how "
                f"{most} clusters share the images; give several times as many, or fewer clusters"
            )
        self.num_samples = data.num_samples
        self.true_labels = data.labels()

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the weak crop, then the strong ones; each has its own draws."""
        return self._views

    @override
    def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.center,)

    @override
    def inputs_per_image(self, level: int) -> int:
        return 1 + self.num_copies

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return ClusterHeads(channels, tuple(self.sizes.values()), self.num_sub_heads)

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        """Forget labels and figures, because they belong to the previous heads."""
        device = next(head.parameters()).device
        self.epochs = ClusterEpochs(len(self.sizes), self.num_sub_heads, self.num_samples, device)
        self.first_epoch = 0
        self.labels: Tensor | None = None
        self.second_labels: Tensor | None = None
        self.entropy: Tensor | None = None

    @override
    def start_epoch(self, context: EpochContext) -> None:
        if context.first:
            self.first_epoch = context.epoch

    @override
    def variant(self, epoch: int) -> int:
        """Return the head that learns in `epoch`, which counts over all stages: 0 for A, 1 for B."""
        in_turn = (epoch - self.first_epoch) % sum(HEAD_EPOCHS)
        return 0 if len(self.sizes) == 1 or in_turn < HEAD_EPOCHS[0] else 1

    @override
    def step_state(self) -> list[Tensor]:
        return self.epochs.written()

    @override
    def epoch_order(self, epoch: int) -> None:
        self.epoch = epoch  # for `end_epoch`

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return minus the mutual information of the global batch's pairs, in nats, the sub-heads' mean.

        Validation images are scored by head A.
        """
        assert isinstance(head, ClusterHeads)
        number = batch.variant if head.training else 0
        logits = head(blocks(joined(inputs)), number).float().unflatten(0, (len(inputs), -1))
        shares = logits.softmax(3)
        valid = batch.indices >= 0
        losses = mutual_information_loss(shares[0], shares[1:], valid)
        if head.training:
            self.epochs.see(number, batch.indices, losses.detach(), logits[0].detach())
        loss, num = losses.mean() + head.zero_of_other_heads(number), valid.sum().float()
        return loss, {"loss": (loss.detach() * num, num)}

    @override
    def end_epoch(self) -> EpochMetrics:
        """Return the figures of the epoch's clusters; names of head B's end in _b."""
        number = self.variant(self.epoch)
        figures = self.epochs.end(number, list(self.sizes.values())[number], self.true_labels, self.seed)
        return {f"{name}_b": value for name, value in figures.items()} if number else figures

    @override
    def end_stage(self, context: EpochContext) -> None:
        """Label all training images by each head's best sub-head on centre crops in eval mode.

        The labels of head B are for comparison alone: by them IIC's code reports its accuracy.
        """
        self.labels, self.entropy = self._label(context, 0)
        if len(self.sizes) == 2:
            self.second_labels, _ = self._label(context, 1)

    def _label(self, context: EpochContext, number: int) -> tuple[Tensor, Tensor]:
        """Return the labels int32 [N] and entropies float32 [N] of head `number`, on the CPU."""
        best, num, world = int(self.epochs.best[number]), self.num_samples, context.world
        entropy = torch.full((num + 1,), -1.0, device=world.device)

        def outputs() -> Iterator[tuple[Tensor, Tensor]]:
            head = partial(context.head, number=number)
            for indices, logits in context.forward_dataset(self.center, head):
                logs = logits[:, best].float().log_softmax(1)
                entropy[torch.where(indices >= 0, indices, num)] = -(logs.exp() * logs).sum(1)
                yield indices, logits[:, best]

        labels = gathered_labels(context, outputs()).cpu()
        if world.size > 1:
            dist.all_reduce(entropy, op=dist.ReduceOp.MAX)
        entropy = entropy[:num].cpu()
        return labels, torch.where(entropy < 0, math.nan, entropy)

    @override
    def state_dict(self) -> dict[str, Any]:
        state = {"first_epoch": self.first_epoch, "epochs": self.epochs.state_dict()}
        if self.labels is None:
            return state
        state |= {"labels": self.labels, "entropy": self.entropy, "second_labels": self.second_labels}
        return state | {"best_sub_head": int(self.epochs.best[0])}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first_epoch = state["first_epoch"]
        self.epochs.load_state_dict(state["epochs"])
        self.labels, self.entropy = state.get("labels"), state.get("entropy")
        self.second_labels = state.get("second_labels")

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        crops = [view.denormalise(images) for view, images in zip(self._views, inputs, strict=True)]
        padded = [F.pad(crop, (0, _GAP_PX), value=1.0) for crop in crops]
        return torch.cat(padded, 3)[..., :-_GAP_PX]


def input_of(transforms: Transforms, size_px: int) -> Input:
    """Return the network's input: two gradients after "sobel", else three channels (equal after "grey")."""
    return Input.usual("SobelXY" if transforms == "sobel" else "RGB", size_px)


class ClusterHeads(nn.Module):
    """A module of all heads: average pool, and per head the sub-heads' linear classifiers as one product."""

    def __init__(self, channels: int, sizes: tuple[int, ...], num_sub_heads: int):
        super().__init__()
        self.num_sub_heads = num_sub_heads
        self.classify = nn.ModuleList(linear(channels, num_sub_heads * size, _HEAD_STD) for size in sizes)

    @override
    def forward(self, features: Tensor, number: int = 0) -> Tensor:
        """Return the logits [B, num_sub_heads, clusters] of head `number` from features [B, C, h, w]."""
        logits: Tensor = self.classify[number](mean_of_positions(features))
        return logits.unflatten(1, (self.num_sub_heads, -1))

    def zero_of_other_heads(self, number: int) -> Tensor | float:
        """Return 0 with zero gradients for the other heads, because DDP waits for every parameter's."""
        others = [p for i, part in enumerate(self.classify) if i != number for p in part.parameters()]
        return sum((0.0 * parameter.sum() for parameter in others), 0.0)


def build_iic(options: IICOptions) -> Experiment:
    """Build the experiment of IIC with these options."""
    task = IIC(
        options.num_clusters,
        size_px=at_end(options.size_px),
        crop_share=options.crop_share,
        transforms=options.augment,
        num_copies=options.num_copies,
        num_sub_heads=options.num_sub_heads,
        second_clusters=options.second_clusters if options.num_heads == 2 else None,
        seed=options.seed,
    )
    channels = input_of(options.augment, at_end(options.size_px)).num_channels
    backbone = make_backbone(options.backbone, num_channels=channels)
    return Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=step_drops(options.lr, (1,)),
        optimiser=partial(adam, weight_decay=0.0),
        finish=partial(leave_labels, task),
    )


def leave_labels(task: IIC, run: Run) -> Sequence[str]:
    """Write labels.npz, labels_b.npz of a second head, and labels.png to the run's folder.

    They are those of the last checkpoint. Return the lines to print.
    """
    state = read_checkpoint(run.last_checkpoint())
    state_of_task = state["task"]
    best, num_sub_heads = state_of_task["best_sub_head"] + 1, task.num_sub_heads
    labels, num_clusters = state_of_task["labels"].numpy(), task.num_clusters
    data, true = run.data.train, run.data.train.labels()
    recipe, cut = str(run.science["recipe"]), was_cut_short(state)
    path = write_labels(
        run.folder / NAME, labels, num_clusters, data, recipe, entropy=state_of_task["entropy"].numpy(),
        configuration={**run.science, "source": "iic", "cut": cut},
    )  # fmt: skip
    facts = [
        f"labels by sub-head {best} of {num_sub_heads}, which had the lowest loss",
        f"{len(np.unique(labels))} of {num_clusters} clusters are not empty",
    ]
    if (true >= 0).any():
        facts.append(
            f"with the true labels NMI {scores.nmi(labels, true):.3f}, "
            f"accuracy {percent(scores.hungarian_accuracy(labels, true))} matched one to one, "
            f"{percent(scores.many_to_one_accuracy(labels, true))} each cluster as its commonest class"
        )
    if state_of_task.get("second_labels") is not None:
        second, num_second = state_of_task["second_labels"].numpy(), list(task.sizes.values())[1]
        write_labels(
            run.folder / SECOND_NAME, second, num_second, data, recipe,
            configuration={**run.science, "source": "iic_b", "cut": cut},
        )  # fmt: skip
        if (true >= 0).any():
            facts.append(
                f"the second head's {num_second} clusters: accuracy "
                f"{percent(scores.hungarian_accuracy(second, true))} matched one to one"
            )
    return ["; ".join(facts), *scores.written_lines(path)]
