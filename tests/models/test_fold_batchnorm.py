"""Folded frozen blocks have the same features and gradients, leave no trace in states, or are rejected.

Bounds are those of the difference's norm over the features' norm. In float32, sums have another order: 1e-5
after a dozen convolutions. bfloat16 has 8 bits, so that a rounding is at most 2^-8 and its root mean square
about 2^-10. After n layers with other roundings, features differ by about sqrt(2 n) of that. A bound of 2 %
suffices for the 11 layers of ResNet-50's B1 and B2, and is 6 times smaller than the effect of a missing
BatchNorm.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.stage_blocks import run_blocks
from fastpsl.engine.step_modes import StageChoices, StepChoice, make_runner
from fastpsl.engine.train_step import DTYPES, TrainStep
from fastpsl.engine.trainer import pretrain
from fastpsl.models.fold_batchnorm import folded
from fastpsl.models.resnet import ResNet
from fastpsl.models.revnet import RevNet
from tests.engine.steps import VIEWS, make_step, snapshot
from tests.engine.test_step_modes import Capture
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import TinyNet, noise_batch, tiny_run
from tests.slow import slow

BOUNDS = {"fp32": 1e-5, "bf16": 0.02}
S3 = make_plan("psl", (1, 1, 1))[2]


def as_after_training(backbone: nn.Module) -> nn.Module:
    """Set running statistics and affine values as after training, in channels-last memory."""
    random = torch.Generator().manual_seed(1)
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            size = part.weight.shape
            part.running_mean = 0.3 * torch.randn(size, generator=random)
            part.running_var = 0.3 + 1.7 * torch.rand(size, generator=random)
            part.weight.data = 0.4 + torch.rand(size, generator=random)
            part.bias.data = 0.3 * torch.randn(size, generator=random)
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def train_step(name: str, precision: str, fold: bool, stage: Stage = S3) -> TrainStep:
    torch.manual_seed(0)
    choices = StageChoices(fold=StepChoice("on" if fold else "off", ""))
    return make_step(stage, backbone=as_after_training(ResNet(name)), precision=precision, choices=choices)


def apart(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", ["resnet18", slow("resnet50")])
def test_features_and_gradients_are_those_of_the_blocks(name: str, precision: str) -> None:
    batch, dtype = noise_batch(VIEWS, 4), DTYPES[precision]
    (images,) = batch.inputs(VIEWS, dtype)
    features, gradients = [], []
    for fold in (False, True):
        step = train_step(name, precision, fold)
        # In train mode, statistics of four images would amplify any difference.
        step.module.eval()
        with torch.autocast("cpu", dtype=dtype, enabled=precision != "fp32"):
            blocks = step.module.blocks
            features.append(blocks.features(images)[:2])
            loss, _ = step.module([images], batch)
        loss.backward()
        assert all(p.grad is None for p in blocks.frozen.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in blocks.learning.parameters()]))  # type: ignore[union-attr]
    for plain_features, folded_features in zip(*features, strict=True):
        assert folded_features.dtype == plain_features.dtype == dtype
        assert folded_features.is_contiguous(memory_format=torch.channels_last)
        assert apart(plain_features, folded_features) < BOUNDS[precision]
    # The gradients passed three more blocks, where other ReLUs are active in bfloat16.
    assert apart(*gradients) < (1e-4 if precision == "fp32" else 0.7)


def test_a_batchnorm_left_out_is_beyond_the_bounds() -> None:
    """The bounds detect a missing BatchNorm."""
    block = as_after_training(ResNet("resnet18")).eval().blocks()[1]  # type: ignore[operator]
    images = torch.randn(2, 64, 16, 16)
    expected, wrong = block(images), copy.deepcopy(block)
    wrong[1][0].bn2 = nn.Identity()
    assert apart(expected, folded(block, torch.float32)(images)) < 1e-5
    assert apart(expected, wrong(images)) > 0.12


def test_activations_are_joined_to_their_convolutions() -> None:
    """All of ResNet's ReLUs follow a convolution, or its sum with the shortcut."""
    for name, count in (("resnet18", 4), ("resnet50", 9)):
        block = folded(as_after_training(ResNet(name)).blocks()[1], torch.bfloat16)  # type: ignore[operator]
        kinds = [type(part).__name__ for part in block.modules()]
        assert kinds.count("ConvReLU") == count and "ReLU" not in kinds
        assert isinstance(block, torch.fx.GraphModule) and " + " not in block.code


def test_a_result_that_is_used_twice_is_not_joined() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

        @override
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.relu(y) + y

    block, images = Twice(), torch.randn(2, 3, 4, 4)
    assert apart(block(images), folded(block, torch.float32)(images)) < 1e-6


