"""Parts that learn at once have the gradients of PSL's stages, by loops, and resume as never stopped."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from typing_extensions import override

import fastpsl
from fastpsl.engine.blockwise import Blockwise, PartBlocks
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import StageModule
from fastpsl.kernels.permutations import permutation_set
from fastpsl.models.revnet import RevNet
from fastpsl.pipelines.views import Input, ViewSpec
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.jigsaw import Jigsaw
from fastpsl.tasks.pseudo_labels.uic import UIC
from fastpsl.tasks.rotation import Rotation
from tests.engine.exact_signals import train_until
from tests.engine.steps import assert_alike, make_step, rank_of
from tests.engine.tiny import TinyNet, noise_batch, part_of, tiny_run
from tests.programs import digests, newest_checkpoint
from tests.warm import results_of_ranks

BATCH = 8


def task_of(name: str, batch_size: int = BATCH) -> Task:
    if name == "simclr":
        return SimCLR(batch_size, size_px=32, temperature=0.2, embedding_width=8)
    if name == "moco":
        return MoCo(
            seed=3, batch_size=batch_size, queue_size=3 * batch_size, momentum=0.9, temperature=0.2,
            key_group=2, width=6, size_px=32,
        )  # fmt: skip
    if name == "uic":
        return UIC(5, Input(size_px=32), 32, seed=0, augmentation="standard", label_view="train")
    if name == "jigsaw":
        sets = permutation_set(9, [4, 8, 16]).permutations
        return Jigsaw(
            sets, (4, 8, 16), shorter_px=32, cell_px=10, tile_px=8, permutations_per_image=2,
            embedding_width=8,
        )  # fmt: skip
    return Rotation(shorter_px=40, size_px=32)


def experiment_of(
    name: str, batch_size: int, backbone: Any = None, levels: tuple[int, ...] = ()
) -> Experiment:
    torch.manual_seed(0)
    task, backbone = task_of(name, batch_size), backbone or TinyNet()
    stages = make_plan("blockwise", (1, 1, 1), num_levels=task.num_levels, levels=levels)
    return Experiment(task, backbone, stages, cosine(0.1))


@pytest.mark.parametrize("levels", [(), (3,)])
@pytest.mark.parametrize("name", ["simclr", "jigsaw", "rotation", "revnet"])
def test_gradients_are_the_stages_own(name: str, levels: tuple[int, ...]) -> None:
    """Each part's gradients are those of a stage alone, whose blocks below have the same weights."""
    net = RevNet((8, 16, 16, 24, 24), (1, 2, 1, 1), (8, 8, 8, 8)) if name == "revnet" else None
    experiment = experiment_of("rotation" if name == "revnet" else name, BATCH, net, levels)
    (stage,), task, backbone = experiment.stages, experiment.task, experiment.backbone
    assert isinstance(task, Blockwise)
    head = task.head(stage.level, backbone.channels[-1])
    assert isinstance(head, nn.ModuleDict)
    alone = [copy.deepcopy((backbone, head[part.name])) for part in stage.parts]
    blocks = StageBlocks(backbone, stage)
    task.start_stage(stage, blocks, head)
    calls = list[int]()
    for number, block in enumerate(backbone.blocks(), start=1):
        block.register_forward_hook(lambda module, args, output, number=number: calls.append(number))
    views = task.views(stage.level)
    batch = noise_batch(views, BATCH)
    batch.indices[-1] = -1
    inputs = batch.inputs(views, torch.float32)
    loss, metrics = StageModule(blocks, head, task)(inputs, batch)
    loss.backward()
    if name != "revnet":  # whose blocks are made anew for each stage
        passes = [[1, 2, 3, 4, 5]] if levels else [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
        assert calls == [number for each in passes for number in each]  # equal views pass once

    total, plain = 0.0, task_of("rotation" if name == "revnet" else name)
    for part, (other, its_head), (_, own) in zip(stage.parts, alone, task.tasks, strict=True):
        own_views = plain.views(part.level)
        start = 0 if levels else (part.level - 1) * len(own_views)
        cut = slice(start, start + len(own_views))
        its_batch = copy.copy(batch)
        its_batch.draws, its_batch.ops = batch.draws[cut], batch.ops[cut]
        its_blocks = StageBlocks(other, part, "train")
        its_loss, its_metrics = own.loss(its_blocks, its_head, inputs[cut], its_batch)
        its_loss.backward()
        total += its_loss.item()
        theirs = [*other.blocks()[part.first_learning - 1 : part.last_block], its_head]
        ours = [*backbone.blocks()[part.first_learning - 1 : part.last_block], head[part.name]]
        pairs = zip(nn.ModuleList(theirs).parameters(), nn.ModuleList(ours).parameters(), strict=True)
        for their, our in pairs:
            assert (their.grad is None) == (our.grad is None)
            assert our.grad is None or their.grad is None or torch.equal(their.grad, our.grad)
        prefix = "" if part is stage.parts[-1] else f"{part.name}_"
        for key, pair in its_metrics.items():
            assert torch.equal(torch.stack(pair), torch.stack(metrics[prefix + key])), key
    assert loss.item() == pytest.approx(total, rel=1e-6)


def fit(out: Path, name: str, stop_at: int | None = None, **options: Any) -> bool:
    run = tiny_run(out, plan="blockwise", epochs=(1, 1, 1), **options)
    return train_until(stop_at, experiment_of(name, run.options.batch_size), run)


@pytest.mark.filterwarnings("ignore:collapse")
@pytest.mark.parametrize("name", ["simclr", "moco", "uic"])
def test_a_resumed_run_equals_one_never_stopped(name: str, tmp_path: Path) -> None:
    for out, stops in (("whole", (None,)), ("stopped", (7, 22, None))):
        for stop in stops:
            assert fit(tmp_path / out, name, stop, max_steps_per_stage=33) == (stop is None)
    whole, stopped = (newest_checkpoint(tmp_path / each) for each in ("whole", "stopped"))
    assert digests(whole) == digests(stopped)
    if name == "uic":  # each part has labels of its own
        first, second = (state["store"]["current"] for state in whole["task"]["parts"])
        assert not torch.equal(first, second) and not torch.equal(second, whole["task"]["store"]["current"])


def test_the_order_of_an_epoch_is_by_the_labels_of_the_last_part(monkeypatch: pytest.MonkeyPatch) -> None:
    task = experiment_of("uic", BATCH).task
    assert isinstance(task, Blockwise)
    for number, (_, part) in enumerate(task.tasks):
        monkeypatch.setattr(part, "epoch_order", lambda epoch, number=number: np.array([number, epoch]))
    order = task.epoch_order(7)
    assert order is not None and order.tolist() == [2, 7]


def test_the_key_encoder_follows_all_blocks_below() -> None:
    experiment = experiment_of("moco", BATCH)
    (stage,), task = experiment.stages, experiment.task
    assert isinstance(task, Blockwise)
    head, blocks = task.head(3, 16), StageBlocks(experiment.backbone, stage)
    task.start_stage(stage, blocks, head)
    last = task.tasks[-1][1]
    assert isinstance(last, MoCo)
    before = [weights.clone() for weights in last.key_encoder.parameters()]
    with torch.no_grad():
        for weights in experiment.backbone.parameters():
            weights.add_(1)
    last.key_encoder.follow()
    num = len(list(experiment.backbone.parameters()))
    moved = [
        float((new - old).mean()) for old, new in zip(before, last.key_encoder.parameters(), strict=True)
    ]
    assert moved[:num] == pytest.approx([0.1] * num, rel=1e-4) and not any(moved[num:])


def after_steps(rank: int, num_ranks: int) -> dict[str, torch.Tensor]:
    """Return the weights after three steps of Rotation, whose BatchNorm normalises by running statistics."""
    experiment = experiment_of("rotation", BATCH)
    (stage,), task = experiment.stages, experiment.task
    torch.manual_seed(1)
    step = make_step(stage, task, experiment.backbone, world=rank_of(rank, num_ranks), batchnorm="eval")
    for number in range(3):
        step.step([part_of(noise_batch(task.views(3), BATCH, number), rank, num_ranks)], lr=0.1)
    return {name: value.detach() for name, value in step.module.named_parameters()}


@pytest.mark.parametrize("batchnorm", ["train", "eval"])
def test_blocks_below_a_part_normalise_as_they_learn(batchnorm: Literal["train", "eval"]) -> None:
    experiment = experiment_of("rotation", BATCH)
    (stage,) = experiment.stages
    whole = StageBlocks(experiment.backbone, stage, batchnorm=batchnorm)
    last = PartBlocks(whole, stage.parts[-1], None).train()
    norms = [part for part in last.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(last.frozen) and {norm.training for norm in norms} == {batchnorm == "train"}


def test_two_ranks_learn_as_one(tmp_path: Path) -> None:
    assert_alike(results_of_ranks(after_steps, 2, tmp_path), after_steps(0, 1))


def test_a_view_follows_the_one_of_its_own_part() -> None:
    class Followed(Rotation):
        """A task whose second view takes the draws of its first, in each level."""

        @override
        def views(self, level: int) -> tuple[ViewSpec, ...]:
            (view,) = super().views(level)
            return view, replace(view, follows=0)

    stages = make_plan("blockwise", (1, 1, 1), num_levels=Rotation.num_levels)
    experiment = Experiment(Followed(shorter_px=40, size_px=32), TinyNet(), stages, cosine(0.1))
    views = experiment.views(stages[0])
    assert [view.follows for view in views] == [None, 0, None, 2, None, 4]


def test_parts_are_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--compile on: it was not tried on parts"):
        fit(tmp_path, "simclr", compile="on")


@pytest.mark.parametrize("name", ["iic", "deepcluster", "sslpp-rotation"])
def test_tasks_of_one_head_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plan blockwise: .* the last block alone; use another"):
        fastpsl.pretrain(name, plan="blockwise", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
