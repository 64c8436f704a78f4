"""Few-shot classification by class means on frozen features, without fine-tuning.

This is the metric of Prototypical Networks, as UIC, Table 6, applies it to frozen features. An episode
draws `ways` classes. The mean of `shots` images stands for each class. Each of its `queries` further images
is assigned to the class with the nearest mean by squared Euclidean distance. Nothing is learned. The paper
states neither the number of episodes nor of queries: see recipes/few_shot.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from typing_extensions import override

from fastpsl.engine.distributed import World
from fastpsl.evaluation.features import Extraction
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.protocols import Pool, block_shapes
from fastpsl.kernels.draws import MAX_WORDS, Keys, Slot, words
from fastpsl.kernels.geometry import Enlarge
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.views import SHORTER_OF_SIZE, ViewSpec, squashed_view

MAX_POOL = "_max_pool"
# The second is AlexNet's own pool between conv5 and fc6.
_POOLS = {"": Pool(None), MAX_POOL: Pool(None, "max", window=(None, 3, 2, 0))}
_MAX_WAYS = 255  # each class takes a view of the draws, and view 0 draws the classes
# Limits of memory on the device, in columns or values of features: all images', and those of some episodes.
_COLUMNS, _ALL_VALUES, _EPISODE_VALUES = 8_192, 1 << 26, 1 << 25


@dataclass(frozen=True)
class SmallImages(Extraction):
    """An extraction of features from images that are first resized to `source_px` a side, then enlarged.

    The images of miniImageNet are 84 x 84. For a `size_px` of 224 they are enlarged to 256 and the middle is
    cropped; for 84 they are used as they are. The whole image is squashed to a square, because the usual
    images of miniImageNet are made of ImageNet's in this way.
    """

    source_px: int = field(kw_only=True)

    @property
    @override
    def view(self) -> ViewSpec:
        source = squashed_view(self.pretrained.input, self.source_px)
        if self.size_px == self.source_px:
            return source
        enlarge = Enlarge(round(self.size_px * SHORTER_OF_SIZE), self.size_px)
        return replace(source, ops=(enlarge, *source.ops))

    @override
    def wanted(self) -> dict[str, Any]:
        return super().wanted() | {"source_px": self.source_px}

    @property
    def name(self) -> str:
        """The name of the features: B5, or B5_max_pool."""
        return f"B{self.block}" + (MAX_POOL if self.pool == _POOLS[MAX_POOL] else "")


def few_shot_works(
    options: EvaluationOptions,
    weights: Pretrained,
    data: Dataset,
    blocks: Sequence[str],
    source_px: int,
    world: World,
) -> list[SmallImages]:
    """Return an extraction for each block.

    Args:
        options: Options of the evaluation.
        weights: The frozen backbone.
        data: Labelled images.
        blocks: Names such as B3, conv3 or B5_max_pool.
        source_px: See `SmallImages`.
        world: The ranks that share the work.

    Raises:
        ValueError: If the images are too small, or if there is no such block or no room for its pool.
    """
    min_height, min_width, _, _ = data.image_sizes()
    smallest = min(min_height, min_width)
    if smallest < source_px:
        raise ValueError(
            f"--source-px {source_px}: the data has images of {smallest} px, which would be enlarged "
            f"before they are shrunk; give --source-px {smallest}, or larger images"
        )
    if options.size_px < source_px:
        raise ValueError(
            f"--size-px {options.size_px}: the network is shown images of --source-px {source_px} as they "
            f"are or enlarged; give {source_px} or more"
        )
    plain = [block.removesuffix(MAX_POOL) for block in blocks]
    pools = [_POOLS[block[len(name) :]] for block, name in zip(blocks, plain, strict=True)]
    extractions = Extraction.for_blocks(options, weights, data, plain, world, "float16", pools)
    works = []
    for block, extraction in zip(blocks, extractions, strict=True):
        # Every rank has the whole batch size, because equal shapes give equal bytes for any number of ranks.
        values = {f.name: getattr(extraction, f.name) for f in fields(extraction)}
        work = SmallImages(**values | {"batch_size": options.batch_size}, source_px=source_px)
        *_, (_, height, width) = block_shapes(weights.backbone, work.view, work.block)
        if work.pool == _POOLS[MAX_POOL] and min(height, width) < 3:
            raise ValueError(
                f"--block {block}: its maps of {height} x {width} are smaller than the pool's 3 x 3; "
                f"give a larger --size-px, or {block.removesuffix(MAX_POOL)}"
            )
        works.append(work)
    return works


def classes_of(data: Dataset, ways: int, num_each: int, bad: Sequence[int] = ()) -> list[np.ndarray]:
    """Return the samples (int64) of each class that has any.

    Args:
        data: A labelled data set.
        ways: Number of classes that an episode needs.
        num_each: Number of samples that an episode needs of each class.
        bad: Samples to leave out.

    Raises:
        ValueError: If there are fewer than `ways` classes, or a class has fewer than `num_each` samples.
    """
    labels = data.labels().copy()
    labels[list(bad)] = -1
    order = labels.argsort(kind="stable")[np.count_nonzero(labels < 0) :]
    classes, starts = np.unique(labels[order], return_index=True)
    if len(classes) < ways:
        raise ValueError(f"--ways {ways}: the data has {len(classes):,} classes; give no more than that")
    members = np.split(order, starts[1:])
    fewest = min(range(len(members)), key=lambda i: len(members[i]))
    if len(members[fewest]) < num_each:
        label = int(classes[fewest])
        name = data.class_names[label] if data.class_names else str(label)
        raise ValueError(
            f"--shots and --queries ask for {num_each:,} images of a class, "
            f"and class {name} has {len(members[fewest]):,}; lower them, or leave the class out"
        )
    return members


class Episodes(NamedTuple):
    """The samples of E episodes, each at most once in an episode; those of [e, w] belong to class w of e."""

    support: np.ndarray  # int64 [E, ways, shots], which the class means are computed from
    queries: np.ndarray  # int64 [E, ways, queries], which are classified


def draw_episodes(
    members: Sequence[np.ndarray], num: int, ways: int, shots: int, queries: int, seed: int
) -> Episodes:
    """Draw the episodes 0 to `num` - 1, each a pure function of the seed and its number.

    Classes, and samples of each class, are drawn uniformly without replacement, in `Slot.TASK`: the classes
    in view 0, the samples of class w in view 1 + w.

    Args:
        members: The samples (int64) of each class.
        num: Number of episodes.
        ways: Classes per episode.
        shots: Support samples per class.
        queries: Query samples per class.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are more classes or samples than the draws allow.
    """
    each = shots + queries
    if ways > _MAX_WAYS or each > MAX_WORDS:
        raise ValueError(
            f"--ways {ways}, --shots {shots} and --queries {queries}: allowed are {_MAX_WAYS} classes "
            f"and {MAX_WORDS:,} images of each"
        )
    numbers = np.arange(num, dtype=np.int64)
    sizes = np.array([len(rows) for rows in members])
    starts = np.cumsum(sizes) - sizes
    samples = np.concatenate(members)
    classes = _without_replacement(
        words(Keys(seed, 0, numbers, 0), Slot.TASK, ways), np.full(num, len(members))
    )
    chosen = np.empty((num, ways, each), np.int64)
    for way in range(ways):
        labels = classes[:, way]
        places = _without_replacement(words(Keys(seed, 0, numbers, 1 + way), Slot.TASK, each), sizes[labels])
        chosen[:, way] = samples[starts[labels, None] + places]
    return Episodes(chosen[..., :shots], chosen[..., shots:])


def _without_replacement(random_words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draw k different numbers from 0 to sizes[e] - 1 for each row e of uint32 [E, k], in random order."""
    chosen = np.empty(random_words.shape, np.int64)
    for i in range(random_words.shape[1]):
        # A number among those that are left; the loop counts it past those that are taken, from the lowest
        # on.
        place = (random_words[:, i].astype(np.int64) * (sizes - i)) >> 32
        for taken in np.sort(chosen[:, :i], axis=1).T:
            place += place >= taken
        chosen[:, i] = place
    return chosen


