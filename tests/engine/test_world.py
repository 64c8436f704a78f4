"""Gradients of two processes equal those of one on the union of their batches, with BatchNorm in eval mode.

Tolerance: 1e-5 of the largest gradient, because float32 sums have another order.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import World, leave_world
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.plan import make_plan
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.stage_blocks import StageBlocks, StepMetrics
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import StageModule, TrainStep
from fastpsl.kernels.permutations import permutation_set
from fastpsl.pipelines.views import Input, train_view
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.jigsaw import Jigsaw
from fastpsl.tasks.rotation import Rotation
from fastpsl.tasks.sslpp.aet import AET
from fastpsl.tasks.sslpp.context import Context
from fastpsl.tasks.sslpp.rotnet import RotNet
from fastpsl.tasks.sslpp.sslpp import Proxy, SSLPlusPlus
from tests.engine.tiny import TinyNet, noise_batch, part_of

sys.path.append(str(Path(__file__).resolve().parents[2] / "docs" / "tutorials"))
from example_task import NearestKey

from tests.warm import on_ranks

TASKS = {
    "jigsaw": 2,
    "nearest_key": 2,
    "rotation": 2,
    "all_rotations": 3,
    "simclr": 3,
    "sslpp_rotation": 1,
    "sslpp_aet": 1,
    "sslpp_context": 1,
}  # the level of each task
PROXIES: dict[str, Callable[[], Proxy]] = {
    "sslpp_rotation": lambda: RotNet(32),
    "sslpp_aet": lambda: AET("projective", 32),
    "sslpp_context": lambda: Context(0.5, 32),
}
GLOBAL_BATCH = 8


def make_task(name: str) -> Task:
    if name == "jigsaw":
        permutations = permutation_set(9, [6, 12, 24]).permutations
        sizes = {"shorter_px": 60, "cell_px": 18, "tile_px": 16, "embedding_width": 4}
        return Jigsaw(permutations, (6, 12, 24), permutations_per_image=2, **sizes)
    if name == "rotation":
        return Rotation(shorter_px=36, size_px=32)
    if name == "all_rotations":
        return Rotation(shorter_px=36, size_px=32, rotations_per_image="all")
    if name == "simclr":
        return SimCLR(GLOBAL_BATCH, size_px=32, temperature=0.1, embedding_width=4)
    if name in PROXIES:
        labels = np.arange(GLOBAL_BATCH) % 3
        plain = train_view(Input(), 32, "padded")
        return SSLPlusPlus(PROXIES[name](), plain, weight=1.0, num_classes=3, labels=labels)
    return NearestKey(num_samples=GLOBAL_BATCH)


def weights_after_a_step(name: str, rank: int, world_size: int) -> dict[str, Tensor]:
    """Return the weights after a step of rate 1, which are the initial ones minus the gradient."""
    torch.manual_seed(0)
    backbone, task, level = TinyNet(), make_task(name), TASKS[name]
    stage = make_plan("psl", (1, 1, 1))[1]
    head = task.head(level, backbone.channels[stage.last_block - 1])
    blocks = StageBlocks(backbone, stage)
    module = StageModule(blocks, head, task)
    module.eval()
    # Only the flag is set, without the head's BatchNorms: in eval mode, there is no loss of pseudo-labels,
    # and no key is kept.
    head.training = True
    task.start_stage(stage, blocks, head)
    optimiser = sgd(module.learning_parameters(), momentum=0.0, weight_decay=0.0)
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    train_step = TrainStep(module, optimiser, task.views(level), "fp32", world)
    train_step.step([part_of(noise_batch(task.views(level), GLOBAL_BATCH), rank, world_size)], lr=1.0)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def running_statistics(rank: int, world_size: int) -> dict[str, list[Tensor]]:
    """Return the blocks' buffers before two steps, after them, and after a validation pass.

    The ranks start with different buffers.
    """
    torch.manual_seed(0)
    backbone, task = TinyNet(), make_task("rotation")
    stage = make_plan("psl", (1, 1, 1))[1]
    for buffer in backbone.buffers():
        buffer += rank
    blocks = StageBlocks(backbone, stage)
    module = StageModule(blocks, task.head(2, backbone.channels[stage.last_block - 1]), task)
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    views = task.views(2)
    train_step = TrainStep(module, sgd(module.learning_parameters()), views, "fp32", world)
    batch = part_of(noise_batch(views, GLOBAL_BATCH), rank, world_size)
    buffers = {"before": [buffer.clone() for buffer in blocks.buffers()]}
    for _ in range(2):
        train_step.step([batch], lr=0.1)
    buffers["stepped"] = [buffer.clone() for buffer in blocks.buffers()]
    train_step.evaluate([batch], views, lambda: False)
    buffers["evaluated"] = list(blocks.buffers())
    return buffers


def report_steps(rank: int, world_size: int, folder: Path) -> None:
    """Report two steps, in which rank 1 counts other numbers of samples than rank 0."""
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    report = Reporter(
        folder,
        world,
        batch_size=8,
        log_steps=2,
        resumed_run_step=0,
        tensorboard=False,
        wandb=False,
        config={},
    )
    report.stage_begins(make_plan("psl", (1, 1, 1))[0], 0, 2, 2)
    for step, num in ((1, 4.0), (2, (0.0, 2.0)[rank])):
        values = torch.tensor([((1 + 2 * rank) * num, num), (0.0, 1.0)])
        report.step(step, step, 0.1, StepMetrics(("loss",), values))
    report.close()


def in_a_process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    for name in TASKS:
        torch.save(weights_after_a_step(name, rank, world_size), f"{folder}/{name}-{rank}.pt")
    torch.save(running_statistics(rank, world_size), f"{folder}/statistics-{rank}.pt")
    report_steps(rank, world_size, Path(folder))
    leave_world()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of two processes for all tasks."""
    path = tmp_path_factory.mktemp("world")
    on_ranks(in_a_process, (2, str(path)), 2)
    return path


@pytest.mark.parametrize("name", TASKS)
def test_two_ranks_learn_as_one(name: str, folder: Path) -> None:
    first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1))
    alone = weights_after_a_step(name, 0, 1)
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key], value, atol=1e-5 * float(value.abs().max() + 1)), key


def test_running_statistics_are_rank_0s_where_they_are_read(folder: Path) -> None:
    """Frozen blocks and validation passes read them. No forward pass of a step waits for them."""
    first, second = (torch.load(folder / f"statistics-{rank}.pt") for rank in (0, 1))
    for part, is_equal in (("before", True), ("stepped", False), ("evaluated", True)):
        pairs = list(zip(first[part], second[part], strict=True))
        assert all(torch.equal(one, other) for one, other in pairs) == is_equal, part
    assert all(
        torch.equal(one, other) for one, other in zip(first["stepped"], first["evaluated"], strict=True)
    )
    # The three buffers of the frozen block never change.
    assert all(
        torch.equal(one, other) for one, other in zip(first["before"][:3], second["stepped"][:3], strict=True)
    )


def test_reported_metrics_are_means_over_the_samples_of_all_ranks(folder: Path) -> None:
    """Each of rank 0's samples has the loss 1, and each of rank 1's 3. Rank 0 has none in the second step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [2.0, 3.0]