def test_nothing_else_knows_of_the_copies() -> None:
    plain, folding = train_step("resnet18", "bf16", False), train_step("resnet18", "bf16", True)
    assert folding.module.state_dict().keys() == plain.module.state_dict().keys()
    assert len(list(folding.module.modules())) == len(list(plain.module.modules()))
    before = snapshot(folding.module.blocks.frozen)
    for seed in range(2):
        folding.step([noise_batch(VIEWS, 4, seed)], lr=0.1)
    assert all(
        torch.equal(before[n], value) for n, value in folding.module.blocks.frozen.state_dict().items()
    )
    weights = [m.weight for m in folding.module.blocks._folded[0].modules() if isinstance(m, nn.Conv2d)]
    assert [w.dtype for w in weights] == [torch.bfloat16] and not weights[0].requires_grad


@pytest.mark.slow
def test_folded_and_compiled() -> None:
    backend, values = Capture(), []
    for runner in (run_blocks, make_runner("on", backend)):
        torch.manual_seed(0)
        step = train_step("resnet18", "bf16", True)
        step.module.blocks.runner = runner
        step.step([noise_batch(VIEWS, 4)], lr=0.1)
        values.append(torch.cat([p.detach().flatten() for p in step.module.parameters()]))
    assert len(backend.inputs) == 2 and torch.equal(*values)


def test_a_head_that_learns_alone_has_every_blocks_features() -> None:
    """In linear probes, all five blocks are frozen."""
    linear = Stage("linear", 1, 6, 5, 1)
    step = train_step("resnet18", "fp32", True, linear)
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    features = step.module.blocks.features(images)
    expected = train_step("resnet18", "fp32", False, linear).module.blocks.features(images)
    assert len(features) == 5 and all(apart(a, b) < 2e-5 for a, b in zip(expected, features, strict=True))


def test_synchronised_batchnorm_folds_too() -> None:
    """In eval mode, it computes the same as any other."""
    block = as_after_training(TinyNet()).blocks()[0].eval()  # type: ignore[operator]
    images = torch.randn(2, 3, 8, 8)
    expected = block(images)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert apart(expected, folded(synchronised, torch.float32)(images)) < 1e-6
    assert isinstance(synchronised[1], nn.SyncBatchNorm)  # type: ignore[index]


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Branches(nn.Module):
    @override
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_folded_is_refused_in_one_line(tmp_path: Path) -> None:
    reversible = RevNet(channels=(8, 8, 12, 16, 16), units=(1, 2, 2, 2), widths=(4, 4, 4, 4))
    for block, says in (
        (reversible.blocks()[1], "RevNet"),
        (NormFirst(), "follow no convolution"),
        (Branches(), "cannot follow"),
    ):
        with pytest.raises(ValueError, match=says) as excinfo:
            folded(block, torch.float32)
        assert "leave it out" in str(excinfo.value) and "\n" not in str(excinfo.value)
    run = tiny_run(tmp_path, fold_frozen="on", frozen_batchnorm="train")
    with pytest.raises(ValueError, match="--fold-frozen: --frozen-batchnorm train normalises by each batch"):
        tiny_experiment().check(run.data)
    run.close()


def test_a_plan_is_trained_with_folded_blocks(tmp_path: Path) -> None:
    """S2 and S3 train as without folding, except for rounding, and do not run the frozen blocks."""
    losses, calls = [], []
    for fold in ("auto", "on"):
        run = tiny_run(tmp_path / fold, max_steps_per_stage=3, val=None, fold_frozen=fold)
        experiment = tiny_experiment()
        first: nn.Module = experiment.backbone.blocks()[0]  # type: ignore[operator]
        stages: list[str] = []
        first.register_forward_hook(lambda *_, run=run, stages=stages: stages.append(str(run.position.stage)))
        assert pretrain(experiment, run)
        run.close()
        losses.append([summary["loss_end"] for summary in run.position.summaries])
        calls.append("".join(stages))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert calls == ["000111222", "000"]


class Again(nn.Module):
    """A block with a convolution and BatchNorm, used once or twice, or with a sum with itself."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.conv, self.relu = kind, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.bn, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if self.kind == "twice":
            return self.relu(self.conv(y) + y)  # type: ignore[no-any-return]
        if self.kind == "two norms":
            return self.relu(y) + self.relu(self.other(self.conv(x)))  # type: ignore[no-any-return]
        return self.relu(y + y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["twice", "two norms"])
def test_a_convolution_with_two_tasks_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="--fold-frozen: conv is called twice in a block"):
        folded(as_after_training(Again(kind)), torch.float32)


def test_a_sum_with_itself() -> None:
    block, images = as_after_training(Again("sum")).eval(), torch.rand(2, 4, 6, 6)
    assert apart(block(images), folded(block, torch.float32)(images)) < BOUNDS["fp32"]
