"""Make pseudo-labels without a network, as baselines: k-means on pixels, random, true (SSL++, Table IX)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.console.screen import Progress
from fastpsl.engine.distributed import World
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.draws import Keys, Slot, integers
from fastpsl.pipelines.interface.dataset import Dataset, require_labels
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.pseudo_labels.k_means import fit_whitening

# The paper does not state the starts of k-means. Here: 10 from k-means++, scikit-learn's former default.
NUM_STARTS, NUM_ITERATIONS = 10, 100
_ROWS_AT_A_TIME = 4096
_OWN_VIEW = 255  # a view that no recipe has, so that the labels are independent of its draws of the same seed


def make_labels(
    source: str, data: Dataset, *, num_classes: int | None, pca_width: int, size_px: int, seed: int
) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Make labels by `source`: "k-means", "random" or "true"."""
    configuration: dict[str, Any] = {"source": source}
    if source == "true":
        if num_classes is not None:
            raise ValueError(
                f"--num-clusters {num_classes}: true labels have their own number of classes; leave it out"
            )
        require_labels(data, "`fastpsl labels true`")
        labels, num_classes = data.labels(), data.num_classes
    assert num_classes is not None
    require_images(data, num_classes, source)
    if source == "random":
        labels = random_labels(data.num_samples, num_classes, seed)
        configuration["seed"] = seed
    elif source == "k-means":
        labels = k_means_labels(data, num_classes, pca_width, size_px, seed)
        configuration |= {"pca_width": pca_width, "size_px": size_px, "seed": seed}
        configuration |= {"num_starts": NUM_STARTS, "num_iterations": NUM_ITERATIONS}
    return labels, num_classes, configuration | {"num_classes": num_classes}


def require_images(data: Dataset, num_classes: int, source: str) -> None:
    """Raise ValueError if there are fewer images than classes."""
    if num_classes > data.num_samples:
        remedy = "images" if source == "true" else f"images, or --num-clusters {data.num_samples} or less"
        raise ValueError(
            f"{num_classes:,} classes for {data.num_samples:,} images: "
            f"there can be no more classes than images; give more {remedy}"
        )


def random_labels(num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """Draw uniform labels, int64 [num_samples]; each depends on the seed and the sample's index alone."""
    keys = Keys(seed, 0, np.arange(num_samples), view=_OWN_VIEW)
    return integers(keys, Slot.TASK, 1, num_classes)[:, 0]


def k_means_labels(data: Dataset, num_classes: int, pca_width: int, size_px: int, seed: int) -> np.ndarray:
    """Return each image's cluster, int64 [N], by k-means on principal components of its central square.

    Paper (section V.E): PCA, then k-means, and no details. Here: components are not whitened, and the
    clustering with the smallest distances of NUM_STARTS is taken. Memory: the pixels as bytes, 3,072 per
    image at 32 px, which are 4 GB for 1.3 million images. Each image's components take 20 * pca_width bytes.
    Floats of 4,096 images come on top.
    """
    most = min(data.num_samples, 3 * size_px**2)
    if not 1 <= pca_width <= most:
        raise ValueError(
            f"--pca-width {pca_width}: {data.num_samples:,} images of {size_px} px have 1 to {most:,} "
            "components; give a number in this range"
        )
    rows = _components(_pixels(data, size_px), pca_width)
    return _clusters(rows, num_classes, seed)


def _pixels(data: Dataset, size_px: int) -> Tensor:
    """Return the central squares, resized, uint8 [N, 3 * size_px**2]."""
    rows = torch.empty(data.num_samples, 3 * size_px**2, dtype=torch.uint8)
    view = ViewSpec(ShorterSideCrop(size_px, size_px, "center"))
    with (
        Loader(data, [view], batch_size_per_rank=min(512, data.num_samples), train=False) as loader,
        Progress("reading pixels", "images", data.num_samples) as progress,
    ):
        for batch in loader.epoch(0):
            valid = batch.indices >= 0
            rows[batch.indices[valid]] = batch.images[0][valid].flatten(1)
            progress.update(int(batch.indices.max()) + 1, 0)
    return rows


def _components(rows: Tensor, width: int) -> Tensor:
    """Return principal components, float32 [N, width], of uint8 rows [N, D]; sklearn's PCA up to signs."""
    with Progress("", "images of PCA's two passes", 2 * len(rows)) as progress:
        whitening = fit_whitening(_Parts(rows, progress), width, World(0, 1, 0, 1, torch.device("cpu")))
    lengths = whitening.matrix.norm(dim=0)  # the inverse standard deviations, 0 without variance
    deviations = torch.where(lengths > 0, 1 / lengths, 0.0)
    return torch.cat([whitening(part) * deviations for part in rows.split(_ROWS_AT_A_TIME)])


class _Parts(Sequence[Tensor]):
    """A sequence of parts of the rows that reports to `progress` how many rows have been read."""

    def __init__(self, rows: Tensor, progress: Progress) -> None:
        self._parts, self._progress, self._num_read = rows.split(_ROWS_AT_A_TIME), progress, 0

    @override
    def __len__(self) -> int:
        return len(self._parts)

    @override
    def __getitem__(self, place: Any) -> Any:
        return self._parts[place]

    @override
    def __iter__(self) -> Iterator[Tensor]:
        for part in self._parts:
            yield part
            self._num_read += len(part)
            self._progress.update(self._num_read, 0)


def _clusters(rows: Tensor, num_clusters: int, seed: int) -> np.ndarray:
    """Return the clusters, int64 [N], of rows [N, d]: scikit-learn's KMeans(n_init=NUM_STARTS).

    The starts run one by one for the sake of the progress line.
    """
    from sklearn.cluster import KMeans

    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))  # takes any seed
    # Threads add up in any order. In float64 that changes no label, in float32 it sometimes changes one.
    points, best = rows.double().numpy(), None
    with Progress("k-means", "starts", NUM_STARTS) as progress:
        for start in range(NUM_STARTS):
            fitted = KMeans(num_clusters, n_init=1, max_iter=NUM_ITERATIONS, tol=0, random_state=random)
            fitted.fit(points)
            if best is None or fitted.inertia_ < best.inertia_:
                best = fitted
            progress.update(start + 1)
    assert best is not None
    return best.labels_.astype(np.int64)
