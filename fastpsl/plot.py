"""Draw figures of runs, features and data. A notebook shows them, and `figure.savefig(path)` writes them."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from fastpsl.console.offered import named_arguments, offer_only_all
from fastpsl.embedding import embed, open_for, training_images
from fastpsl.evaluation import tsne as t_sne
from fastpsl.evaluation.neighbours import nearest_others, why_no_precision
from fastpsl.model import Model, load
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.shared_images import shared_images
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from fastpsl.plots import charts, contact_sheet
from fastpsl.plots.charts import map_figure
from fastpsl.plots.inline import figure_of
from fastpsl.plots.neighbours import neighbour_sheet
from fastpsl.scripts.call import require_data, tensors_on_cpu, user_errors
from fastpsl.tables.comparison import compare as compare_places

__all__ = ["blocks", "compare", "curve", "neighbours", "tsne", "views"]
offer_only_all(__name__)
Place = str | os.PathLike[str]


@named_arguments()
@user_errors()
def curve(run: Place) -> Figure:
    """Draw each number of a run over its steps."""
    if not (Path(run) / "metrics.jsonl").is_file():
        raise ValueError(f"{os.fspath(run)} has no metrics.jsonl: give the folder of a run")
    return charts.curve(Path(run))


@named_arguments()
@user_errors()
def compare(runs: Place | Sequence[Place]) -> Figure:
    """Draw the kNN accuracy of runs against wall clock, images, and energy where it was measured.

    The argument is that of `fastpsl.compare`.
    """
    comparison = compare_places([runs] if isinstance(runs, str | os.PathLike) else runs)
    if not comparison.panels:
        raise ValueError(f"no run has a curve of its kNN accuracy: {'; '.join(comparison.notes)}")
    return charts.monitor_figure(comparison.panels)


@named_arguments()
@user_errors()
def tsne(
    features: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    *,
    perplexity: float | None = None,
    seed: int = 0,
    title: str | None = None,
) -> Figure:
    """Map features [N, C] to the plane by t-SNE, and draw a point per row in the colour of its class.

    Labels are integers [N], -1 for none; without any, all points are grey. Rows with NaN are left out. The
    perplexity is 30, or for few rows a third of their number.
    """
    features = np.asarray(features)
    every = np.full(len(features), -1) if labels is None else np.asarray(labels)
    if features.ndim != 2 or every.shape != features.shape[:1]:
        raise ValueError(
            f"features {features.shape} and labels {every.shape}: give features [N, C] and labels [N]"
        )
    good = np.isfinite(features).all(1)
    num = int(good.sum())
    perplexity = t_sne.fitting_perplexity(perplexity, num)
    points, _ = t_sne.embed(features[good], perplexity, seed)
    words = f"t-SNE of {num:,} images, perplexity {perplexity:g}" if title is None else title
    return map_figure(points, every[good], class_names, words)


@named_arguments()
def blocks(numbers: dict[str, float], *, chance: float | None = None, title: str = "") -> Figure:
    """Draw the accuracies of `fastpsl.evaluate.linear` or `fastpsl.evaluate.block_probe` as bars."""
    if not any(name.startswith("top1_") for name in numbers):
        raise ValueError(f"numbers {', '.join(numbers) or 'without any'}: give top1_B1, top1_B2, …")
    return charts.block_figure(numbers, title, chance)


@named_arguments()
@user_errors()
@tensors_on_cpu()
def views(
    data: Place | None = None,
    views: Sequence[ViewSpec] | None = None,
    *,
    indices: Sequence[int] = (0, 1, 2, 3),
    seed: int = 0,
) -> Figure:
    """Draw images in all their views, with random augmentations like those of a training.

    Args:
        data: The path of a folder of images, a list of them, a dataset file (.beton) or a glob of such
            files. None means the generated sample.
        views: The views. By default, those of `fastpsl.views.simclr`. Each view must give three channels and
            one image per sample.
        indices: The images, by their positions in the data.
        seed: The seed of the augmentations.

    Returns:
        A matplotlib figure with one row or more per image.

    Raises:
        ValueError: There are no such images, or a view gives something else.
    """
    if views is None:
        from fastpsl.views import simclr

        views = simclr()
    require_data("data", data)
    with closing(open_data(os.fspath(data) if data is not None else sample_paths().train)) as opened:
        for index in indices:
            if not 0 <= index < opened.num_samples:
                raise ValueError(f"index {index}: the images are 0 to {opened.num_samples - 1:,}")
        if not len(indices):
            raise ValueError("no indices: name one image or more")
        chosen = Subset(opened, np.asarray(indices, np.int64))
        with Loader(chosen, views, batch_size_per_rank=len(indices), train=False, seed=seed) as loader:
            with closing(loader.epoch(0)) as batches:
                batch = next(batches)
            rows = []
            for view, images in zip(loader.views, batch.inputs(loader.views, torch.float32), strict=True):
                if len(images) != len(indices):
                    raise ValueError(
                        "a view makes several images of one, for which this figure has no place: "
                        "give other views"
                    )
                rows.append(view.denormalise(images))
    side = max(image.shape[-1] for image in rows)
    padded = [torch.nn.functional.pad(each, (0, side - each.shape[-1], 0, side - each.shape[-2]), value=0.25)
              for each in rows]  # fmt: skip
    names = [f"#{index}" for index in indices]
    strips = torch.cat(padded, 3)
    return figure_of(contact_sheet.contact_sheet(strips, names, len(names)))


@named_arguments()
@user_errors()
@tensors_on_cpu()
def neighbours(
    model: Model | Place,
    gallery: Place | None = None,
    queries: Place | None = None,
    *,
    indices: Sequence[int] = (0, 1, 2, 3),
    k: int = 7,
    block: str = "final",
) -> Figure:
    """Draw images and their nearest images in a gallery, framed by class.

    Nearness is the cosine of features. Without a gallery it is the images that the model's run learned from,
    or the generated sample. Without queries they are images of the gallery.
    """
    if not isinstance(model, Model):
        model = load(model)
    require_data("gallery", gallery)
    require_data("queries", queries)
    place = training_images(model, "give gallery") if gallery is None else os.fspath(gallery)
    with closing(open_for(model, place)) as bank, closing(open_for(model, queries or place)) as asked:
        numbers = np.asarray(indices, np.int64)
        if not len(numbers) or numbers.min() < 0 or numbers.max() >= asked.num_samples:
            raise ValueError(f"indices {list(indices)}: give some of 0 to {asked.num_samples - 1:,}")
        shared = shared_images(asked, bank)
        most = bank.num_samples - shared.are_all
        if not 1 <= k <= most:
            raise ValueError(f"k is {k}: the gallery has 1 to {most:,} neighbours to show")
        features, _ = embed(model, bank, block=block)
        own = None if shared.own is None else shared.own[numbers]
        of_queries = embed(model, Subset(asked, numbers), block=block)[0] if own is None else features[own]
        found = nearest_others(of_queries, features, k, own, torch.device("cpu"))
        sheet = neighbour_sheet(
            asked,
            bank,
            numbers,
            found.rows.numpy(),
            found.similarities.numpy(),
            {},
            called="query",
            judged=not why_no_precision(bank, asked),
        )
    return figure_of(sheet)
