"""Run the evaluation recipes as functions. Each returns the numbers of its result.json, in percent.

They print and write what the recipes' commands do. Their options are the recipes' own, with `_` for `-`. A
process makes one such call at a time, because all of its threads share torch's random state.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastpsl.console.offered import offer_only_all
from fastpsl.console.terminal import number_in
from fastpsl.engine.distributed import World, place_among_ranks, share
from fastpsl.engine.resume import new_numbered_folder
from fastpsl.engine.run import Run
from fastpsl.evaluation.options import with_weights
from fastpsl.evaluation.result_file import NAME, read_result
from fastpsl.model import Model
from fastpsl.scripts.call import call, require_data
from fastpsl.scripts.recipe import Evaluation
from fastpsl.scripts.recipe_files import find_recipe, short_name
from fastpsl.training import train_or_stop

__all__ = [
    "block_probe", "classification", "detection", "few_labels", "few_shot", "knn", "linear", "segmentation",
    "semi_supervised", "svm",
]  # fmt: skip
offer_only_all(__name__)
Place = str | os.PathLike[str] | None
Weights = Model | Place
Scores = dict[str, float]


def knn(
    model: Weights, data: Place = None, val: Place = None, *, out: Place = None, **options: Any
) -> Scores:
    """Score validation images by their nearest neighbours among the training images."""
    return _numbers("knn", model, {"data": data, "val": val, "out": out, **options})


def linear(
    model: Weights, data: Place = None, val: Place = None, *, out: Place = None, **options: Any
) -> Scores:
    """Train a linear classifier on each frozen block, and score it on validation images."""
    return _numbers("linear_probe", model, {"data": data, "val": val, "out": out, **options})


def few_labels(
    model: Weights, data: Place = None, val: Place = None, *, out: Place = None, **options: Any
) -> Scores:
    """Score logistic regressions on frozen blocks, which learn from few images of each class."""
    return _numbers("few_labels", model, {"data": data, "val": val, "out": out, **options})


def semi_supervised(
    model: Weights, data: Place = None, val: Place = None, *, out: Place = None, **options: Any
) -> Scores:
    """Train a copy of the model further on a few labels, and score it on validation images."""
    return _numbers("semi_supervised", model, {"data": data, "val": val, "out": out, **options})


def block_probe(
    model: Weights, data: Place = None, val: Place = None, *, out: Place = None, **options: Any
) -> Scores:
    """Train SSL++'s classifiers of several layers on frozen blocks, and score them on validation images."""
    return _numbers("block_probe", model, {"data": data, "val": val, "out": out, **options})


def few_shot(model: Weights, data: Place = None, *, out: Place = None, **options: Any) -> Scores:
    """Classify images of new classes by the mean features of a few examples, in many random episodes."""
    return _numbers("few_shot", model, {"data": data, "out": out, **options})


def svm(model: Weights, data: Place = None, *, out: Place = None, **options: Any) -> Scores:
    """Train VISSL's linear SVMs on VOC2007, for each block and class."""
    return _numbers("voc_svm", model, {"data": data, "out": out, **options})


def classification(model: Weights, data: Place = None, *, out: Place = None, **options: Any) -> Scores:
    """Train a copy of the model further for VOC2007's multi-label classification."""
    return _numbers("voc_classification", model, {"data": data, "out": out, **options})


def detection(model: Weights, data: Place = None, *, out: Place = None, **options: Any) -> Scores:
    """Train a copy of the model further in a detector on VOC."""
    return _numbers("voc_detection", model, {"data": data, "out": out, **options})


def segmentation(model: Weights, data: Place = None, *, out: Place = None, **options: Any) -> Scores:
    """Train a copy of the model further in a fully-convolutional network on VOC2012."""
    return _numbers("voc_segmentation", model, {"data": data, "out": out, **options})


def _numbers(name: str, model: Weights, values: Mapping[str, Any]) -> Scores:
    """Run an evaluation and return the numbers of its result.json."""
    script = find_recipe(name)
    require_data("data", values["data"])
    require_data("val", values.get("val"))
    weights = model.pretrained() if isinstance(model, Model) else None
    checkpoint = weights.record["path"] if weights else model
    backbone = None if weights else getattr(model, "backbone", None)  # of the result of `fastpsl.pretrain`

    def work(opened: list[Run]) -> Scores:
        all_values = {"backbone": backbone, **values, "checkpoint": checkpoint}
        given = {key: value for key, value in all_values.items() if value is not None}
        options = script.from_values(given)
        if weights is not None:
            options = with_weights(options, weights)
        if isinstance(script, Evaluation):
            return _without_training(script, options)
        train_or_stop(script, options, opened)
        return _read(opened[-1].folder)

    return call(script.name, work)


def _without_training(script: Evaluation[Any], options: Any) -> Scores:
    if options.out is not None:
        script.run(options)
        return _read(options.out)
    if number_in("WORLD_SIZE", 1) > 1:
        raise ValueError(
            f'{script.name}: several processes must share one folder; give it, such as out="runs/a"'
        )
    folder = new_numbered_folder(Path("runs"), short_name(script.name))
    try:
        script.run(replace(options, out=folder))
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()  # if an error left it empty
    return _read(folder)


def _read(folder: Path) -> Scores:
    """Return the numbers of the result that rank 0 has written, on every rank."""
    rank, size = place_among_ranks()
    numbers = read_result(folder / NAME)["numbers"] if rank == 0 else None
    shared: Scores = share(World(rank, size, rank, size, torch.device("cpu")), numbers)
    return shared
