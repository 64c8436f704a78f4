"""Make pseudo-labels of a network: clusters of its features of all images."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpsl.engine.distributed import World
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.features import Extraction
from fastpsl.tasks.pseudo_labels.k_means import clusters_of_samples

# Features are scaled to length 1, as kNN compares them, and not whitened as DeepCluster's are. Whitening
# keeps a new network from a few strong directions. In a trained network these are what it knows. Tried with
# an EfficientNet-Lite0 of ImageNet on clothes and scenes, 10 to 300 clusters, 3 or 5 starts each: whitening
# to 32 to 256 components lowered NMI with the true labels in all 16 cases, by 3 to 26 points. PCA without
# whitening made no difference with 70 clusters. Nor did 100 iterations, or the best of the starts.
NUM_ITERATIONS = 20


class FeatureLabels(NamedTuple):
    """The clusters of a network's features, and what they depend on."""

    labels: np.ndarray  # int32 [N]; 0 where an image could not be decoded
    configuration: dict[str, Any]
    made_by: str
    features: FeatureFile


def feature_labels(
    work: Extraction, folder: Path, num_clusters: int, seed: int, world: World
) -> FeatureLabels:
    """Cluster the features of an extraction by k-means, with all ranks.

    The features stay in `folder`, in a file named by their digest, and serve again for another number of
    clusters. Each rank holds its share of them on the host, as float16.

    Raises:
        ValueError: They cannot be computed or written, or fewer images than clusters can be decoded.
    """
    # A file of this name without its record was damaged, or stopped while it got its name.
    file = work.to_file(folder / f"features-{work.digest()[:8]}.npy", world, overwrite=True)
    own = np.array_split(file.good(), world.size)[world.rank]
    labels, _ = clusters_of_samples(
        file.of_length_1(own), own, work.data.num_samples, num_clusters=num_clusters,
        num_iterations=NUM_ITERATIONS, seed=seed, epoch=0, world=world,
    )  # fmt: skip
    record, block = work.pretrained.record, f"B{work.block}"
    configuration = {
        "source": "features", **work.pretrained.science(), "block": block, "size_px": work.size_px,
        "whole": work.whole, "num_iterations": NUM_ITERATIONS, "seed": seed, "num_classes": num_clusters,
        "cut": bool(record["cut"]),
    }  # fmt: skip
    whose = f"{record['path']}, sha256 {record['sha256'][:8]}…"
    made_by = f"fastpsl labels features, {block} of {record['backbone']} ({whose})"
    return FeatureLabels(labels.cpu().numpy(), configuration, made_by, file)
