"""Train DeepCluster: pseudo-labels by k-means on features before each epoch (Caron et al., arXiv 1807.05520).

Values that the paper does not state are those of the authors' code (facebookresearch/deepcluster: main.py,
clustering.py, util.py).
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.console.words import warn
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import sum_over_ranks
from fastpsl.engine.gpu import AsyncCopy, one_behind, torch_seed
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.pipelines.views import Input, ViewSpec, center_view, train_view
from fastpsl.tasks.pseudo_labels.k_means import clusters_of_samples, fit_whitening
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify

TOP_STD = 0.01


class DeepCluster(PseudoClassify):
    """A task that learns the clusters of all images' features. Clusters and classifier are new in each epoch.

    Features are those of centre crops in eval mode, average-pooled. fc7 is read before its ReLU, as in the
    authors' code. The features are reduced to `pca_width` by PCA, whitened, scaled to length 1 and clustered
    by k-means. In the authors' code, an empty cluster has no influence in an epoch. Here, the biggest cluster
    is halved, as in UIC, so none is empty.

    Args:
        num_classes: Number of clusters, 2 or more.
        input: The network's input (SobelXY in the paper).
        size_px: Side of the crops, in pixels.
        seed: Seed of the initial centroids, the classifiers and the orders.
        pca_width: Number of principal components, 1 or more.
        k_means_iterations: Iterations of k-means, 1 or more.

    Raises:
        ValueError: A value is out of range.
    """

    why_not_blockwise = "DeepCluster clusters the features of the last block alone"

    def __init__(
        self,
        num_classes: int,
        input: Input,
        size_px: int,
        *,
        seed: int,
        pca_width: int,
        k_means_iterations: int,
    ):
        if pca_width < 1:
            raise ValueError(f"--pca-width {pca_width}: it must be 1 or more")
        if k_means_iterations < 1:
            raise ValueError(f"--k-means-iterations {k_means_iterations}: it must be 1 or more")
        views = train_view(input, size_px), center_view(input, size_px)
        super().__init__(num_classes, *views, seed=seed, head_std=TOP_STD)
        self.pca_width, self.k_means_iterations = pca_width, k_means_iterations

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        if channels < self.pca_width:
            warn(f"--pca-width {self.pca_width}: features have {channels} numbers, so {channels} are kept")
        return super().head(level, channels)

    @override
    def start_epoch(self, context: EpochContext) -> EpochMetrics:
        """Set new labels and a new classifier; an interruption before the end changes nothing."""
        labels, distance = clustered_features(
            context, self.center, self.num_classes, self.pca_width, self.k_means_iterations, self.seed
        )
        renew(context.head, context.optimiser, torch_seed(self.seed, context.epoch))
        return {**self.relabel(labels, context.epoch), "distance": distance}


def clustered_features(
    context: EpochContext, view: ViewSpec, num_clusters: int, pca_width: int, num_iterations: int, seed: int
) -> tuple[Tensor, float]:
    """Cluster the features of all training images by at most `pca_width` components, whitening and k-means.

    Returns labels int32 [N], the same on every rank, and the rows' mean squared distance to their centroids.
    Images that cannot be decoded have the label 0.
    """
    features = features_of(context, view)
    started = time.perf_counter()
    world, num = context.world, context.data.num_samples
    with context.run.reporter.off_the_clock(), operation(f"clustering {num:,} images, PCA first"):
        width = min(pca_width, features.blocks[0].shape[1], features.num_rows)
        whitening = fit_whitening(features.blocks, width, world)
        rows = torch.cat([F.normalize(whitening(block)) for block in features.blocks])
        labels, distance = clusters_of_samples(
            rows, features.indices, num, num_clusters=num_clusters, num_iterations=num_iterations, seed=seed,
            epoch=context.epoch, world=world,
        )  # fmt: skip
    context.run.reporter.log(f"clustering them took {time.perf_counter() - started:.1f} s")
    return labels, float(distance)


class Features(NamedTuple):
    """The features of this rank's images: blocks of rows, float16 [n, C] each, on the host."""

    blocks: list[Tensor]
    indices: np.ndarray  # the sample of each row, int64
    num_rows: int  # of all ranks


def features_of(context: EpochContext, view: ViewSpec) -> Features:
    """Return the features of every decodable image of this rank's share.

    They are float16, because 1.28 million images with 4,096 numbers each take 10.5 GB even so. All ranks
    refuse a feature that float16 cannot hold.
    """
    blocks: list[Tensor] = []
    indices: list[np.ndarray] = []
    num_bad = 0
    outputs = context.forward_dataset(view, lambda maps: maps.float().mean((2, 3)).half())
    with without_last_relu(context.train_step.module.blocks):
        for numbers, rows in one_behind((AsyncCopy(numbers), AsyncCopy(rows)) for numbers, rows in outputs):
            valid = numbers.values() >= 0
            blocks.append(rows.values()[valid])
            indices.append(numbers.values()[valid].numpy())
            num_bad += int((~blocks[-1].isfinite().all(1)).sum())
    counts = torch.tensor([num_bad, sum(map(len, blocks))], device=context.world.device)
    bad, num_rows = sum_over_ranks(context.world, counts).tolist()
    if bad:
        raise ValueError(
            f"epoch {context.epoch}: features of {bad:,} of {num_rows:,} images are no finite float16 "
            "numbers, so they cannot be clustered; lower --lr, give --precision bf16, or look at the weights"
        )
    return Features(blocks, np.concatenate(indices), num_rows)


@contextlib.contextmanager
def without_last_relu(blocks: StageBlocks) -> Iterator[None]:
    """Remove the last ReLU of the stage's blocks for the duration of the context.

    They stay as they are if the last block is no nn.Sequential with a ReLU, as in ResNet.
    """
    last = [*blocks.frozen_as_run, *blocks.learning][-1]
    names = [name for name, layer in last.named_children() if isinstance(layer, nn.ReLU)]
    if not isinstance(last, nn.Sequential) or not names:
        yield
        return
    relu = last.get_submodule(names[-1])
    setattr(last, names[-1], nn.Identity())
    try:
        yield
    finally:
        setattr(last, names[-1], relu)


def renew(head: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    """Reset the classifier to weights N(0, 0.01²) drawn by `seed` and biases 0, and its optimiser state to 0.

    The weights are the same on all ranks.
    """
    random = torch.Generator().manual_seed(seed)
    (top,) = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        top.weight.copy_(torch.empty(top.weight.shape).normal_(std=TOP_STD, generator=random))
        top.bias.zero_()
    for parameter in head.parameters():
        for state in optimiser.state.get(parameter, {}).values():
            if isinstance(state, Tensor):
                state.zero_()


def two_sgds(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    make: Callable[..., torch.optim.Optimizer] = sgd,
    *,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Build the code's two optimisers as one: SGD with momentum 0.9 for the backbone, 0 for the classifier.

    All parameters decay.
    """
    named = list(named_parameters)
    top = [parameter for name, parameter in named if name.startswith("head.")]
    backbone = [(name, parameter) for name, parameter in named if not name.startswith("head.")]
    optimiser = make(backbone, momentum=0.9, weight_decay=weight_decay, decay_biases=True)
    optimiser.add_param_group({"params": top, "momentum": 0.0, "weight_decay": weight_decay})
    return optimiser
