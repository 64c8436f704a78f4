"""recipes/jigsaw_r50.py with a pause after each step of a job's first start, so that a test can interrupt it."""

import os
import time
from dataclasses import replace
from typing import Any

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.launch import launch
from fastpsl.engine.recipe_files import find_recipe

JIGSAW = find_recipe("jigsaw_r50")


def build(options: Any) -> Experiment:
    experiment: Experiment = JIGSAW.build(options)  # type: ignore[union-attr]
    after_step = experiment.task.after_step

    def pause() -> None:
        after_step()
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(float(os.environ.get("PAUSE_S", "0")))

    experiment.task.after_step = pause  # type: ignore[method-assign]
    return experiment


RECIPE = replace(JIGSAW, build=build)  # type: ignore[call-arg]

if __name__ == "__main__":
    launch(RECIPE)
