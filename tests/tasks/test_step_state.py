"""A step with gradients that are not finite changes nothing, whatever its forward pass has written."""

import copy
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine import experiment as experiment_module
from fastpsl.engine import step_modes
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.options import PretrainOptions, TrainingOptions
from fastpsl.engine.step_modes import GraphChoice, StepState
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trainer import pretrain
from fastpsl.models.convolutional import read_channels
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders.memory import ViewMemory
from fastpsl.pipelines.loader.batch import Batch
from tests.engine.test_blockwise import experiment_of as of_parts
from tests.engine.tiny import TinyNet, noise_batch, one_process, teacher_of, tiny_run
from tests.step_recorder import Recorder, Step, differences
from tests.tasks.test_distill import experiment_of as distilling

SIZE, NUM = 8, 96
ROWS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("rotation", "S2", "fp32", {"frozen_batchnorm": "train", "rotations_per_image": "one"}),
    ("moco", "S2", "fp32", {"queue_size": 24, "key_group": 4}),
    ("moco", "S1", "bf16", {"queue_size": 32, "key_group": 4, "accumulate": 2, "batch_size": 2 * SIZE,
                            "frozen_batchnorm": "train", "fold_frozen": "off"}),
    ("uic", "E", "fp32", {"num_clusters": 8}),
    ("sslpp_iic", "E", "bf16", {"num_heads": 2}),
    ("sslpp_colorization", "E", "fp32", {"pseudo_labels": "coupled"}),
]  # fmt: skip


def experiment_of(recipe: str, stage: str, values: dict[str, Any]) -> tuple[Experiment, int, TrainingOptions]:
    """Return a recipe's experiment with `TinyNet`, the stage's number, and the options."""
    options = recipe_options(recipe, is_sample=True, device="cpu", **values)
    torch.manual_seed(0)
    experiment, number = stage_experiment(recipe, stage, options, one_process())
    channels = experiment.task.views(1)[0].input().num_channels
    backbone = TinyNet()
    read_channels(backbone, channels)
    stages = tuple(replace(stage, last_block=min(stage.last_block, 5)) for stage in experiment.stages)
    return replace(experiment, backbone=backbone, stages=stages), number, options


def built(recipe: str, stage: str, **values: Any) -> tuple[Experiment, TrainStep]:
    """Return a recipe's experiment with `TinyNet`, and its train step after its warm-up."""
    experiment, number, options = experiment_of(recipe, stage, {"batch_size": SIZE, **values})
    experiment.task.check_data(Synthetic(NUM), options.batch_size)
    train_step = make_train_step(experiment, number, options, one_process())
    for seed in range(experiment.task.num_warm_up_batches(experiment.stages[number])):
        train_step.warm_up(experiment.task.warm_up, batch_of(train_step, 100 + seed))
    return experiment, train_step


def batch_of(train_step: TrainStep, seed: int) -> Batch:
    batch = noise_batch(train_step.views, SIZE, seed)
    return replace(batch, indices=torch.randint(0, NUM, (SIZE,)), step=seed)


def state_of(experiment: Experiment, train_step: TrainStep) -> dict[str, Any]:
    """Return copies of all that a resume needs. The scale and fp16's counter are the scaler's own."""
    state = {
        "module": train_step.module.state_dict(),
        "optimiser": train_step.optimiser.state_dict()["state"],
        "task": dict(experiment.task.state_dict()),
    }
    return copy.deepcopy(state)


@pytest.mark.parametrize(("recipe", "stage", "precision", "values"), ROWS, ids=lambda value: str(value)[:12])
def test_a_skipped_step_changes_nothing(
    recipe: str, stage: str, precision: str, values: dict[str, Any]
) -> None:
    experiment, train_step = built(recipe, stage, precision=precision, **values)
    accumulate = values.get("accumulate", 1)
    task = experiment.task
    loss, factors = task.loss, iter([1.0, *[1.0] * (accumulate - 1), *[torch.inf] * accumulate, *[1.0] * 9])

    def spoiled(*arguments: Any) -> Any:
        value, metrics = loss(*arguments)
        return value * next(factors), metrics

    task.loss = spoiled  # type: ignore[method-assign,assignment]
    states = []
    for seed in range(3):
        batches = [batch_of(train_step, accumulate * seed + part) for part in range(accumulate)]
        train_step.step(batches, 0.01, accumulate)
        states.append(state_of(experiment, train_step))
    assert float(train_step.num_skipped) == 1
    paths = [dict(tree_flatten_with_path(state)[0]) for state in states]
    assert paths[0].keys() == paths[1].keys()
    for place, value in paths[0].items():
        assert equal(value, paths[1][place]), place
    written = [place for place, value in paths[0].items() if not equal(value, paths[2][place])]
    assert len(written) > 10 and all(torch.isfinite(leaf).all() for leaf in tree_leaves(states[2]["module"]))


