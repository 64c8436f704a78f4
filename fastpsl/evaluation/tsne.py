"""Map features to the plane by t-SNE (van der Maaten and Hinton, 2008; SSL++, section V.D and figure 5).

Paper: does not state perplexity and start. Here: 30, and the first two principal components of the unscaled
features. scikit-learn computes the map.
"""

import io
import time
from contextlib import ExitStack, closing

import numpy as np

from fastpsl.console.progress import operation
from fastpsl.console.words import number_of
from fastpsl.engine.distributed import World
from fastpsl.engine.resume import open_folder
from fastpsl.engine.run import open_both, open_given
from fastpsl.evaluation.features import Extraction
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.result import data_record, result_line, write_result
from fastpsl.files.atomic import write_atomically
from fastpsl.files.system_errors import output_errors
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.plots.charts import draw_map

MAX_SEED = 2**32 - 1
# scikit-learn squares differences in float32. If all squares are 0, its map is NaN, and it kills the process.
_LEAST_SPREAD = 1e-18


def fitting_perplexity(perplexity: float | None, num: int) -> float:
    """Return the perplexity; without one 30, or for few images a third of their number.

    Raises:
        ValueError: It is not between 0 and the number of images.
    """
    if perplexity is None:
        perplexity = min(30.0, num / 3)
    if not 0 < perplexity < num:
        raise ValueError(
            f"--perplexity {perplexity:g} of {num:,} images: it must be above 0 and below their number"
        )
    return perplexity


def make_map(
    options: EvaluationOptions, world: World, *, block: str, num: int, perplexity: float | None = None
) -> list[str]:
    """Map the features of `num` images of --data, drawn by --seed, and return lines to print.

    All images are mapped where there are fewer. Lines are returned on rank 0 alone.
    """
    started = time.monotonic()
    if num < 2:
        raise ValueError(f"--num {num}: a map needs 2 images or more")
    if options.seed > MAX_SEED:
        raise ValueError(f"--seed {options.seed}: scikit-learn takes seeds from 0 to {MAX_SEED}")
    weights = options.pretrained()
    with ExitStack() as stack:
        if options.val is None:
            parts = [open_given(options, options.data or sample_paths().test)]
        else:  # a share of --data that a run held back
            parts = [part for part in open_both(options) if part is not None]
        data = [stack.enter_context(closing(part)) for part in parts][-1]
        num = min(num, data.num_samples)
        perplexity = fitting_perplexity(perplexity, num)
        indices = np.sort(np.random.default_rng(options.seed).choice(data.num_samples, num, replace=False))
        subset = Subset(data, indices)
        work = Extraction.of(options, weights, subset, block, world, "float32")
        folder = stack.enter_context(open_folder("tsne", options, world))
        file = work.to_file(folder / "features.npy", world, overwrite=True)
        if world.rank != 0:
            return []
        good = file.good()
        if perplexity >= len(good):
            raise ValueError(
                f"--perplexity {perplexity:g}: only {len(good):,} images could be decoded; give a smaller one"
            )
        labels = subset.labels()[good]
        points, divergence = embed(file.features()[good], perplexity, options.seed)
        labelled = bool((labels >= 0).all())
        numbers = {"same_class_2d": 100 * same_class(points, labels)} if labelled else {}
        block, title = file.record["block"], f"{file.record['block']} of {file.record['backbone']}"
        with output_errors(folder):
            for name, values in (("tsne.npy", points), ("tsne-indices.npy", indices[good])):
                content = io.BytesIO()
                np.save(content, values)
                write_atomically(folder / name, content.getbuffer())
            chart = draw_map(
                folder / "tsne.png", points, labels, data.class_names,
                f"{title}: t-SNE of {len(good):,} images, perplexity {perplexity:g}",
            )  # fmt: skip
        settings = options.as_dict() | {
            "block": block, "num": num, "perplexity": perplexity, "init": "pca", "metric": "euclidean",
            "kl_divergence": round(divergence, 4), "features": file.record["digest"],
        }  # fmt: skip
        path = write_result(
            folder, recipe="tsne", protocol="tsne", numbers=numbers, settings=settings,
            checkpoint=weights.record, data=data_record(data, None), seconds=time.monotonic() - started,
        )  # fmt: skip
    score = "not every image has a label, so nothing is counted"
    if labelled:
        counts = np.bincount(labels)
        chance = 100 * (counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1))
        share = f"{numbers['same_class_2d']:.1f} % have a point of their class nearest in the map"
        score = f"{share} (chance {chance:.1f} %)"
    return [f"{len(good):,} images; {title}: {score}", f"map {chart}", result_line(path)]


def embed(features: np.ndarray, perplexity: float, seed: int) -> tuple[np.ndarray, float]:
    """Map features, float32 [n, C], to points, float32 [n, 2]; return the Kullback-Leibler divergence too.

    Raises:
        ValueError: The rows do not differ.
    """
    from sklearn.manifold import TSNE

    rows = np.ascontiguousarray(features, np.float32)
    if np.ptp(rows, 0).max() < _LEAST_SPREAD:
        raise ValueError(
            f"the features of {number_of(len(rows), 'image')} do not differ, so t-SNE has no map of them: "
            "check the weights, or give other images or another block"
        )

    tsne = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    with operation(f"t-SNE of {len(features):,} images"):
        points: np.ndarray = tsne.fit_transform(rows)
    return points.astype(np.float32), float(tsne.kl_divergence_)


def same_class(points: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of points whose nearest other point has the same label."""
    from sklearn.neighbors import NearestNeighbors

    # Without an argument, kneighbors searches for its own points and leaves each out of its neighbours.
    nearest = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False)[:, 0]
    return float((labels[nearest] == labels).mean())
