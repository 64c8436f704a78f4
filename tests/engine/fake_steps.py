"""A recipe's step on fake CUDA, from augmentation to optimiser, and the evaluation of a held-out batch."""

from typing import Any

import torch

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.train_step import TrainStep
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.data.synthetic import Synthetic
from tests.engine.tiny import noise_batch
from tests.fake_cuda import DEVICE, FakeCuda
from tests.host_waits import Seen

WORLD = World(0, 1, 0, 1, DEVICE)
NUM_SAMPLES = 96


def recipe_train_step(
    recipe: str, stage: str, **values: Any
) -> tuple[Experiment, int, TrainingOptions, TrainStep]:
    """Build a recipe's stage with its sample's values, overridden by `values`, within `fake_cuda`."""
    values = {"batch_size": 32, "compile": "off", **values}
    options = recipe_options(recipe, is_sample=True, device="cuda", **values)
    experiment, number = stage_experiment(recipe, stage, options, WORLD)
    return experiment, number, options, train_step_of(experiment, number, options, Synthetic(NUM_SAMPLES))


def train_step_of(experiment: Experiment, number: int, options: TrainingOptions, data: Dataset) -> TrainStep:
    experiment.task.check_data(data, options.batch_size)
    return make_train_step(experiment, number, options, WORLD)


def one_step(
    cuda: FakeCuda, experiment: Experiment, number: int, options: TrainingOptions, train_step: TrainStep
) -> Seen:
    """Record the host's waits and kernels of a stage's warm-up, first step and one held-out batch."""
    task, stage = experiment.task, experiment.stages[number]
    size = options.rank_batch(1)
    batches = [
        noise_batch(train_step.views, size, seed).to(cuda.device) for seed in range(options.accumulate)
    ]
    held_out = task.held_out_views(stage.level)
    held_out_batch = noise_batch(held_out, size).to(cuda.device)
    with_gradient: list[bool] = []
    train_step.optimiser.register_step_pre_hook(
        lambda *_: with_gradient.extend(
            p.grad is not None for _, p in train_step.module.learning_parameters() if p.requires_grad
        )
    )
    with cuda.watched() as record:
        for _ in range(task.num_warm_up_batches(stage) or 0):
            train_step.warm_up(task.warm_up, batches[0])
        train_step.step(batches, lr=0.1)
        task.after_step()
        if held_out:
            train_step.module.eval()
            with torch.no_grad():
                train_step._forward(held_out_batch, held_out)
    assert with_gradient and all(with_gradient)
    return record
