"""Test what UIC and DeepCluster share, without runs: the loss, the labels of a stage and their figures."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify
from fastpsl.tasks.pseudo_labels.scores import Settling
from tests.engine.tiny import TinyNet, noise_batch
from tests.tasks.test_uic import BATCH, CLASSES, NUM, make_task

(STAGE,) = make_plan("end_to_end", (3,), num_levels=1)


def start_stage(task: PseudoClassify) -> None:
    task.start_stage(STAGE, StageBlocks(TinyNet(), STAGE), nn.Linear(1, 1))


def test_empty_classes_of_given_labels_are_split_alike_in_every_stage() -> None:
    given = np.arange(NUM) % (CLASSES - 1)
    task = make_task(given=given)
    task.check_data(Synthetic(NUM, CLASSES), BATCH)
    expected, _ = split_empty(given, CLASSES, 0, 0)
    assert expected.tolist() != split_empty(given, CLASSES, 0, 7)[0].tolist()
    for first_epoch in (0, 7):
        start_stage(task)
        for epoch in range(first_epoch, first_epoch + 3):
            context: Any = SimpleNamespace(epoch=epoch, first=epoch == first_epoch)
            assert (task.start_epoch(context) is not None) == context.first
            assert task.store.current.tolist() == expected.tolist()


def test_the_loss_is_that_of_plain_loops_over_the_images_that_were_decoded() -> None:
    task, head = make_task(), nn.Linear(6, CLASSES)
    task.check_data(Synthetic(NUM, CLASSES), BATCH)
    start_stage(task)
    random = np.random.default_rng(0)
    task.store.current.copy_(torch.from_numpy(random.integers(0, CLASSES, NUM)))
    batch = noise_batch(task.views(1), 5)
    batch.indices = torch.tensor([7, 0, -1, 479, 3])
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    blocks: Any = nn.Identity()
    logits = head(features).tolist()
    total, right = 0.0, 0
    for row, sample in enumerate(batch.indices.tolist()):
        if sample >= 0:
            label = int(task.store.current[sample])
            total += math.log(sum(math.exp(value) for value in logits[row])) - logits[row][label]
            right += max(logits[row]) == logits[row][label]
    loss, metrics = task.loss(blocks, head, (features,), batch)
    assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-5)
    assert [float(value) for value in metrics["loss"]] == pytest.approx([total, 4], rel=1e-5)
    assert [float(value) for value in metrics["agreement"]] == [right, 4]
    assert metrics.keys() == {"loss", "agreement"}


def test_figures_are_compared_with_labels_that_the_runs_seed_shuffles() -> None:
    random = np.random.default_rng(0)
    made, previous, true = (random.integers(0, num, 200) for num in (CLASSES, CLASSES, 5))
    found = {}
    for seed in (0, 7):
        task = make_task(seed=seed)
        task.true_labels, task.settling = true, Settling()
        figures = task.figures(made, previous)
        shuffled = np.random.default_rng(seed).permutation(made)
        assert figures["nmi_true"] == pytest.approx(normalized_mutual_info_score(true, made))
        for name, others in (("nmi_true_shuffled", true), ("nmi_previous_shuffled", previous)):
            assert figures[name] == pytest.approx(normalized_mutual_info_score(others, shuffled))
        found[seed] = figures["nmi_true_shuffled"]
    assert found[0] != found[7]


def test_labels_of_a_stage_have_the_tasks_seed_and_a_watch_that_is_resumed() -> None:
    """The watch over settling begins anew in the next stage, as the labels do."""
    task, resumed = make_task(seed=5), make_task(seed=5)
    for each in (task, resumed):
        each.check_data(Synthetic(NUM, CLASSES), BATCH)
        start_stage(each)
    zeros = np.zeros(NUM, np.int64)
    with pytest.warns(UserWarning, match="collapse"):
        figures = task.relabel(zeros, 2)
    assert figures["nmi_previous"] is None and figures["num_split"] == CLASSES - 1
    assert task.store.current.tolist() == split_empty(zeros, CLASSES, 5, 2)[0].tolist()
    task.settling.shares = [0.25, 0.5]
    resumed.load_state_dict(task.state_dict())
    assert resumed.settling.shares == [0.25, 0.5] and resumed.store.num_split == CLASSES - 1
    start_stage(resumed)
    assert resumed.settling.shares == [] and (resumed.store.current == -1).all()
    assert task.chance(1) == 1 / CLASSES
