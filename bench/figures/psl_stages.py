"""What the figure of PSL's stages shows: the recipe's plan, and a puzzle of each level from its task."""

from contextlib import closing
from typing import Any

import torch
from PIL import Image

from bench.figures.svg import png_uri
from fastpsl.engine.plan import Stage
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tasks.jigsaw import Jigsaw

RECIPE = "jigsaw_r50"
# An image of the sample that shows where each tile belongs: a mushroom, in the first batch of epoch 0.
IMAGE, BATCH_SIZE = 46, 16
LEARNS, FROZEN, NOT_RUN = "learns", "frozen", "not run"


def stages_words() -> dict[str, Any]:
    """Return the words of the figure, with the paper's values."""
    recipe = find_recipe(RECIPE)
    assert isinstance(recipe, Recipe)
    experiment = recipe.build(recipe.with_paper())
    task, num_blocks = experiment.task, experiment.backbone.num_blocks
    assert isinstance(task, Jigsaw)
    stages = []
    for stage in experiment.stages:
        tiles, order = puzzle(task, stage.level)
        count = task.counts[stage.level - 1]
        stages.append({
            "name": stage.name,
            "words": f"level G{stage.level}, {count:,} permutations, {stage.epochs} epochs",
            "states": [state(stage, block) for block in range(1, num_blocks + 1)],
            "order": order,
        })  # fmt: skip
    spoken = [
        f"Stage {stage['name']}, {stage['words']}: "
        + ", ".join(f"B{block} {word}" for block, word in enumerate(stage["states"], start=1))
        for stage in stages
    ]
    return {
        "title": "PSL: harder puzzles for higher blocks",
        "description": f"PSL trains higher blocks on harder puzzles of an image. {'. '.join(spoken)}.",
        "about": "Each stage continues the one before. Frozen: runs, does not learn.",
        "grid": task.grid,
        "tiles": [
            png_uri(Image.fromarray(tile.numpy())) for tile in tiles
        ],  # the same in all stages, because draws do not depend on the level
        "stages": stages,
    }


def state(stage: Stage, block: int) -> str:
    """Return what a block does in a stage. Blocks count from 1."""
    if block > stage.last_block:
        return NOT_RUN
    return LEARNS if block >= stage.first_learning else FROZEN


def puzzle(task: Jigsaw, level: int) -> tuple[torch.Tensor, list[int]]:
    """Return the image's tiles as the network sees them, and a puzzle of them.

    Returns:
        Tiles, uint8 [grid², tile_px, tile_px, 3] in the image's order; the tile at each place of the puzzle.
    """
    views = task.views(level)
    with (
        closing(Beton(sample_paths().train)) as data,
        # Pillow is always installed.
        Loader(data, views, batch_size_per_rank=BATCH_SIZE, decoder="pillow", prefetch_batches=1) as loader,
        closing(loader.epoch(0)) as batches,
    ):
        batch = next(batches).first(BATCH_SIZE)
    place = batch.indices.tolist().index(IMAGE)
    tiles = views[0].denormalise(batch.inputs(views, torch.float32)[0]).unflatten(0, (-1, task.grid**2))
    label = batch.draw(JigsawTiles)["permutation"][place, 0]
    pixels = (tiles[place].permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte()
    return pixels, task.permutations[label].tolist()
