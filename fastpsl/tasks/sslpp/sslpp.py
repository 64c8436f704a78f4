"""Train SSL++: a pretext task with semantic pseudo-labels as a second target (SSL++, section IV)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.terminal import own_rank
from fastpsl.console.words import warn
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import place_among_ranks, total_over_ranks
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.options import at_end
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, ViewSpec, center_view, train_view
from fastpsl.tasks.classify import average_and_linear, cross_entropies, masked_cross_entropy
from fastpsl.tasks.pseudo_labels.deepcluster import TOP_STD, clustered_features, renew
from fastpsl.tasks.pseudo_labels.file import Labels, labels_of
from fastpsl.tasks.pseudo_labels.scores import class_entropy, collapse, label_figures, watched_figures
from fastpsl.tasks.sslpp.options import COUPLED, NONE, SSLPlusPlusOptions
from fastpsl.tasks.sslpp.proxy import Proxy

# Losses are added as integers, so the mean does not depend on the order, the ranks or an interruption.
_ONE_NAT = 1 << 20
_LEARNED = 0.99  # of the entropy


class LabelLoss:
    """The mean loss of the pseudo-labels in an epoch, beside the labels' entropy.

    The entropy is the loss of a head that looks at no image and names each cluster as often as it occurs. A
    head whose loss is not below it has taught the network nothing about the clusters.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, num_epochs: int, device: torch.device):
        self.num_classes, self.num_epochs, self.epoch = num_classes, num_epochs, 0
        # The sum of the losses and the number of labels, of this rank in the current epoch.
        self.sums = torch.zeros(2, dtype=torch.int64, device=device)
        # The same tensor for all labels, because a captured step goes on reading it.
        self.entropy = torch.zeros((), device=device)
        self.labels_are(labels)

    def labels_are(self, labels: np.ndarray) -> None:
        """Set the entropy of labels, in nats, to compare the loss with; NaN if there are no labels yet."""
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
            warn(
                f"the second head has not learned the pseudo-labels: its loss was {loss:.3f} in epoch "
                f"{self.epoch} of {self.num_epochs}, and {entropy:.3f} is the loss of naming each "
                "cluster by its frequency; more epochs or a higher --semantic-weight may help: "
                "https://fastpsl.github.io/fastpsl/methods/sslpp.html"
            )
        return {"loss_labels": loss, "entropy_labels": entropy}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the same on every rank; every rank must call it."""
        return {"epoch": self.epoch, "sums": total_over_ranks(self.sums).cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, for any number of ranks."""
        self.epoch = state["epoch"]
        self.sums.copy_(state["sums"] * (place_among_ranks()[0] == 0))


PCA_WIDTH, K_MEANS_ITERATIONS = 256, 20  # DeepCluster's
_NONE_YET = -1  # an image's label before the first epoch makes coupled labels


