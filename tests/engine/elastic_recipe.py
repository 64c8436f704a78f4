"""Run a recipe with BatchNorm's fixed statistics, so that the number of ranks hardly changes the weights."""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from fastpsl.engine.experiment import Experiment
from fastpsl.scripts.launch import launch
from tests.tasks import nearest_key_recipe as recipe


def build(options: recipe.Options) -> Experiment:
    return replace(recipe.build(options), batchnorm="eval")


RECIPE = replace(recipe.RECIPE, build=build)

if __name__ == "__main__":
    launch(RECIPE)
