"""Stages with a length in steps, BatchNorm modes of learning blocks, and clipped gradients."""

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Position
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.models.backbone import Backbone
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import was_cut_short
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.jigsaw import Jigsaw
from tests.engine.exact_signals import train_until
from tests.engine.steps import VIEWS, Brightness, make_step, snapshot
from tests.engine.test_trainer import STEPS_PER_EPOCH, lines, tiny_experiment
from tests.engine.tiny import TinyNet, noise_batch, part_of, tiny_run
from tests.programs import newest_checkpoint
from tests.recipes.in_process import same_run
from tests.slow import slow

NUM_STEPS = 2 * STEPS_PER_EPOCH + 7
STAGES = (Stage("A", 3, 1, 3, 0, num_steps=NUM_STEPS), Stage("B", 3, 2, 5, 1))


def fit(out: Path, stop: int | None = None, **options: Any) -> tuple[bool, Position]:
    """Train 37 steps and then an epoch of 15, with a signal after step `stop` of the run."""
    experiment = replace(tiny_experiment(), stages=STAGES, schedule=step_drops(0.05, (10, 20, 7)))
    run = tiny_run(out, **options)
    return train_until(stop, experiment, run), run.position


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    finished, _ = fit(out)
    assert finished
    return out


def test_a_signal_after_the_last_step_leaves_the_run_finished(tmp_path: Path) -> None:
    """Without validation images, nothing is left that would take long."""
    finished, position = fit(tmp_path, stop=4, max_steps_per_stage=2, val=None)
    assert finished and [summary["num_steps"] for summary in position.summaries] == [2, 2]