QUEUES: dict[str, Callable[[], Experiment]] = {
    "moco": lambda: experiment_of("moco", "S2", {"queue_size": 24, "key_group": 4, "batch_size": SIZE})[0],
    "by parts": lambda: of_parts("moco", SIZE),
    "distill": lambda: distilling(teacher_of(1, 40)),
}


@pytest.mark.parametrize("name", QUEUES)
def test_a_skipped_step_leaves_queues_without_a_copy(name: str) -> None:
    experiment = QUEUES[name]()
    experiment.task.check_data(Synthetic(NUM), SIZE)
    options = PretrainOptions(epochs=(1,), precision="fp32")
    train_step = make_train_step(experiment, len(experiment.stages) - 1, options, one_process())
    task, module = experiment.task, train_step.module
    for seed in range(4):
        train_step.warm_up(task.warm_up, batch_of(train_step, seed))
    copied = [tensor.numel() for group in train_step._state._before for tensor in group]
    assert copied and max(copied) <= 16  # running statistics
    states = []
    for seed, factor in enumerate([1.0, torch.inf, 1.0]):
        loss: Any = lambda *arguments, by=factor: (type(task).loss(task, *arguments)[0] * by, {})
        task.loss = loss  # type: ignore[method-assign]
        train_step.step([batch_of(train_step, seed)], 0.01)
        states.append(copy.deepcopy([*task.step_state(), *module.parameters(), *module.buffers()]))
    pairs = list(zip(*states, strict=True))
    assert all(equal(first, skipped) for first, skipped, _ in pairs)
    assert sum(not equal(skipped, last) for _, skipped, last in pairs) > 10
    queue, _, new = pairs[0]
    assert not equal(queue, new) and new.isfinite().all()


def equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_bits_come_back(dtype: torch.dtype) -> None:
    """Of numbers that are not finite, too, and of maps in channels-last memory and scalars."""
    values = torch.tensor([0.0, -1.5, torch.nan, torch.inf, 3e-6, 1e30] * 8)
    tensors = [
        values.to(dtype).reshape(2, 3, 4, 2).contiguous(memory_format=torch.channels_last),
        values[1].to(dtype),
        torch.empty(0, dtype=dtype),
    ]
    before = [tensor.clone() for tensor in tensors]
    # A tensor that is named twice, and one that torch cannot write in place.
    state = StepState([*tensors, tensors[0], torch.ones(3, dtype=dtype).expand(2, 3)])
    for skipped in (0.0, 1.0, 2.0):
        state.keep()
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value * torch.nan if dtype.is_floating_point else value == 0)
        state.restore_if(torch.tensor(skipped))
        if not skipped:
            for tensor, value in zip(tensors, before, strict=True):
                assert tensor.numel() == 0 or not bits(tensor).equal(bits(value))
                tensor.copy_(value)
        assert all(bits(a).equal(bits(b)) for a, b in zip(tensors, before, strict=True))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ("uic", {"num_clusters": 8}), ("deepcluster", {"num_clusters": 8, "pca_width": 4}),
        ("sslpp_iic", {"num_heads": 2, "num_clusters": 8, "second_clusters": 6}),
        ("sslpp_rotation", {"pseudo_labels": "coupled", "num_clusters": 8}),
    ],
    ids=["uic", "deepcluster", "iic", "coupled"],
)  # fmt: skip
def test_replays_read_and_write_the_same_tensors_in_every_epoch(
    recipe: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across the ends of epochs, of which an epoch of another variant has a capture of its own."""
    nums = list[int]()

    def capture(compute: Any, *_: Any) -> Any:
        recorder, first, number = Recorder(), list[Step](), len(nums)
        nums.append(0)

        def replay() -> Any:
            with recorder.record(()) as step:
                metrics = compute()
            first.append(step)
            step.refused.clear()  # of a GPU
            assert not differences(first[0], step)
            nums[number] += 1
            return metrics

        return replay

    # As on a GPU, where torch's own memory holds the views.
    monkeypatch.setattr(ViewMemory, "_take", lambda self, num: torch.empty(num, dtype=torch.uint8))
    monkeypatch.setattr(step_modes, "capture", capture)
    monkeypatch.setattr(TrainStep, "release", lambda self: None)  # so that a graph lives across epochs
    monkeypatch.setattr(experiment_module, "choose_graph", lambda *_: GraphChoice(True, "asked for"))
    values = {"batch_size": 96, "epochs": (4,), **values}
    experiment, number, _ = experiment_of(recipe, "E", values)
    stage = replace(experiment.stages[number], epochs=4)
    experiment = replace(experiment, stages=(stage,))
    run = tiny_run(tmp_path, batch_size=96, epochs=(4,), val=None, augment_backend="torch")
    with closing(run):
        assert pretrain(experiment, run)
    # Epochs of five steps, of which the first three of each variant are launched.
    assert nums == ([7, 7] if recipe == "sslpp_iic" else [17])
