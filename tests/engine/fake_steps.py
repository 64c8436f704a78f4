"""A recipe's steps on fake CUDA, from augmentation to optimiser, and the evaluation of a validation batch."""

from typing import Any

import pytest
import torch

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine import step_modes
from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.step_modes import NUM_LAUNCHED
from fastpsl.engine.train_step import TrainStep
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.tasks.pseudo_labels.iic import HEAD_EPOCHS
from tests.engine.tiny import noise_batch
from tests.fake_cuda import DEVICE, FakeCuda
from tests.host_waits import Seen
from tests.step_recorder import Recorder, Step, not_restored, plain_capture, record_steps

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


# Steps until the first one that is a replay, and three more: the next one, one after a validation batch, and
# one of another epoch.
NUM_STEPS = NUM_LAUNCHED + 4


def some_steps(
    cuda: FakeCuda, experiment: Experiment, number: int, options: TrainingOptions, train_step: TrainStep,
    other_epoch: int = sum(HEAD_EPOCHS),
) -> tuple[Seen, list[Step]]:  # fmt: skip
    """Make a stage's warm-up, `NUM_STEPS` steps and a validation batch.

    Returns:
        The host's waits and launches of kernels, and a record of each step from the first replay on.
    """
    task, stage = experiment.task, experiment.stages[number]
    size = options.rank_batch(1)
    val = task.val_views(stage.level)
    val_batch = noise_batch(val, size).to(cuda.device)
    with_gradient: list[bool] = []
    train_step.optimiser.register_step_pre_hook(
        lambda *_: with_gradient.extend(
            p.grad is not None for _, p in train_step.module.learning_parameters() if p.requires_grad
        )
    )

    def batches(step: int) -> list[Batch]:
        made = []
        for part in range(options.accumulate):
            batch = noise_batch(train_step.views, size, step * options.accumulate + part)
            batch.indices = torch.randint(0, NUM_SAMPLES, (size,))
            batch.labels, batch.step = batch.indices % 5, step
            batch.epoch = other_epoch if step == NUM_STEPS - 1 else 0
            made.append(batch.to(cuda.device))
        return made

    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch, cuda.watched() as seen:
        patch.setattr(step_modes, "capture", plain_capture)
        check = cuda.launched

        def launched(*arguments: Any, **more: Any) -> None:
            check(*arguments, **more)
            recorder.launched(*arguments, **more)

        patch.setattr(cuda, "launched", launched)
        for _ in range(task.num_warm_up_batches(stage) or 0):
            train_step.warm_up(task.warm_up, batches(0)[0])
        steps = record_steps(train_step, recorder)
        for step in range(NUM_STEPS):
            if step == NUM_STEPS - 2 and val:
                train_step.module.eval()
                with torch.no_grad():
                    train_step._forward(train_step.prepared(val_batch).of_step(), val)
                train_step.module.train()
            train_step.step(batches(step), 0.1 * step, options.accumulate)
    assert with_gradient and all(with_gradient)
    assert not not_restored(train_step, recorder, steps[-1])
    return seen, steps[NUM_LAUNCHED:]
