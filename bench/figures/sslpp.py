"""What the figure of SSL++ shows: an image of the sample, and the number of IIC's clusters in its recipe."""

import io
from contextlib import closing
from typing import Any

import numpy as np
from PIL import Image

from bench.figures.svg import png_uri
from bench.figures.views import IMAGE
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import read_bytes
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe

RECIPE = "sslpp_iic"
TILE_PX = 76


def sslpp_words() -> dict[str, Any]:
    """Return the words of the figure, with the paper's values."""
    recipe = find_recipe(RECIPE)
    assert isinstance(recipe, Recipe)
    with closing(Beton(sample_paths().train)) as data:
        image = Image.open(io.BytesIO(read_bytes(data.rows(np.array([IMAGE])), 0)))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return {
        "image": png_uri(square.resize((TILE_PX, TILE_PX), Image.Resampling.BOX)),
        "num_clusters": recipe.paper["num_clusters"],
    }