def test_a_stage_in_steps_ends_after_as_many_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes after its end have epochs of their own, however few steps an epoch has."""
    ended = list[tuple[int, bool]]()
    end = lambda self, context: ended.append((context.epoch, context.first))
    monkeypatch.setattr(Jigsaw, "end_stage", end)
    assert fit(tmp_path, max_steps_per_stage=1, val=None)[0]
    assert ended == [(NUM_STEPS, False), (NUM_STEPS + 1, False)]


def test_a_stage_has_so_many_steps(whole: Path) -> None:
    rows = lines(whole)
    assert [row["stage"] for row in rows] == ["A"] * NUM_STEPS + ["B"] * STEPS_PER_EPOCH
    first = [row["lr"] for row in rows[:NUM_STEPS]]
    assert first == pytest.approx([0.05] * 10 + [0.005] * 20 + [0.0005] * 7)
    result = newest_checkpoint(whole)
    summaries = result["position"]["summaries"]
    assert [(s["num_steps"], s["num_steps_planned"]) for s in summaries] == [(37, 37), (15, 15)]
    assert not was_cut_short(result)
    # Draws and orders do not repeat, because a stage of 37 steps has at most 37 epochs.
    assert result["position"]["first_epoch"] == NUM_STEPS
    assert str(STAGES[0]) == "A: level G3, learns B1-B3, 37 steps"


@pytest.mark.parametrize("step", [1, 15, slow(22), slow(36), 37, slow(38), slow(51)])
def test_it_goes_on_in_mid_epoch(whole: Path, tmp_path: Path, step: int) -> None:
    """Step 37 is the end of the stage, in the middle of its third epoch."""
    finished, position = fit(tmp_path, stop=step)
    assert not finished and position.run_step == step
    assert fit(tmp_path)[0]
    same_run(whole, tmp_path, "metrics.jsonl")


def test_it_can_be_cut_short(whole: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, max_steps_per_stage=12)[0]
    result = newest_checkpoint(tmp_path)
    assert [s["num_steps"] for s in result["position"]["summaries"]] == [12, 12] and was_cut_short(result)
    assert lines(tmp_path)[:12] == lines(whole)[:12], "the schedule is that of the whole stage"


def test_more_steps_than_a_stage_has_leave_it_as_it_is(whole: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, max_steps_per_stage=NUM_STEPS + 5)[0]
    result = newest_checkpoint(tmp_path)
    assert [s["num_steps"] for s in result["position"]["summaries"]] == [NUM_STEPS, STEPS_PER_EPOCH]
    assert lines(tmp_path) == lines(whole)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """An epoch of fifteen batches of 32 has seven steps of two batches. The stage keeps its length."""
    finished, position = fit(tmp_path, batch_size=64, accumulate=2)
    assert finished and [s["num_steps"] for s in position.summaries] == [NUM_STEPS, 7]


@pytest.mark.parametrize(("epochs", "num_steps"), [(0, None), (2, 5)])
def test_a_stage_has_one_length(epochs: int, num_steps: int | None) -> None:
    with pytest.raises(AssertionError):
        Stage("A", 1, 1, 5, epochs, num_steps)


def test_passes_at_the_end_have_draws_of_their_own(tmp_path: Path) -> None:
    """A stage with a length in steps, too, has other draws at its end than before its first epoch."""
    draws: dict[str, list[int]] = {"start": [], "end": []}
    experiment = tiny_experiment()
    for name, hook in (("start", "start_epoch"), ("end", "end_stage")):

        def note(context: EpochContext, name: str = name) -> None:
            draws[name].append(context.draws_epoch)

        setattr(experiment.task, hook, note)
    with closing(tiny_run(tmp_path)) as run:
        assert pretrain(replace(experiment, stages=STAGES), run)
    assert len(draws["start"]) == 4 and len(draws["end"]) == 2
    assert len({*draws["start"], *draws["end"]}) == 6


# BatchNorm of blocks that learn

Kind = Literal["train", "eval", "fixed"]
SMALL = (ViewSpec(RandomResizedCrop(64)),)


def train_step_of(
    backbone: Backbone, stage: Stage, momentum: float = 0.9, **more: Any
) -> tuple[TrainStep, Brightness]:
    optimiser = partial(sgd, momentum=momentum, weight_decay=1e-2, decay_biases=True)
    task = Brightness()
    return make_step(stage, task, backbone, optimiser=optimiser, **more), task


@pytest.mark.parametrize("batchnorm", ["train", "eval", "fixed"])
@pytest.mark.parametrize("name", ["tiny", "alexnet_rotnet"])
def test_batchnorm_of_learning_blocks(name: str, batchnorm: Kind) -> None:
    """Statistics, scales and shifts are compared exactly, also those of alexnet_rotnet's BatchNorm1d."""
    torch.manual_seed(0)
    backbone, views = (TinyNet(), VIEWS) if name == "tiny" else (make_backbone("alexnet_rotnet"), SMALL)
    first, last = (2, 4) if name == "tiny" else (5, 7)
    train_step, _ = train_step_of(backbone, Stage("E", 1, first, last, 1), batchnorm=batchnorm, views=views)
    blocks = backbone.blocks()
    before = [snapshot(block) for block in blocks]
    for mode in (True, False, True):  # a validation pass in between changes nothing
        train_step.module.train(mode)
    train_step.step([noise_batch(views, 4)], lr=0.1)
    kinds = set()
    for number, (block, was) in enumerate(zip(blocks, before, strict=True), start=1):
        learns = first <= number <= last
        norms = {path for path, part in block.named_modules() if isinstance(part, _BatchNorm)}
        kinds |= {type(part) for part in block.modules() if isinstance(part, _BatchNorm)} if learns else set()
        for key, value in block.state_dict().items():
            owner, _, attribute = key.rpartition(".")
            if owner in norms and attribute not in ("weight", "bias"):
                changes = learns and batchnorm == "train"
            else:
                changes = learns and not (owner in norms and batchnorm == "fixed")
            assert torch.equal(was[key], value) != changes, (number, key)
    assert kinds == ({nn.BatchNorm2d} if name == "tiny" else {nn.BatchNorm2d, nn.BatchNorm1d})


def test_blocks_normalise_by_their_running_statistics() -> None:
    """An image's features do not depend on its batch, even in train mode."""
    torch.manual_seed(0)
    backbone = TinyNet()
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    images = torch.randn(6, 3, 32, 32)
    for kind, depends in (("train", True), ("eval", False), ("fixed", False)):
        blocks = StageBlocks(backbone, Stage("E", 1, 1, 5, 1), batchnorm=kind)  # type: ignore[arg-type]
        assert blocks.training
        same = torch.allclose(blocks(images)[:2], blocks(images[:2]), atol=1e-5)
        assert same != depends, kind


