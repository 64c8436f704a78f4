"""Each task's losses of images: those that the loss is the mean of, which nothing else writes or reads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastpsl.engine.task import Task
from fastpsl.engine.train_step import TrainStep
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify
from tests.tasks.test_step_state import NUM, SIZE, batch_of, built, equal

COUPLED = {"pseudo_labels": "coupled", "num_clusters": 8}
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jigsaw": ("jigsaw", "S2", {}),
    "rotation": ("rotation", "S3", {"rotations_per_image": "all"}),
    "one rotation": ("rotation", "S2", {"rotations_per_image": "one"}),
    "simclr": ("simclr", "S2", {}),
    "moco": ("moco", "S2", {"queue_size": 24, "key_group": 4}),
    "uic": ("uic", "E", {"num_clusters": 8}),
    "deepcluster": ("deepcluster", "E", {"num_clusters": 8, "pca_width": 4}),
    "supervised": ("supervised", "E", {}),
    "aet": ("sslpp_aet", "E", {}),
    "context": ("sslpp_context", "E", {}),
    "colorization": ("sslpp_colorization", "E", COUPLED),
    "rotnet": ("sslpp_rotation", "E", COUPLED),
    "labels alone": ("sslpp_rotation", "E", COUPLED | {"proxy": False}),
}  # fmt: skip


def step_of(kind: str) -> tuple[Task, TrainStep, Batch]:
    recipe, stage, values = ROWS[kind]
    experiment, step = built(recipe, stage, **values)
    task: Any = experiment.task
    labels = np.arange(NUM) % 8
    if isinstance(task, PseudoClassify):
        task.store.set(labels, 0)
    elif values.get("pseudo_labels"):
        task.labels.copy_(torch.from_numpy(labels))
    batch = step.prepared(batch_of(step, 7))
    indices = torch.arange(SIZE)
    indices[2] = -1
    if kind == "colorization":
        batch.images[0][3] = 128  # grey
    return task, step, replace(batch, indices=indices, labels=indices % 2)


@pytest.mark.parametrize("kind", ROWS)
def test_their_mean_is_the_loss_and_each_is_that_of_its_image_alone(kind: str) -> None:
    task, step, batch = step_of(kind)
    blocks, head = step.module.blocks, step.module.head
    inputs = batch.inputs(step.views, torch.float32)

    def loss(batch: Batch) -> float:
        with torch.no_grad():
            return float(task.loss(blocks, head, inputs, batch)[0])

    with torch.no_grad():
        before = [tensor.clone() for tensor in task.step_state()]
        losses = task.losses(blocks, head, inputs, batch)
        assert all(equal(*pair) for pair in zip(before, task.step_state(), strict=True))
    assert losses is not None and losses.shape == (SIZE,) and losses.dtype == torch.float32
    valid = batch.indices >= 0
    assert float(losses[valid].mean()) == pytest.approx(loss(batch), rel=1e-5)
    assert losses[valid].std() > 0
    if isinstance(task, SimCLR | MoCo):  # an image is compared with the others
        return
    for i in valid.nonzero().flatten().tolist():
        alone = replace(batch, indices=torch.where(torch.arange(SIZE) == i, batch.indices, -1))
        assert float(losses[i]) == pytest.approx(loss(alone), rel=1e-4, abs=1e-6), i


def test_an_image_of_simclr_has_the_mean_of_its_two_anchors() -> None:
    task, step, batch = step_of("simclr")
    assert isinstance(task, SimCLR)
    inputs = batch.inputs(step.views, torch.float32)
    with torch.no_grad():
        losses = task.losses(step.module.blocks, step.module.head, inputs, batch)
        both = step.module.head(step.module.blocks(torch.cat(inputs))).chunk(2)
    kept = (batch.indices >= 0).nonzero().flatten().tolist()
    rows = F.normalize(torch.stack([view[i] for i in kept for view in both]))
    similar = (rows @ rows.T / task.temperature).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(similar, torch.arange(len(rows)) ^ 1, reduction="none").view(-1, 2).mean(1)
    assert torch.allclose(losses[kept], expected, rtol=1e-4)


def test_a_task_may_have_none() -> None:
    experiment, step = built("sslpp_iic", "E", num_heads=2)
    batch = step.prepared(batch_of(step, 7))
    nothing = experiment.task.losses(step.module.blocks, step.module.head, (), batch)
    assert nothing is None
