"""The stages of the recipes, ready to be measured: the recipe's options, and an experiment with its backbone
in place.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import override
from tyro.conf import arg

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.options import PerStage, PretrainOptions, per_stage
from fastpsl.engine.stage_bench import StageBench, endless
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import epoch_order, numbered
from fastpsl.scripts.recipe import Recipe as TrainingRecipe
from fastpsl.scripts.recipe_files import find_recipe

Recipe = Literal[
    "jigsaw", "rotation", "simclr", "moco", "uic", "deepcluster",
    "sslpp_colorization", "sslpp_context", "sslpp_rotation", "sslpp_aet", "sslpp_iic", "uic_cifar10",
    "supervised",
]  # fmt: skip
StageName = Literal["S1", "S2", "S3", "E", "B"]
DATA = arg(
    help="A dataset file, or a quoted glob of shards. "
    "Without it: the embedded sample, with the recipes' small values."
)
# Recipes with another file name.
MODULES = {
    "jigsaw": "jigsaw_r50", "rotation": "rotation_rv50", "simclr": "simclr_r50", "moco": "mocov2_r50",
    "uic": "uic_alexnet", "deepcluster": "deepcluster_alexnet",
}  # fmt: skip


def recipe_of(name: str) -> TrainingRecipe[Any]:
    """Return the RECIPE of a file under `recipes/`."""
    recipe = find_recipe(MODULES.get(name, name))
    assert isinstance(recipe, TrainingRecipe)
    return recipe


def recipe_options(recipe: str, *, is_sample: bool, batch_size: PerStage, **values: Any) -> PretrainOptions:
    """Return the options of a recipe, for the paper's values or for the embedded sample."""
    training_recipe = recipe_of(recipe)
    overrides = (dict(training_recipe.sample) if is_sample else {}) | {"batch_size": batch_size}
    overrides |= {name: value for name, value in values.items() if value is not None}
    # MoCo's; a group must be smaller than the batch.
    smallest = min(per_stage(batch_size))
    if {**training_recipe.paper, **overrides}.get("key_group", 0) >= smallest:
        overrides["key_group"] = max(1, smallest // 2)
    options: PretrainOptions = training_recipe.with_paper(**overrides)
    return options


def stage_names(options: PretrainOptions) -> Sequence[str]:
    """Return the names of PSL's stages with these options, E for end to end, and B for all parts at once."""
    return [*(f"S{number + 1}" for number in range(len(options.epochs))), "E", "B"]


def stage_experiment(
    recipe: str, stage: str, options: PretrainOptions, world: World
) -> tuple[Experiment, int]:
    """Return a new experiment with fresh weights on the device, and the index of `stage` in it."""
    if stage in ("E", "B"):
        options = replace(options, plan="end_to_end" if stage == "E" else "blockwise")
    torch.manual_seed(torch_seed(options.seed))
    experiment = recipe_of(recipe).build(options)
    names = [each.name for each in experiment.stages]
    if stage not in names:
        raise ValueError(f"--stages {stage}: {recipe} has {', '.join(stage_names(options))}")
    place_backbone(experiment, options, world)
    return experiment, names.index(stage)


MIN_STEPS = 60


class LongEpochs(StageBench):
    """A StageBench whose epochs have at least MIN_STEPS steps."""

    @override
    def batches(self, loader: Loader) -> Generator[Batch, None, None]:
        if loader.num_steps >= MIN_STEPS:
            return super().batches(loader)
        loader.num_steps = MIN_STEPS

        def epoch(number: int) -> Generator[Batch, None, None]:
            # Loader.epoch takes orders of the set's own length only.
            return loader._batches(number, 0, long_order(loader, number))

        long: Any = SimpleNamespace(prefetch_batches=loader.prefetch_batches, epoch=epoch)
        return endless(long, self._epochs)


def long_order(loader: Loader, epoch: int) -> np.ndarray:
    """Return int64 [MIN_STEPS * global batch]: whole random orders of a small set, with repeats numbered."""
    num = MIN_STEPS * loader.batch_size_per_rank * loader.world
    passes = -(-num // loader.num_samples)
    orders = [
        epoch_order(loader.seed, epoch * passes + number, loader.num_samples) for number in range(passes)
    ]
    return numbered(np.concatenate(orders)[:num])
