"""What the figures show that are drawn of the sample: SimCLR's views, PSL's stages, and SSL++."""

import io
from contextlib import closing
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.figures.svg import png_uri
from bench.recipe_stages import recipe_of
from fastpsl.engine.plan import Stage
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.dataset import read_bytes
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.tasks.jigsaw import Jigsaw

RECIPE, LEVEL = "simclr_r50", 3
# An image of scales, and an epoch whose two crops overlap.
IMAGE, EPOCH, BATCH_SIZE = 46, 10, 4
SHOWN_PX = 112
# Images are stored somewhat smaller than they are shown, because an SVG has all of their pixels.
STORED_PX, IMAGE_PX = 88, (128, 97)
NAMES = {
    "Flip": "flip", "ColourDistortion": "colour", "Grey": "grey", "GaussianBlur": "blur", "Sobel": "Sobel",
}  # fmt: skip


def views_words() -> dict[str, Any]:
    """Return the words of the figure, with the draws of the recipe's default seed."""
    recipe = recipe_of(RECIPE)
    options = recipe.with_paper()
    views = recipe.build(options).task.views(LEVEL)
    with closing(Beton(sample_paths().train)) as data:
        rows = data.rows(np.array([IMAGE]))
        jpeg, height, width = read_bytes(rows, 0), int(rows.height[0]), int(rows.width[0])
        order = np.roll(np.arange(data.num_samples), -IMAGE)
        with (
            # Pillow is always installed.
            Loader(
                data, views, batch_size_per_rank=BATCH_SIZE, decoder="pillow", prefetch_batches=1,
                seed=options.seed,
            ) as loader,
            closing(loader.epoch(EPOCH, order=order)) as batches,
        ):  # fmt: skip
            batch = next(batches).first(1)
    assert batch.indices.tolist() == [IMAGE]
    shown = []
    for number, (view, inputs) in enumerate(zip(views, batch.inputs(views, torch.float32), strict=True)):
        keys = Keys(options.seed, EPOCH, np.array([IMAGE]), number)
        top, left, tall, wide = view.crop.boxes(keys, rows.height, rows.width)[0].tolist()
        shown.append({
            "box": {"top": top, "left": left, "height": tall, "width": wide},
            "crop": _small(batch.images[number][0] / 255),
            "augmented": _small(view.denormalise(inputs)[0]),
            "ops": ", ".join(drawn_ops(view.ops, batch.draws[number])),
        })  # fmt: skip
    seen = " and ".join(f"view {number}: {view['ops']}" for number, view in enumerate(shown, start=1))
    return {
        "title": "One decode, two views",
        "description": (
            "One JPEG is decoded once. Two boxes are cut out of it and resized, in uint8. Each crop is "
            f"augmented on the device by its own draws, {seen}. Both views are normalised into one batch."
        ),
        "about": f"SimCLR at level G{LEVEL}: what is drawn for one image in epoch {EPOCH}",
        "image": png_uri(Image.open(io.BytesIO(jpeg)).resize(IMAGE_PX, Image.Resampling.BOX)),
        "image_size": (width, height),
        "side": SHOWN_PX,
        "crop_px": views[0].crop.size_px,
        "views": shown,
    }


def drawn_ops(ops: Any, draws: Any) -> list[str]:
    """Return the names of the operations that change the first image."""
    return [
        NAMES[type(op).__name__]
        for op, draw in zip(ops, draws, strict=True)
        if bool(draw["flip" if "flip" in draw else "apply"][0])
    ]


def _small(pixels: Tensor) -> str:
    """Return a PNG of an image [3, H, W] in [0, 1]."""
    array = (pixels.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    return png_uri(Image.fromarray(array).resize((STORED_PX, STORED_PX), Image.Resampling.BOX))


PUZZLE_RECIPE = "jigsaw_r50"
# An image of rings, which show where each tile belongs, in the first batch of epoch 0.
PUZZLE_IMAGE, PUZZLE_BATCH_SIZE = 293, 32
LEARNS, FROZEN, NOT_RUN = "learns", "frozen", "not run"


def stages_words() -> dict[str, Any]:
    """Return the words of the figure, with the paper's values."""
    recipe = recipe_of(PUZZLE_RECIPE)
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
        # The same in all stages, because draws do not depend on the level.
        "tiles": [png_uri(Image.fromarray(tile.numpy())) for tile in tiles],
        "stages": stages,
    }


def state(stage: Stage, block: int) -> str:
    """Return what a block does in a stage. Blocks count from 1."""
    if block > stage.last_block:
        return NOT_RUN
    return LEARNS if block >= stage.first_learning else FROZEN


def puzzle(task: Jigsaw, level: int) -> tuple[torch.Tensor, list[int]]:
    """Return the tiles, uint8 [grid², tile_px, tile_px, 3], and the tile at each place of a puzzle."""
    views = task.views(level)
    with (
        closing(Beton(sample_paths().train)) as data,
        # Pillow is always installed.
        Loader(
            data, views, batch_size_per_rank=PUZZLE_BATCH_SIZE, decoder="pillow", prefetch_batches=1
        ) as loader,
        closing(loader.epoch(0)) as batches,
    ):
        batch = next(batches).first(PUZZLE_BATCH_SIZE)
    place = batch.indices.tolist().index(PUZZLE_IMAGE)
    tiles = views[0].denormalise(batch.inputs(views, torch.float32)[0]).unflatten(0, (-1, task.grid**2))
    label = batch.draw(JigsawTiles)["permutation"][place, 0]
    pixels = (tiles[place].permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte()
    return pixels, task.permutations[label].tolist()


IIC_RECIPE = "sslpp_iic"
TILE_PX = 76


def sslpp_words() -> dict[str, Any]:
    """Return the words of the figure, with the paper's values."""
    with closing(Beton(sample_paths().train)) as data:
        image = Image.open(io.BytesIO(read_bytes(data.rows(np.array([IMAGE])), 0)))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return {
        "image": png_uri(square.resize((TILE_PX, TILE_PX), Image.Resampling.BOX)),
        "num_clusters": recipe_of(IIC_RECIPE).paper["num_clusters"],
    }
