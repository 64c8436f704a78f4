"""Few-shot classification by class means, without fine-tuning (uic.txt, Table 6: the metric of Prototypical Networks on frozen features).

An episode draws `ways` classes, and of each `shots` pictures, whose mean is the class's, and `queries`, each of which is said to be of the class
whose mean is nearest by squared Euclidean distance. Nothing is learned. The paper does not say how many episodes and queries: see recipes/few_shot.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.engine.distributed import World
from fastpsl.evaluation.blocks import block_shapes
from fastpsl.evaluation.features import Extraction
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.protocols import Pool
from fastpsl.kernels.draws import MAX_WORDS, Keys, Slot, words
from fastpsl.kernels.enlarge import Enlarge
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.standard_views import SHORTER_OF_SIZE, squashed_view
from fastpsl.pipelines.views import ViewSpec

MAX_POOL = "_max_pool"
# A block's maps as they are, and by AlexNet's own pool between conv5 and fc6.
_POOLS = {"": Pool(None), MAX_POOL: Pool(None, "max", window=(None, 3, 2, 0))}
_MAX_WAYS = 255  # a view of the draws each, beside that of the classes
# On the device at once, in values: columns of all pictures' features, and the features of some episodes' pictures.
_COLUMNS, _ALL_VALUES, _EPISODE_VALUES = 8_192, 1 << 26, 1 << 25


@dataclass(frozen=True)
class SmallPictures(Extraction):
    """Features of pictures that are first made `source_px` a side, whatever they were, and then enlarged to what the network is shown.

    miniImageNet's are 84 x 84: of size_px 224 they are enlarged to 256, whose middle is seen; of 84 they are seen as they are. As its usual
    pictures are made of ImageNet's, the whole of a picture is made square.
    """

    source_px: int = 84

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
        """B5, or B5_max_pool."""
        return f"B{self.block}" + (MAX_POOL if self.pool == _POOLS[MAX_POOL] else "")


def few_shot_works(
    options: EvaluationOptions,
    weights: Pretrained,
    data: Dataset,
    blocks: Sequence[str],
    source_px: int,
    world: World,
) -> list[SmallPictures]:
    """An extraction for each of `blocks`: B3, conv3, …, or B5_max_pool. ValueError where a block or pool cannot be had of these pictures."""
    min_height, min_width, _, _ = data.image_sizes()
    smallest = min(min_height, min_width)
    if smallest < source_px:
        raise ValueError(
            f"--source-px {source_px}: the data has pictures of {smallest} px, which would be enlarged before they are shrunk; "
            f"give --source-px {smallest}, or larger pictures"
        )
    if options.size_px < source_px:
        raise ValueError(
            f"--size-px {options.size_px}: the network is shown pictures of --source-px {source_px} as they are or enlarged; give {source_px} or more"
        )
    plain = [block.removesuffix(MAX_POOL) for block in blocks]
    pools = [_POOLS[block[len(name) :]] for block, name in zip(blocks, plain, strict=True)]
    found = SmallPictures.for_blocks(options, weights, data, plain, world, "float16", pools)
    works = []
    for block, each in zip(blocks, found, strict=True):
        assert isinstance(each, SmallPictures)
        # Of a rank as of all: batches of one shape, and so bytes that are equal for any number of ranks.
        work = replace(each, source_px=source_px, batch_size=options.batch_size)
        *_, (_, height, width) = block_shapes(weights.backbone, work.view, work.block)
        if work.pool == _POOLS[MAX_POOL] and min(height, width) < 3:
            raise ValueError(
                f"--block {block}: its maps of {height} x {width} are smaller than the pool's 3 x 3; give larger pictures, or {plain[-1]}"
            )
        works.append(work)
    return works


def classes_of(data: Dataset, ways: int, num_each: int, bad: Sequence[int] = ()) -> list[np.ndarray]:
    """The samples (int64) of each class that has any, but for the `bad` ones. ValueError where there are fewer classes than `ways`, or a class
    has fewer than `num_each`."""
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
            f"--shots and --queries ask for {num_each:,} pictures of a class, and class {name} has {len(members[fewest]):,}; "
            "lower them, or leave it out"
        )
    return members


class Episodes(NamedTuple):
    """Of E episodes the samples, each once in an episode; the class of [e, w, …] is the w-th of that episode."""

    support: np.ndarray  # int64 [E, ways, shots]
    queries: np.ndarray  # int64 [E, ways, queries]


def draw_episodes(
    members: Sequence[np.ndarray], num: int, ways: int, shots: int, queries: int, seed: int
) -> Episodes:
    """Episodes 0 to `num` - 1, each a pure function of (seed, its number): classes, and pictures of each, without replacement, every choice as likely.

    Drawn in Slot.TASK: in view 0 the classes, in view 1 + w the pictures of the w-th. ValueError for more than the draws give.
    """
    each = shots + queries
    if ways > _MAX_WAYS or each > MAX_WORDS:
        raise ValueError(
            f"--ways {ways}, --shots {shots} and --queries {queries}: allowed are {_MAX_WAYS} classes and {MAX_WORDS:,} pictures of one"
        )
    numbers = np.arange(num, dtype=np.int64)
    sizes = np.array([len(these) for these in members])
    starts = np.cumsum(sizes) - sizes
    samples = np.concatenate(members)
    classes = _without_replacement(
        words(Keys(seed, 0, numbers, 0), Slot.TASK, ways), np.full(num, len(members))
    )
    chosen = np.empty((num, ways, each), np.int64)
    for way in range(ways):
        own = classes[:, way]
        places = _without_replacement(words(Keys(seed, 0, numbers, 1 + way), Slot.TASK, each), sizes[own])
        chosen[:, way] = samples[starts[own, None] + places]
    return Episodes(chosen[..., :shots], chosen[..., shots:])


def _without_replacement(random_words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int64 [E, k]: of each row's 0 to size - 1 (int64 [E]) k different ones, in random order, by words uint32 [E, k]."""
    chosen = np.empty(random_words.shape, np.int64)
    for i in range(random_words.shape[1]):
        # The i-th of those that are left; counted past those that are taken, from the lowest.
        place = (random_words[:, i].astype(np.int64) * (sizes - i)) >> 32
        for taken in np.sort(chosen[:, :i], axis=1).T:
            place += place >= taken
        chosen[:, i] = place
    return chosen


