"""The tasks that `fastpsl show` draws: those of the recipes, with all lengths scaled by one factor."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.engine.task import Task
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe


class Crops(Task):
    """A task that learns nothing: two random resized crops of each sample, side by side, as decoded."""

    def __init__(self, size_px: int):
        self.view = ViewSpec(RandomResizedCrop(size_px))

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view, self.view)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        crops = [images.float().cpu() / 255 for images in batch.images]
        gap = crops[0].new_ones(*crops[0].shape[:3], 4)
        return torch.cat([crops[0], gap, crops[1]], 3)


def task_of(recipe: str, scale: float) -> Task:
    """Build the task of a recipe with PAPER's values, and all lengths in px times `scale`."""
    script = find_recipe(recipe)
    assert isinstance(script, Recipe)
    values = script.with_paper().science()
    lengths = {name: values[name] for name in values if name == "short_side" or name.endswith("_px")}
    options = script.with_paper(**{name: round(value * scale) for name, value in lengths.items()})
    return script.build(options).task