@torch.no_grad()
def num_hits(features: np.ndarray, episodes: Episodes, device: torch.device) -> np.ndarray:
    """Count the queries of each episode that are nearest to the mean of their own class.

    Of equal distances the first class counts. The squared distance ||q - m||^2 is ||q||^2 - 2 q.m + ||m||^2.
    Its first term is the same for all classes and is left out. The features are centred first, so that no
    precision is lost.

    Args:
        features: [N, D] of any float dtype. A memory map is read some columns at a time, at most 256 MB.
        episodes: Row numbers of `features`.
        device: Device of the computation.

    Returns:
        int64 [E].
    """
    num, ways, _ = episodes.support.shape
    per_class = episodes.queries.shape[2]
    nearness = torch.zeros(num, ways * per_class, ways, device=device)
    support, queries = (torch.from_numpy(rows).to(device) for rows in episodes)
    step = max(1, min(_COLUMNS, _ALL_VALUES // len(features)))
    at_once = max(1, _EPISODE_VALUES // (step * ways * (support.shape[2] + per_class)))
    with no_tf32():
        for start in range(0, features.shape[1], step):
            columns = torch.from_numpy(np.array(features[:, start : start + step])).to(device).float()
            columns -= columns.nanmean(0)  # NaN where an image could not be decoded; it is in no episode
            for first in range(0, num, at_once):
                part = slice(first, first + at_once)
                means, shown = columns[support[part]].mean(2), columns[queries[part].flatten(1)]
                nearness[part] += 2 * shown @ means.mT - means.square().sum(2)[:, None]
    right = nearness.argmax(2).view(num, ways, per_class) == torch.arange(ways, device=device)[:, None]
    return right.sum((1, 2)).cpu().numpy()


class Accuracy(NamedTuple):
    """A mean accuracy over episodes, in percent."""

    mean: float
    interval: float  # half of the 95 % confidence interval: 1.96 standard errors

    @classmethod
    def of(cls, right: np.ndarray, num_queries: int) -> "Accuracy":
        """Compute the accuracy from `right` (int64 [E], E > 1) of `num_queries` in each episode."""
        shares = 100 * right / num_queries
        return cls(float(shares.mean()), float(1.96 * shares.std(ddof=1) / len(shares) ** 0.5))