def test_a_experiment_hands_its_batchnorm_and_its_norm_on(tmp_path: Path) -> None:
    experiment = tiny_experiment("end_to_end")
    initial = {name: value.clone() for name, value in experiment.backbone.state_dict().items()}
    experiment = replace(experiment, stages=(Stage("E", 3, 1, 5, 0, 3),), batchnorm="fixed", clip_norm=1e-12)
    with closing(tiny_run(tmp_path)) as run:
        assert pretrain(experiment, run)
    for name, value in newest_checkpoint(tmp_path)["backbone"].items():
        if name.split(".")[2] == "1":  # a BatchNorm's
            assert torch.equal(value, initial[name]), name
        else:
            moved = float((value - initial[name]).abs().max())
            assert 0 < moved < 2e-5, "only the decay should remain after clipping"
    assert len(lines(tmp_path)) == 3


# Clipped gradients

ALL = Stage("E", 1, 1, 5, 1)


def step_of(clip_norm: float | None, parts: int = 1, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the weights before and after a step of rate 1 without momentum and decay."""
    torch.manual_seed(0)
    train_step, _ = train_step_of(TinyNet(), ALL, 0.0, batchnorm="eval", clip_norm=clip_norm)
    for group in train_step.optimiser.param_groups:
        group["weight_decay"] = 0.0
    train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": scale})
    flat = lambda: torch.cat([p.detach().flatten().clone() for p in train_step.module.parameters()])
    before, batch = flat(), noise_batch(VIEWS, 8)
    train_step.step([part_of(batch, number, parts) for number in range(parts)], 1.0, parts)
    return before, flat()


def gradient() -> Tensor:
    """Return the gradient of the same step, by torch alone."""
    torch.manual_seed(0)
    train_step, _ = train_step_of(TinyNet(), ALL, batchnorm="eval")
    batch = noise_batch(VIEWS, 8)
    train_step.module(batch.inputs(VIEWS, torch.float32), batch)[0].backward()
    return torch.cat([p.grad.flatten() for p in train_step.module.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_are_clipped_together(parts: int, scale: float) -> None:
    """The norm is that of all accumulated, unscaled gradients."""
    expected = gradient()
    norm = float(expected.norm())
    for clip in (norm / 7, norm * 1.5):
        before, after = step_of(clip, parts, scale)
        factor = min(1.0, clip / (norm + 1e-6))  # torch.nn.utils.clip_grad_norm_
        assert torch.allclose(before - after, expected * factor, atol=2e-6 * norm), clip
    before, after = step_of(norm / 7, parts, scale)
    assert float((before - after).norm()) == pytest.approx(norm / 7, rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_an_infinite_norm_clips_nothing(scale: float) -> None:
    assert torch.equal(step_of(float("inf"), scale=scale)[1], step_of(None, scale=scale)[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_step_with_gradients_that_are_not_finite_is_skipped_where_they_are_clipped(
    precision: str, factor: float
) -> None:
    """Clipping turns infinite values into NaN, which must not reach weights or momenta."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"batchnorm": "eval", "precision": precision, "clip_norm": 10.0}
    train_step, task = train_step_of(TinyNet(), ALL, **options)
    train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": 8.0})
    train_step.step([noise_batch(VIEWS, 4)], lr=0.01)
    weights = snapshot(train_step.module)
    momenta = [state["momentum_buffer"].clone() for state in train_step.optimiser.state.values()]
    scale = train_step.scaler.get_scale()
    task.factor = factor
    train_step.step([noise_batch(VIEWS, 4)], lr=0.01)
    values = train_step.module.state_dict
    assert all(torch.equal(weights[name], value) for name, value in values().items())
    states = train_step.optimiser.state.values()
    assert all(torch.equal(was, s["momentum_buffer"]) for was, s in zip(momenta, states, strict=True))
    assert float(train_step.num_skipped) == 1
    assert train_step.scaler.get_scale() == (scale / 2 if precision == "fp16" else 1.0)
    task.factor = 1.0
    train_step.step([noise_batch(VIEWS, 4)], lr=0.01)
    assert not all(torch.equal(weights[name], value) for name, value in values().items())
    assert all(value.isfinite().all() for value in values().values())
