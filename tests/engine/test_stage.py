"""Exactly the blocks that should learn change, and blocks outside the stage are not computed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks, run_blocks
from fastpsl.pipelines.loader.batch import Batch
from tests.engine.steps import VIEWS, Brightness, make_step, snapshot
from tests.engine.tiny import TinyNet, noise_batch, part_of

S1 = make_plan("psl", (1, 1, 1))[0]


@pytest.mark.parametrize("plan", ["psl", "sl", "psl_f", "end_to_end"])
@pytest.mark.parametrize("frozen_batchnorm", ["eval", "train"])
def test_exactly_the_learning_blocks_change(plan: str, frozen_batchnorm: str) -> None:
    torch.manual_seed(0)
    backbone, calls = TinyNet(), list[int]()
    for number, block in enumerate(backbone.blocks(), start=1):
        block.register_forward_hook(lambda module, args, output, number=number: calls.append(number))
    for stage in make_plan(plan, (1, 1, 1)):
        train_step = make_step(stage, backbone=backbone, frozen_batchnorm=frozen_batchnorm)
        before = [snapshot(block) for block in backbone.blocks()]
        head_before = snapshot(train_step.module.head)
        calls.clear()
        for _ in range(2):
            train_step.step([noise_batch(VIEWS, 4)], lr=0.1)
        assert calls == 2 * list(range(1, stage.last_block + 1))
        for number, block in enumerate(backbone.blocks(), start=1):
            learns = stage.first_learning <= number <= stage.last_block
            for name, value in block.state_dict().items():
                statistic = any(part in name for part in ("running", "num_batches"))
                moves = statistic and frozen_batchnorm == "train" and number < stage.first_learning
                should_change = learns or moves
                assert torch.equal(before[number - 1][name], value) != should_change, (stage, number, name)
        head = train_step.module.head.state_dict()
        assert all(not torch.equal(head_before[n], v) for n, v in head.items())


def test_every_group_of_parameters_has_the_steps_rate() -> None:
    """A common optimiser has one group with weight decay and one without."""
    stage = make_plan("end_to_end", (1, 1, 1))[0]
    weights = []
    for is_split in (False, True):
        torch.manual_seed(0)

        def optimiser(named: Any, is_split: bool = is_split) -> torch.optim.SGD:
            parameters = [p for _, p in named]
            groups = [parameters[::2], parameters[1::2]] if is_split else [parameters]
            return torch.optim.SGD([{"params": group} for group in groups], lr=9.0, fused=True)

        train_step = make_step(stage, optimiser=optimiser)
        for rate in (0.1, 0.05):
            train_step.step([noise_batch(VIEWS, 4)], lr=rate)
        weights.append(torch.cat([p.detach().flatten() for p in train_step.module.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_frozen_blocks_leave_no_graph() -> None:
    backbone = TinyNet()
    stage = make_plan("psl", (1, 1, 1))[2]
    blocks = StageBlocks(backbone, stage)
    outputs: dict[int, Tensor] = {}
    for number, block in enumerate(backbone.blocks(), start=1):
        block.register_forward_hook(lambda m, a, output, number=number: outputs.update({number: output}))
    assert blocks(torch.randn(2, 3, 32, 32)).grad_fn is not None
    assert [outputs[n].grad_fn is None for n in (1, 2, 3, 4, 5)] == [True, True, False, False, False]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_features_are_those_of_every_block_of_the_stage(number: int) -> None:
    """The stages of PSL have none, one and two frozen blocks."""
    backbone, images = TinyNet().eval(), torch.randn(2, 3, 32, 32)
    stage = make_plan("psl", (1, 1, 1))[number]
    features = StageBlocks(backbone, stage).eval().features(images)
    assert len(features) == stage.last_block == number + 3
    for block, output in zip(backbone.blocks(), features, strict=False):
        images = block(images)
        torch.testing.assert_close(output, images, rtol=0, atol=0)


def test_blocks_that_run_keep_the_last_output_alone() -> None:
    """Others would stay in memory."""
    assert len(run_blocks(TinyNet().blocks(), torch.randn(2, 3, 32, 32))) == 1


def test_accumulated_batches_give_the_mean_gradient() -> None:
    batch = noise_batch(VIEWS, 8)
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        train_step = make_step(make_plan("end_to_end", (1, 1, 1))[0])
        train_step.module.eval()  # in train mode, BatchNorm's statistics would depend on the batches
        train_step.step([part_of(batch, number, parts) for number in range(parts)], 0.5, parts)
        weights.append(torch.cat([p.detach().flatten() for p in train_step.module.parameters()]))
    assert all(torch.allclose(weights[0], other, atol=1e-6) for other in weights[1:])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps_with_non_finite_gradients_change_nothing_and_are_counted(precision: str) -> None:
    torch.manual_seed(0)
    task = Brightness()
    train_step = make_step(S1, task, precision=precision)
    module = train_step.module
    train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": 1.0})
    train_step.step([noise_batch(VIEWS, 4)], lr=0.1)
    before = snapshot(module)
    task.factor = float("nan")
    train_step.step([noise_batch(VIEWS, 4)], lr=0.1)
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())
    assert float(train_step.num_skipped) == 1.0


@pytest.mark.parametrize(("precision", "scale"), [("fp32", 1.0), ("bf16", 1.0), ("fp16", 65536.0)])
def test_the_first_scale_of_gradients(precision: str, scale: float) -> None:
    """In fp16 it is torch's own, 2 to the 16."""
    assert make_step(S1, precision=precision).scaler.get_scale() == scale


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_warm_up_computes_in_the_steps_precision(precision: str, dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    make_step(S1, precision=precision).warm_up(
        lambda blocks, head, inputs, batch: seen.append(head(blocks(inputs[0])).dtype), noise_batch(VIEWS, 4)
    )
    assert seen == [dtype]


def test_bf16_leaves_weights_momenta_and_statistics_in_float32() -> None:
    """BatchNorm's statistics are those of the bf16 outputs before it, summed in float32."""
    torch.manual_seed(0)
    train_step = make_step(make_plan("end_to_end", (1, 1, 1))[0], precision="bf16")
    net, seen = train_step.module, list[tuple[nn.BatchNorm2d, Tensor]]()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(lambda norm, inputs: seen.append((norm, inputs[0].detach())))
    train_step.step([noise_batch(VIEWS, 8)], lr=0.1)
    assert seen and {inputs.dtype for _, inputs in seen} == {torch.bfloat16}
    for norm, inputs in seen:
        var, mean = torch.var_mean(inputs.double(), (0, 2, 3))
        assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
        assert torch.allclose(norm.running_mean.double(), norm.momentum * mean, rtol=1e-5, atol=1e-7)
        assert torch.allclose(norm.running_var.double(), 1 + norm.momentum * (var - 1), rtol=1e-5)
    optimiser = train_step.optimiser
    momenta = [value for state in optimiser.state.values() for value in state.values() if value is not None]
    assert {value.dtype for value in (*net.parameters(), *momenta)} == {torch.float32}


def test_an_evaluation_is_of_the_samples_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are sums over samples. One that no sample counts for is left out."""
    pairs = [{"loss": (3.0, 2.0), "none": (0.0, 0.0)}, {"loss": (1.0, 6.0), "late": (2.0, 4.0)}]
    pending = iter(pairs)

    class Told(Brightness):
        @override
        def loss(self, blocks: nn.Module, head: nn.Module, inputs: Any, batch: Batch) -> Any:
            assert not blocks.training and not head.training
            values = next(pending).items()
            return torch.zeros(()), {name: tuple(map(torch.tensor, pair)) for name, pair in values}

    train_step = make_step(S1, Told())
    batches = [noise_batch(VIEWS, 4)] * 2
    result = train_step.evaluate(batches, VIEWS, lambda: False)
    assert result == {"loss": 0.5, "late": 0.5} and train_step.module.training
    assert train_step.evaluate(batches, VIEWS, lambda: True) is None
