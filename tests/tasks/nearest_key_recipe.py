"""Run the task of docs/tutorials/example_task.py as a recipe, for tests with two ranks, kills and resumes."""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs" / "tutorials"), str(ROOT)]

from example_task import NearestKey

from fastpsl.pipelines.embedded.draw_sample import NUM_TRAIN, sample_paths
from fastpsl.pretext import Experiment, PretrainOptions, Recipe, launch, sgd, step_drops
from tests.engine.tiny import TinyNet


@dataclass(frozen=True, kw_only=True)
class Options(PretrainOptions):
    lr: float = 0.05


def build(options: Options) -> Experiment:
    task, backbone = NearestKey(NUM_TRAIN), TinyNet()
    return Experiment(
        task=task,
        backbone=backbone,
        stages=options.stages(task.num_levels, backbone.num_blocks),
        schedule=step_drops(options.lr, (20, 20, 10, 10)),
        optimiser=sgd,
    )


paths = sample_paths()
PAPER = {"data": str(paths.train_32), "val": str(paths.test_32), "batch_size": 64, "epochs": (2, 2, 2)}
RECIPE = Recipe("nearest_key", __doc__, Options, PAPER, {}, build)

if __name__ == "__main__":
    launch(RECIPE)
