"""The recipes' stages, to be measured: options as the recipe has them, and a job with its backbone in place."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.recipe import Recipe as TrainingRecipe
from fastpsl.engine.seed import torch_seed

Recipe = Literal[
    "jigsaw", "rotation", "simclr", "moco", "uic", "deepcluster",
    "sslpp_colorization", "sslpp_context", "sslpp_rotation", "sslpp_aet", "sslpp_iic",
]  # fmt: skip
StageName = Literal["S1", "S2", "S3", "E"]
# Where the recipe's file has another name.
MODULES = {
    "jigsaw": "jigsaw_r50",
    "rotation": "rotation_rv50",
    "simclr": "simclr_r50",
    "moco": "mocov2_r50",
    "uic": "uic_alexnet",
    "deepcluster": "deepcluster_alexnet",
}


def recipe_of(name: str) -> TrainingRecipe[Any]:
    """Return the RECIPE of a file under `recipes/`."""
    recipe: TrainingRecipe[Any] = importlib.import_module(f"recipes.{MODULES.get(name, name)}").RECIPE
    return recipe


def recipe_options(recipe: str, *, is_sample: bool, batch_size: int, **values: Any) -> PretrainOptions:
    """Return a recipe's options: its PAPER values, for the embedded sample its SAMPLE values, and `values` that are not None.

    Raises:
        ValueError: They cannot be.
    """
    chosen = recipe_of(recipe)
    given = (dict(chosen.sample) if is_sample else {}) | {"batch_size": batch_size}
    given |= {name: value for name, value in values.items() if value is not None}
    if {**chosen.paper, **given}.get(
        "key_group", 0
    ) >= batch_size:  # MoCo's; a group must be smaller than the batch
        given["key_group"] = max(1, batch_size // 2)
    options: PretrainOptions = chosen.with_paper(**given)
    return options


def stage_names(options: PretrainOptions) -> Sequence[str]:
    """Of PSL's plan with these options, and E: end to end."""
    return [*(f"S{number + 1}" for number in range(len(options.stage_epochs))), "E"]


def stage_experiment(
    recipe: str, stage: str, options: PretrainOptions, world: World
) -> tuple[Experiment, int]:
    """A job of its own with fresh weights, on the device, and the number of `stage` in it."""
    if stage == "E":
        options = replace(options, plan="end_to_end")
    torch.manual_seed(torch_seed(options.seed))
    experiment = recipe_of(recipe).build(options)
    names = [each.name for each in experiment.stages]
    if stage not in names:
        raise ValueError(f"--stages {stage}: {recipe} has {', '.join(stage_names(options))}")
    place_backbone(experiment, options, world)
    return experiment, names.index(stage)