@torch.no_grad()
def num_right(features: np.ndarray, episodes: Episodes, device: torch.device) -> np.ndarray:
    """int64 [E]: how many of each episode's queries are nearest to the mean of their own class; of equal distances the first class counts.

    features: [N, D], of any float dtype, or a memory map, of which some columns at a time are on the device: 256 MB at most.
    ||q - m||^2 is ||q||^2 - 2 q.m + ||m||^2, whose first term is all classes' alike; features are centred before, so that nothing is lost.
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
            columns -= columns.nanmean(0)  # NaN: pictures that could not be decoded, and are in no episode
            for first in range(0, num, at_once):
                part = slice(first, first + at_once)
                means = columns[support[part]].mean(2)
                found = columns[queries[part].flatten(1)]
                nearness[part] += _nearness(found, means)
    right = nearness.argmax(2).view(num, ways, per_class) == torch.arange(ways, device=device)[:, None]
    return right.sum((1, 2)).cpu().numpy()


def _nearness(queries: Tensor, means: Tensor) -> Tensor:
    """[E, Q, D] and [E, W, D] to [E, Q, W]: 2 q.m - ||m||^2."""
    return 2 * queries @ means.mT - means.square().sum(2)[:, None]


class Accuracy(NamedTuple):
    """Percent: the mean over episodes, and half of its 95 % confidence interval, 1.96 standard errors."""

    mean: float
    interval: float

    @classmethod
    def of(cls, right: np.ndarray, num_queries: int) -> "Accuracy":
        """right: int64 [E], of `num_queries` in each of E > 1 episodes."""
        shares = 100 * right / num_queries
        return cls(float(shares.mean()), float(1.96 * shares.std(ddof=1) / len(shares) ** 0.5))