class SSLPlusPlus(Task):
    """A task of a proxy's loss and the cross-entropy of a linear classifier on pseudo-labels.

    The loss is Ls + weight * Lc (SSL++, equation 5). Without the proxy ("SPL", Table XI) it is Lc alone
    (equation 4), on `plain` images that no proxy has changed.

    Coupled labels (Table XII) are made before each epoch by k-means on the features of `center`, as in
    DeepCluster: with PCA, whitening and a new classifier. The paper states only that it follows DeepCluster.

    The paper's V2 is "a parameterized classifier". Here, it is linear, on average-pooled features. The paper
    does not state which images V2 sees. Here, it sees all that the network sees, such as each turn of an
    image. Validation images have no pseudo-labels, so the proxy alone is scored.

    Args:
        proxy: The pretext task, such as `RotNet`.
        plain: View of the images without a proxy.
        learn_proxy: Whether the proxy is learned.
        weight: The paper's lambda, 0 or more.
        num_classes: Number of pseudo-classes; 0 for the proxy alone.
        labels: Pseudo-labels of the training images, integers [N] in 0 … num_classes - 1.
        center: View of the features for coupled labels.
        seed: Seed of the clusters and classifiers.

    Raises:
        ValueError: A value is out of range, or there is nothing to learn.
    """

    why_not_blockwise = "SSL++ learns its two targets on the last block alone"

    def __init__(
        self, proxy: Proxy, plain: ViewSpec, *, learn_proxy: bool = True, weight: float, num_classes: int = 0,
        labels: np.ndarray | None = None, center: ViewSpec | None = None, seed: int = 0,
    ):  # fmt: skip
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"--semantic-weight {weight:g}: it must be 0 or more")
        if not learn_proxy and not num_classes:
            raise ValueError("--no-proxy without pseudo-labels leaves nothing to learn: give --pseudo-labels")
        if center is not None and num_classes < 2:
            raise ValueError(f"--num-clusters {num_classes}: coupled labels are of 2 or more")
        assert bool(num_classes) == (labels is not None or center is not None)
        self.proxy, self.plain, self.learn_proxy, self.weight = proxy, plain, learn_proxy, weight
        self._learned: Task = proxy if learn_proxy else Task()  # because a plain Task's hooks do nothing
        self.one_size = self._learned.one_size
        self.num_classes, self.center, self.seed = num_classes, center, seed
        self.given = labels
        self.true_labels: np.ndarray | None = None

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.proxy.view() if self.learn_proxy else self.plain,)

    @override
    def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.center,) if self.center else ()

    @override
    def inputs_per_image(self, level: int) -> int:
        return self._learned.inputs_per_image(level)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Raise ValueError if there are more clusters than images, or the proxy refuses the data."""
        if self.num_classes > data.num_samples:
            raise ValueError(
                f"--num-clusters {self.num_classes:,} for {data.num_samples:,} training images: "
                f"give at most {data.num_samples:,}"
            )
        assert self.given is None or len(self.given) == data.num_samples
        self.num_samples = data.num_samples
        self.true_labels = data.labels()
        self._learned.check_data(data, batch_size)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Build the heads that learn, "proxy" (V1) and "labels" (V2)."""
        heads: dict[str, nn.Module] = {"proxy": self.proxy.head(level, channels)} if self.learn_proxy else {}
        if self.num_classes:
            heads["labels"] = average_and_linear(channels, self.num_classes, TOP_STD if self.center else None)
        return nn.ModuleDict(heads)

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        device = next(head.parameters()).device
        if self.num_classes:
            labels = np.full(self.num_samples, _NONE_YET) if self.given is None else self.given
            self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
            self.label_loss = LabelLoss(labels, self.num_classes, stage.max_epochs, device)
        self._learned.start_stage(stage, blocks, head)

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return self._learned.num_warm_up_batches(stage)

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        self._learned.warm_up(blocks, head, inputs, batch)

    @override
    def start_epoch(self, context: EpochContext) -> EpochMetrics | None:
        """Make coupled labels for this epoch, and reset the classifier."""
        if self.center is None:
            return None
        labels, distance = clustered_features(
            context, self.center, self.num_classes, PCA_WIDTH, K_MEANS_ITERATIONS, self.seed
        )
        renew(context.head["labels"], context.optimiser, torch_seed(self.seed, context.epoch))  # type: ignore[index]
        previous = self.labels.to("cpu", copy=True).numpy()
        self.labels.copy_(labels)
        array = labels.cpu().numpy()
        self.label_loss.labels_are(array)
        if place_among_ranks()[0] != 0:
            return {}
        previous_or_none = None if previous[0] == _NONE_YET else previous
        figures = watched_figures(array, previous_or_none, self.true_labels, self.num_classes, self.seed)
        return {**figures, "distance": distance}

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return equation 5, or 4 without a proxy, or the proxy's loss alone on validation images.

        accuracy_labels is the share of images with the right pseudo-label. loss_labels_constant is the
        entropy of the pseudo-labels: the loss of naming each as often as it occurs.
        """
        assert isinstance(head, nn.ModuleDict)
        features = blocks(inputs[0])
        loss, metrics = features.new_zeros((), dtype=torch.float32), Metrics()
        if self.learn_proxy:
            loss, metrics = self.proxy.features_loss(features, head["proxy"], batch)
        if not self.num_classes:
            return loss, metrics
        # "loss" is the sum of both losses, so the proxy's has another name, on validation images too.
        metrics = {name.replace("loss", "loss_proxy", 1): pair for name, pair in metrics.items()}
        if not head.training:
            return loss, metrics
        labels, num_views = self._labels_of(features, batch)
        valid = (batch.indices >= 0).float().repeat_interleave(num_views)
        num = valid.sum()
        logits = head["labels"](features).float()
        labels_loss = masked_cross_entropy(logits, labels, valid)
        self.label_loss.see(labels_loss.detach(), num)
        total = loss + (self.weight if self.learn_proxy else 1.0) * labels_loss
        right = ((logits.argmax(1) == labels) * valid).sum()
        return total, {"loss": (total.detach() * num, num)} | metrics | {
            "loss_labels": (labels_loss.detach() * num, num),
            "loss_labels_constant": (self.label_loss.entropy * num, num),
            "accuracy_labels": (right, num),
        }

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        assert isinstance(head, nn.ModuleDict)
        features = blocks(inputs[0])
        losses = features.new_zeros(len(batch.indices), dtype=torch.float32)
        if self.learn_proxy:
            losses = self.proxy.features_losses(features, head["proxy"], batch)
        if not self.num_classes:
            return losses
        labels, num_views = self._labels_of(features, batch)
        of_labels = cross_entropies(head["labels"](features).float(), labels).view(-1, num_views).mean(1)
        return losses + (self.weight if self.learn_proxy else 1.0) * of_labels

    def _labels_of(self, features: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Return the pseudo-label of each of the features' images, and the number of these per sample."""
        num_views = len(features) // max(1, len(batch.indices))
        return self.labels[batch.indices.clamp(min=0)].repeat_interleave(num_views), num_views

    @override
    def step_state(self) -> list[Tensor]:
        labels = [self.label_loss.sums] if self.num_classes else []
        return [*labels, *self._learned.step_state()]

    @override
    def end_epoch(self) -> EpochMetrics | None:
        """Return the proxy's figures with those of `LabelLoss`, and warn if the labels are not learned."""
        figures = self._learned.end_epoch()
        return {**(figures or {}), **self.label_loss.end_epoch()} if self.num_classes else figures

    @override
    def chance(self, level: int) -> float | None:
        return self._learned.chance(level)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        sheet = self._learned.contact_sheet(inputs, batch)
        return self.views(1)[0].denormalise(inputs[0]) if sheet is None else sheet

    @override
    def captions(self, batch: Batch) -> list[str]:
        captions = self._learned.captions(batch) or [""] * len(batch.indices)
        if not self.num_classes or self.labels[0] == _NONE_YET:
            return list(captions)
        labels = self.labels[batch.indices.clamp(min=0)].tolist()
        pairs = zip(captions, labels, strict=True)
        return ["\n".join(filter(None, (text, f"cluster {n}"))) for text, n in pairs]

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the proxy's state and coupled labels; given labels are in a file."""
        labels = {"labels": self.labels.cpu()} if self.center else {}
        label_loss = {"label_loss": self.label_loss.state_dict()} if self.num_classes else {}
        return {"proxy": self._learned.state_dict()} | labels | label_loss

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.center:
            self.labels.copy_(state["labels"])
            self.label_loss.labels_are(state["labels"].numpy())
        if self.num_classes:
            self.label_loss.load_state_dict(state["label_loss"])
        if state["proxy"]:
            self._learned.load_state_dict(state["proxy"])


