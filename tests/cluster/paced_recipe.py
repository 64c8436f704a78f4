"""recipes/jigsaw_r50.py with a pause after each step of a job's first start, which a test interrupts."""

import os
import time
from dataclasses import replace
from typing import Any

from fastpsl.engine.experiment import Experiment
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe

JIGSAW: Recipe[Any] = find_recipe("jigsaw_r50")  # type: ignore[assignment]


def build(options: Any) -> Experiment:
    experiment = JIGSAW.build(options)
    after_step = experiment.task.after_step

    def pause(extras: Any) -> None:
        after_step(extras)
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(float(os.environ.get("PAUSE_S", "0")))

    experiment.task.after_step = pause  # type: ignore[method-assign]
    return experiment


RECIPE = replace(JIGSAW, build=build)

if __name__ == "__main__":
    launch(RECIPE)
