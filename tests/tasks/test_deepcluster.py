"""Test DeepCluster against sklearn's PCA and k-means on features of plain loops, and its resumes."""

import warnings
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor, nn

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.models.resnet import ResNet
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.views import Input
from fastpsl.tasks.pseudo_labels.deepcluster import (
    DeepCluster,
    features_of,
    renew,
    two_sgds,
    without_last_relu,
)
from fastpsl.tasks.pseudo_labels.k_means import drawn_rows
from tests.engine.exact_signals import signal_at_question
from tests.engine.tiny import TinyNet, one_process, tiny_run
from tests.programs import digests, epoch_records, newest_checkpoint

WHOLE = make_plan("end_to_end", (2,), num_levels=1)
NUM = 480


def task_of(num_classes: int = 12, **values: Any) -> DeepCluster:
    small = {"pca_width": 6, "k_means_iterations": 5}
    return DeepCluster(num_classes, Input(size_px=32), 32, seed=3, **{**small, **values})


def experiment_of(task: DeepCluster, lr: float = 0.05) -> Experiment:
    torch.manual_seed(0)
    return Experiment(task, TinyNet(), WHOLE, step_drops(lr, (1,)), partial(two_sgds, weight_decay=1e-5))


def context_of(experiment: Experiment, run: Run, epoch: int = 0) -> EpochContext:
    """Build the epoch's context as the trainer does."""
    experiment.check(run.data)
    place_backbone(experiment, run.options, run.world)
    return EpochContext(
        run, make_train_step(experiment, 0, run.options, run.world), epoch, epoch == 0, 1000 + epoch
    )


def features_by_hand(experiment: Experiment, run: Run, task: DeepCluster) -> Tensor:
    """Return each centre crop's mean input of the last ReLU, [480, 16], in eval mode."""
    *blocks, last = experiment.backbone.blocks()
    network = nn.Sequential(*blocks, last[0], last[1]).eval()  # type: ignore[index]
    features = torch.zeros(NUM, 16)
    with torch.no_grad(), run.data.loader(run.data.train, [task.center], train=False) as loader:
        for batch in loader.epoch(0):
            rows = network(batch.inputs([task.center], torch.float32)[0]).mean((2, 3))
            features[batch.indices[batch.indices >= 0]] = rows[batch.indices >= 0]
    return features