Optimiser = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


def build_sslpp(
    options: SSLPlusPlusOptions, proxy: Proxy, optimiser: Optimiser, factor: float = 0.1
) -> Experiment:
    """Build the experiment of a proxy task; `factor` multiplies the rate at each drop.

    Raises:
        ValueError: The pseudo-labels do not fit the data.
    """
    size_px = at_end(options.size_px)
    rgb = Input.usual("RGB", size_px)
    network_input = proxy.view().input() if options.proxy else rgb
    labels, record = None, dict[str, Any](source=options.pseudo_labels)
    if options.pseudo_labels == COUPLED:
        record["num_classes"] = options.num_clusters
    elif options.pseudo_labels != NONE:
        file = _labels(Path(options.pseudo_labels), options)
        labels = file.labels
        # The digest is recorded, too, because the same settings may give other labels, as in a run that was
        # cut.
        record = dict(file.configuration) | {"num_classes": file.num_classes, "digest": file.digest()}
    coupled = options.pseudo_labels == COUPLED
    task = SSLPlusPlus(
        proxy,
        train_view(rgb, size_px, options.crop),
        learn_proxy=options.proxy,
        weight=options.semantic_weight,
        num_classes=record.get("num_classes", 0),
        labels=labels,
        center=center_view(network_input, size_px, whole=True) if coupled else None,
        seed=options.seed,
    )
    backbone = make_backbone(options.backbone, num_channels=network_input.num_channels)
    return Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=step_drops(options.lr, options.intervals, factor),
        optimiser=optimiser,
        science={"pseudo_labels": record},
    )


def _labels(path: Path, options: SSLPlusPlusOptions) -> Labels:
    """Return the labels in the file; rank 0 reports their sizes and warns of a collapse or a cut run."""
    if not path.exists():
        raise ValueError(
            f"--pseudo-labels {path}: there is no such file; allowed are {NONE}, {COUPLED}, "
            "and a file of labels"
        )
    file = labels_of(path, options)
    if own_rank() == 0:
        figures = label_figures(file.labels, None, None, file.num_classes, options.seed)
        print(
            f"pseudo-labels: {path}, by {file.made_by}: {figures['non_empty']:,.0f} of {file.num_classes:,} "
            f"classes have images, the biggest {figures['biggest']:.1%} of them",
            flush=True,
        )
        if file.configuration.get("cut"):
            warn(f"{path} was made by a run that --max-steps-per-stage cut short")
        if (crowded := collapse(figures, file.num_classes)) is not None:
            warn(f"{path}: {crowded}")
    return file
