"""What the figure of views shows: one image of the sample, its two crops for SimCLR, and both augmented."""

import io
from contextlib import closing
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.figures.svg import png_uri
from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import read_bytes
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe

RECIPE, LEVEL = "simclr_r50", 3
# A mushroom, and an epoch in which both of its crops show it.
IMAGE, EPOCH, BATCH_SIZE = 46, 10, 4
# Images are stored as small as they are shown, because an SVG has all of their pixels.
SHOWN_PX, IMAGE_PX = 112, (160, 121)
NAMES = {
    "Flip": "flip",
    "ColourDistortion": "colour",
    "Grey": "grey",
    "GaussianBlur": "blur",
    "Sobel": "Sobel",
}


def views_words() -> dict[str, Any]:
    """Return the words of the figure, with the draws of the recipe's default seed."""
    recipe = find_recipe(RECIPE)
    assert isinstance(recipe, Recipe)
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
    return png_uri(Image.fromarray(array).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BOX))