def test_labels_are_sklearns(tmp_path: Path) -> None:
    task = task_of()
    experiment, run = (
        experiment_of(task),
        tiny_run(tmp_path, batch_size=50),
    )  # so that the last batch has padding
    context = context_of(experiment, run, epoch=4)
    modes = [part.training for part in context.train_step.module.modules()]
    before = {name: value.clone() for name, value in experiment.backbone.state_dict().items()}
    classifier = [parameter.clone() for parameter in context.head.parameters()]
    figures = task.start_epoch(context)
    assert not any(map(torch.equal, classifier[:1], context.head.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in experiment.backbone.state_dict().items())
    assert [part.training for part in context.train_step.module.modules()] == modes and any(modes)
    features = features_by_hand(experiment, run, task)
    assert (features < 0).any()  # before the ReLU
    rows = PCA(6, whiten=True, svd_solver="full").fit_transform(features.half().double().numpy())
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    initial = drawn_rows(torch.from_numpy(rows).float(), np.arange(NUM), 12, NUM, 3, 4, one_process())
    sklearns = KMeans(12, init=initial.numpy(), n_init=1, max_iter=5, tol=0, algorithm="lloyd").fit(rows)
    expected, num_split = split_empty(sklearns.labels_.astype(np.int32), 12, 3, 4)
    labels = task.store.current.numpy()
    # Rounding may move a row between two centroids.
    assert (labels != expected).sum() <= 2
    assert figures["distance"] == pytest.approx(sklearns.inertia_ / NUM, rel=1e-3)
    assert figures["num_split"] == num_split and figures["non_empty"] == len(np.unique(sklearns.labels_))
    counts = np.bincount(labels[task.epoch_order(4)], minlength=12)
    assert counts.tolist() == [40] * 12
    run.close()


def test_the_blocks_has_its_relu_again(tmp_path: Path) -> None:
    blocks = StageBlocks(TinyNet(), WHOLE[0]).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        usual = blocks(images)
        with without_last_relu(blocks):
            before = blocks(images)
        assert before.min() < 0 and torch.equal(before.relu(), usual)
        with pytest.raises(KeyError), without_last_relu(blocks):
            raise KeyError
        assert torch.equal(blocks(images), usual)
        layers = nn.Sequential(nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
        of_two: Any = SimpleNamespace(frozen_as_run=[nn.Sequential(nn.ReLU())], learning=[layers])
        with without_last_relu(of_two):
            assert [type(layer) for layer in layers] == [nn.ReLU, nn.Linear, nn.Identity]
        resnet = StageBlocks(ResNet("resnet18"), Stage("E", 1, 1, 5, 1)).eval()
        usual = resnet(images)
        with without_last_relu(resnet):
            assert torch.equal(resnet(images), usual)


def test_the_classifier_is_new_each_epoch() -> None:
    head = task_of(num_classes=100).head(1, 500)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    head(torch.randn(2, 500, 1, 1)).square().sum().backward()
    optimiser.step()
    renew(head, optimiser, 1)
    assert isinstance(head, nn.Sequential)
    top = head[-1]
    assert isinstance(top, nn.Linear)
    first = top.weight.detach().clone()
    assert float(first.std()) == pytest.approx(0.01, rel=0.02) and abs(float(first.mean())) < 1e-3
    assert not top.bias.any()
    assert not any(state["momentum_buffer"].any() for state in optimiser.state.values())
    renew(head, optimiser, 2)
    assert not torch.equal(top.weight, first)
    renew(head, optimiser, 1)
    assert torch.equal(top.weight, first)


def test_each_epoch_and_seed_has_a_classifier_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = torch.arange(NUM, dtype=torch.int32) % 12, 0.5
    monkeypatch.setattr("fastpsl.tasks.pseudo_labels.deepcluster.clustered_features", lambda *_: clusters)
    weights = []
    for seed, epoch in ((3, 0), (3, 1), (4, 0), (3, 0)):
        task = DeepCluster(12, Input(size_px=32), 32, seed=seed, pca_width=6, k_means_iterations=5)
        task.check_data(Synthetic(NUM), 4)
        head = task.head(1, 16)
        task.start_stage(WHOLE[0], StageBlocks(TinyNet(), WHOLE[0]), head)
        optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
        context: Any = SimpleNamespace(head=head, optimiser=optimiser, epoch=epoch)
        assert task.start_epoch(context)["distance"] == 0.5
        weights.append(tuple(head[-1].weight.flatten().tolist()))  # type: ignore[index]
    assert len(set(weights)) == 3 and weights[0] == weights[-1]


def test_the_classifier_has_no_momentum_and_everything_decays() -> None:
    """Three steps equal those of the code's two optimisers."""
    torch.manual_seed(0)
    first, second = (nn.ModuleDict({"blocks": nn.Linear(3, 4), "head": nn.Linear(4, 2)}) for _ in range(2))
    second.load_state_dict(first.state_dict())
    both = two_sgds(first.named_parameters(), weight_decay=0.1)
    for group in both.param_groups:
        group["lr"] = 0.5
    backbone = torch.optim.SGD(second["blocks"].parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    top = torch.optim.SGD(second["head"].parameters(), lr=0.5, weight_decay=0.1)
    for _ in range(3):
        x = torch.randn(5, 3)
        for model in (first, second):
            model.zero_grad()
            model["head"](model["blocks"](x)).square().mean().backward()
        for optimiser in (both, backbone, top):
            optimiser.step()
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(parameter, second.get_parameter(name))


@pytest.mark.parametrize("scale", [float("nan"), 1e12])  # 1e12 exceeds float16
def test_features_that_are_no_float16_are_refused(tmp_path: Path, scale: float) -> None:
    task = task_of()
    experiment, run = experiment_of(task), tiny_run(tmp_path)
    context = context_of(experiment, run, epoch=7)
    with torch.no_grad():
        experiment.backbone.blocks()[-1][1].weight *= scale  # type: ignore[index]
    with pytest.raises(
        ValueError, match="epoch 7: features of 480 of 480 images are no finite float16"
    ) as caught:
        task.start_epoch(context)
    assert "\n" not in str(caught.value) and (task.store.current == -1).all()
    run.close()


def test_padding_is_no_row(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, batch_size=100)
    task = task_of()
    features = features_of(context_of(experiment_of(task), run), task.center)
    assert features.num_rows == NUM and features.indices.tolist() == list(range(NUM))
    assert [len(block) for block in features.blocks] == [100] * 4 + [80]
    assert all(block.dtype == torch.float16 for block in features.blocks)
    run.close()


def test_fewer_directions_than_asked_for_are_said(tmp_path: Path) -> None:
    task = task_of(pca_width=256)
    run = tiny_run(tmp_path)
    with pytest.warns(UserWarning, match="--pca-width 256: features have 16 numbers, so 16 are kept"):
        context = context_of(experiment_of(task), run)
    task.start_epoch(context)
    run.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task_of(pca_width=16).head(1, 16)


def test_the_limits_themselves_are_possible() -> None:
    task_of(num_classes=2, pca_width=1, k_means_iterations=1)
    task_of().check_data(Synthetic(12), 4)


def test_stopped_anywhere_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    """Each of 2 epochs checks for a stop after each of 5 batches of the pass and each of 5 steps."""

    def fit(out: Path, stop_at: int | None = None) -> bool:
        with closing(tiny_run(out, batch_size=96, epochs=(2,))) as run:
            signal_at_question(run, stop_at)
            return pretrain(experiment_of(task_of()), run)

    whole = tmp_path / "whole"
    assert fit(whole)
    lines = epoch_records(whole)
    assert len(lines) == 2 and lines[0]["nmi_previous"] is None and 0 < lines[1]["nmi_previous"] <= 1
    assert all(line["distance"] > 0 and line["nmi_true"] is not None for line in lines)
    for stop_at in (2, 5, 7, 10, 12, 17):  # in and after the first pass, the first epoch and the second pass
        out = tmp_path / str(stop_at)
        assert not fit(out, stop_at), stop_at
        assert fit(out)
        assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole)), stop_at
        assert (out / "epochs.jsonl").read_text() == (whole / "epochs.jsonl").read_text(), stop_at
