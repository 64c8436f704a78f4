"""The recipes' stages, to be measured: options as the recipe has them, and a job with its backbone in place."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.options import PretrainOptions
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


def recipe_module(recipe: str) -> Any:
    """The file under `recipes/`."""
    return importlib.import_module(f"recipes.{MODULES.get(recipe, recipe)}")


def recipe_options(recipe: str, *, is_sample: bool, batch_size: int, **values: Any) -> PretrainOptions:
    """A recipe's options: its PAPER values, for the embedded sample its SAMPLE values, and `values` that are not None.

    ValueError where they cannot be.
    """
    module = recipe_module(recipe)
    chosen: dict[str, Any] = module.PAPER | (module.SAMPLE if is_sample else {}) | {"batch_size": batch_size}
    chosen |= {name: value for name, value in values.items() if value is not None}
    if chosen.get("key_group", 0) >= batch_size:  # MoCo's; a group must be smaller than the batch
        chosen["key_group"] = max(1, batch_size // 2)
    options: PretrainOptions = module.Options(**chosen)
    return options


def stage_names(options: PretrainOptions) -> Sequence[str]:
    """Of PSL's plan with these options, and E: end to end."""
    return [*(f"S{number + 1}" for number in range(len(options.stage_epochs))), "E"]


def experiment_of(recipe: str, options: PretrainOptions) -> Experiment:
    """As `recipes/` builds it."""
    experiment: Experiment = recipe_module(recipe).build(options)
    return experiment


def stage_experiment(
    recipe: str, stage: str, options: PretrainOptions, world: World
) -> tuple[Experiment, int]:
    """A job of its own with fresh weights, on the device, and the number of `stage` in it."""
    if stage == "E":
        options = replace(options, plan="end_to_end")
    torch.manual_seed(torch_seed(options.seed))
    experiment = experiment_of(recipe, options)
    names = [each.name for each in experiment.stages]
    if stage not in names:
        raise ValueError(f"--stages {stage}: {recipe} has {', '.join(stage_names(options))}")
    place_backbone(experiment, options, world)
    return experiment, names.index(stage)
