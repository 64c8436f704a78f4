"""DeepCluster: pseudo-labels by k-means on the network's features before each epoch (Caron et al., arXiv 1807.05520).

Values that the paper leaves open are its authors' code's (facebookresearch/deepcluster: main.py, clustering.py, util.py).
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.distributed import sum_over_ranks
from fastpsl.engine.fetch import Fetch, one_behind
from fastpsl.engine.optim.sgd_adam import sgd
from fastpsl.engine.reporter import Figures
from fastpsl.engine.seed import torch_seed
from fastpsl.engine.trunk import Trunk
from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.standard_views import center_view, train_view
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.pseudo_labels.k_means import drawn_rows, k_means
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify
from fastpsl.tasks.pseudo_labels.whitening import fit_whitening

TOP_STD = 0.01


class DeepCluster(PseudoClassify):
    """Learn the clusters of all images' features, which are made anew before each epoch; so is the classifier.

    Features are those of centre crops in eval mode: average-pooled, of fc7 before its ReLU, as in the code (`before_last_relu`);
    then PCA to `pca_width`, whitening, rows of length 1, `k_means_iterations` of k-means.
    Code: an empty cluster has no say in an epoch. Here: the biggest one is halved, as UIC does it, so none is empty.

    input: what the network sees (SobelXY in the paper); crops of `size_px`.
    """

    def __init__(
        self,
        num_classes: int,
        input: Input,
        size_px: int = 224,
        *,
        seed: int,
        pca_width: int = 256,
        k_means_iterations: int = 20,
    ):
        for name, value in (("pca-width", pca_width), ("k-means-iterations", k_means_iterations)):
            if value < 1:
                raise ValueError(f"--{name} {value}: it must be 1 or more")
        views = train_view(input, size_px), center_view(input, size_px)
        super().__init__(num_classes, *views, seed=seed, head_std=TOP_STD)
        self.pca_width, self.k_means_iterations = pca_width, k_means_iterations

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        if channels < self.pca_width:
            warnings.warn(
                f"--pca-width {self.pca_width}: features have {channels} numbers, so {channels} are kept",
                stacklevel=2,
            )
        return super().head(level, channels)

    @override
    def start_epoch(self, context: EpochContext) -> Figures:
        """New labels and a new classifier. What was interrupted before its end has changed nothing."""
        labels, distance = clustered_features(
            context, self.center, self.num_classes, self.pca_width, self.k_means_iterations, self.seed
        )
        renew(context.head, context.optimiser, torch_seed(self.seed, context.epoch))
        return {**self.relabel(labels, context.epoch), "distance": distance}


def clustered_features(
    context: EpochContext, view: ViewSpec, num_clusters: int, pca_width: int, num_iterations: int, seed: int
) -> tuple[Tensor, float]:
    """Labels int32 [N], the same on every rank (0 for images that cannot be decoded), and rows' mean squared distance to their centroid.

    Of all training images' features of `view` (`features_of`): PCA to `pca_width` at most, whitening, rows of length 1, k-means.
    """
    features = features_of(context, view)
    started = time.perf_counter()
    world, num = context.world, context.data.num_samples
    with context.run.reporter.off_the_clock(), doing(f"clustering {num:,} images, PCA first"):
        width = min(pca_width, features.blocks[0].shape[1], features.num_rows)
        whitening = fit_whitening(features.blocks, width, world)
        rows = torch.cat([F.normalize(whitening(block)) for block in features.blocks])
        initial = drawn_rows(rows, features.indices, num_clusters, num, seed, context.epoch, world)
        found, _, distance = k_means(rows, initial, num_iterations, world)
        labels = torch.zeros(num, dtype=torch.int32, device=world.device)
        labels[torch.from_numpy(features.indices).to(world.device)] = found.to(torch.int32)
        labels = sum_over_ranks(world, labels)
    context.run.reporter.say(f"clustering them took {time.perf_counter() - started:.1f} s")
    return labels, float(distance)


class Features(NamedTuple):
    """This rank's: blocks of rows, float16 [n, C] each on the host; the sample of each row, int64; the number of all ranks' rows."""

    blocks: list[Tensor]
    indices: np.ndarray
    num_rows: int


def features_of(context: EpochContext, view: ViewSpec) -> Features:
    """Of every image of this rank's share that can be decoded. ValueError, on all ranks, where float16 cannot hold one: of 1.28 million
    images, 4,096 numbers each are 10.5 GB as they are.
    """
    blocks: list[Tensor] = []
    indices: list[np.ndarray] = []
    num_bad = 0
    outputs = context.forward_dataset(view, lambda maps: maps.float().mean((2, 3)).half())
    with before_last_relu(context.train_step.module.trunk):
        for numbers, rows in one_behind((Fetch(numbers), Fetch(rows)) for numbers, rows in outputs):
            there = numbers.values() >= 0
            blocks.append(rows.values()[there])
            indices.append(numbers.values()[there].numpy())
            num_bad += int((~blocks[-1].isfinite().all(1)).sum())
    counts = torch.tensor([num_bad, sum(map(len, blocks))], device=context.world.device)
    bad, num_rows = sum_over_ranks(context.world, counts).tolist()
    if bad:
        raise ValueError(
            f"epoch {context.epoch}: features of {bad:,} of {num_rows:,} images are no finite float16 numbers, so they cannot be "
            f"clustered; lower --lr, give --precision bf16, or look at the weights"
        )
    return Features(blocks, np.concatenate(indices), num_rows)


@contextlib.contextmanager
def before_last_relu(trunk: Trunk) -> Iterator[None]:
    """The trunk without the ReLU in which its last block ends; as it is where that block is no plain row of layers, such as ResNet's."""
    last = [*trunk.frozen_as_run, *trunk.learning][-1]
    places = [place for place, layer in last.named_children() if isinstance(layer, nn.ReLU)]
    if not isinstance(last, nn.Sequential) or not places:
        yield
        return
    relu = last.get_submodule(places[-1])
    setattr(last, places[-1], nn.Identity())
    try:
        yield
    finally:
        setattr(last, places[-1], relu)


def renew(head: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    """The classifier as it began: weights N(0, 0.01) by `seed`, the same on all ranks, biases 0, and the optimiser remembers nothing of it."""
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
    weight_decay: float = 1e-5,
) -> torch.optim.Optimizer:
    """The code's two optimisers in one: SGD of momentum 0.9 for the backbone, and without momentum for the classifier; all decays."""
    named = list(named_parameters)
    top = [parameter for name, parameter in named if name.startswith("head.")]
    backbone = [(name, parameter) for name, parameter in named if not name.startswith("head.")]
    optimiser = make(backbone, momentum=0.9, weight_decay=weight_decay, decay_biases=True)
    optimiser.add_param_group({"params": top, "momentum": 0.0, "weight_decay": weight_decay})
    return optimiser
