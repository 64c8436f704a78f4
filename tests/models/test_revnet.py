"""RevNet compared to the same modules run as a plain graph, which stores all activations.

The forward passes are the same operations, so outputs and running statistics are equal bit for bit. Gradients
differ by the rounding of recomputed values: float32 streams are restored to about 1e-6 of their size, which a
test below checks. The tolerance for the norm of the difference over the norm of the gradient is 1e-4. In
fp32, BatchNorm over few values amplifies the 1e-6, and 6e-6 was measured. In bf16 and fp16, sums of few short
numbers are nearly exact in float32. A restored value with an error of 3e-8 is rounded differently once in 1e5
(1e4) values, by 2^-8 (2^-11). This gives 2^-8 sqrt(1e-5) = 1e-5, and 3e-8 was measured. In float64, the
tolerance is 1e-11.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.plan import make_plan
from fastpsl.models import revnet
from fastpsl.models.factory import make_backbone
from fastpsl.models.resnet import ResNet
from fastpsl.models.revnet import UNITS, WIDTHS, Group, ReversibleUnits, RevNet, Unit
from tests.engine.steps import VIEWS, make_step, rank_of
from tests.engine.tiny import noise_batch, part_of
from tests.warm import results_of_ranks

TOLERANCE = 1e-4
STAGES = make_plan("psl", (1, 1, 1))
recomputing_forward = ReversibleUnits.forward


def plain_forward(units: ReversibleUnits, x1: Tensor, x2: Tensor) -> Tensor:
    """Compute the reference: equation 6 of Gomez et al. with ordinary autograd."""
    for unit in units:
        y1 = x1 + unit.f(x2)  # type: ignore[operator]
        y2 = x2 + unit.g(y1)  # type: ignore[operator]
        x1, x2 = y1, y2
    return torch.cat([x1, x2], dim=1)


@pytest.fixture(autouse=True)
def restored_forward() -> Iterator[None]:
    yield
    ReversibleUnits.forward = recomputing_forward  # type: ignore[method-assign]


def use(forward: Callable[..., Tensor]) -> None:
    ReversibleUnits.forward = forward  # type: ignore[method-assign]


def small() -> RevNet:
    """Build a network as deep as the real one, but narrow."""
    torch.manual_seed(0)
    return RevNet(channels=(8, 16, 24, 32, 48), widths=(8, 8, 8, 16))


def images(number: int = 4, side: int = 64) -> Tensor:
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(number, 3, 4, 4, generator=random)
    return nn.functional.interpolate(coarse, size=side, mode="bilinear")


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).double().norm() / other.double().norm())


def after_a_step(
    stage_number: int, precision: str, rank: int = 0, world_size: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return gradients and buffers after one step of a stage, made as by the trainer (scaler, DDP)."""
    backbone, world = small().to(memory_format=torch.channels_last), rank_of(rank, world_size)
    optimiser = partial(sgd, weight_decay=0.0)
    train_step = make_step(
        STAGES[stage_number], backbone=backbone, precision=precision, world=world, optimiser=optimiser
    )
    train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": 64.0})
    train_step.step([part_of(noise_batch(VIEWS, 16), rank, world_size)], lr=0.1)
    # After the first step, the momentum is the unscaled gradient.
    parameters, state = train_step.module.learning_parameters(), train_step.optimiser.state
    momenta = {name: state[p]["momentum_buffer"] for name, p in parameters}
    return momenta, {name: value.clone() for name, value in backbone.named_buffers()}


def assert_alike(
    ours: tuple[dict[str, Tensor], dict[str, Tensor]], plain: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    worst = {name: apart(gradient, plain[0][name]) for name, gradient in ours[0].items()}
    assert max(worst.values()) < TOLERANCE, max(worst.items(), key=lambda item: item[1])
    assert all(torch.equal(value, plain[1][name]) for name, value in ours[1].items())


@pytest.mark.usefixtures("published_widths")
def test_24_million_parameters_as_resnet_50() -> None:
    backbone = make_backbone("revnet50")
    assert isinstance(backbone, RevNet) and backbone.name == "revnet50"
    assert sum(p.numel() for p in backbone.parameters()) == 24_313_088
    assert sum(p.numel() for p in ResNet("resnet50").parameters()) == 23_508_032  # the paper: 24 million both
    pairs = zip(WIDTHS, backbone.channels[1:], strict=True)
    assert all(abs(width / outputs - 0.2) < 0.02 for width, outputs in pairs)
    assert [len(group.units) + 1 for group in backbone.modules() if isinstance(group, Group)] == list(UNITS)


def test_first_weights_are_he_normal_as_torchvisions_resnet() -> None:
    """4.6 % of normal values are beyond twice the standard deviation sqrt(2 / (kernel area x outputs))."""
    torch.manual_seed(0)
    weight = RevNet().layer4.units[0].f.conv1.weight.detach()  # type: ignore[union-attr, operator]
    sigma = math.sqrt(2 / 416)
    assert weight.shape == (416, 1024, 1, 1)
    assert math.isclose(float(weight.std()), sigma, rel_tol=5e-3)
    assert math.isclose(float((weight.abs() > 2 * sigma).float().mean()), 0.0455, abs_tol=2e-3)


@pytest.mark.usefixtures("published_widths")
def test_blocks_have_resnets_shapes() -> None:
    """Signs agree, too: each block's output is rectified, and normalised over the batch."""
    revnet, resnet = RevNet(), ResNet("resnet50")
    with torch.no_grad():
        x = y = images(side=64)
        for block, resnet_block in zip(revnet.blocks(), resnet.blocks(), strict=True):
            x, y = block(x), resnet_block(y)
            assert x.shape == y.shape
            # The mean of a rectified normal distribution is 0.4.
            assert float(x.min()) == 0.0 and 0.3 < float(x.mean()) < 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_is_the_plain_graphs(stage: int, precision: str) -> None:
    recomputed = after_a_step(stage, precision)
    use(plain_forward)
    plain = after_a_step(stage, precision)
    assert_alike(recomputed, plain)
    counts = {int(value) for name, value in recomputed[1].items() if name.endswith("num_batches_tracked")}
    # Blocks after the stage do not run, and frozen blocks do not count.
    assert counts == {0, 1}


def test_float64_gradients_of_all_parameters_and_the_images() -> None:
    """In float64, the rounding that distinguishes the two vanishes."""
    results = []
    for forward in (recomputing_forward, plain_forward):
        use(forward)
        backbone = small().double()
        inputs = images().double().requires_grad_()
        features = backbone(inputs)
        weights = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)
        (features * weights).sum().backward()
        results.append([inputs.grad, *(p.grad for p in backbone.parameters())])
    for one, other in zip(*results, strict=True):
        assert one is not None and other is not None and apart(one, other) < 1e-11


CASES = ((0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16"))


def of_all_cases(rank: int, world_size: int) -> list[list[Any]]:
    """Return the results of our forward pass, and of the plain one."""
    results = []
    for forward in (recomputing_forward, plain_forward):
        use(forward)
        results.append([after_a_step(stage, precision, rank, world_size) for stage, precision in CASES])
    return results


@pytest.mark.slow
def test_two_ranks_see_every_gradient(tmp_path: Path) -> None:
    """DDP's mean gradients are equal on both ranks. Gradients and statistics are the plain graph's."""
    ranks = results_of_ranks(of_all_cases, 2, tmp_path)
    for case in range(len(CASES)):
        ours, plain = ([rank[forward][case] for rank in ranks] for forward in (0, 1))
        for rank in (0, 1):
            assert_alike(ours[rank], plain[rank])
        assert all(torch.equal(value, ours[1][0][name]) for name, value in ours[0][0].items())
        assert any(not torch.equal(value, ours[1][1][name]) for name, value in ours[0][1].items())


def stored_by_autograd(module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Return the tensors that autograd stores in a forward pass, once each, without parameters and inputs."""
    addresses_outside = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *inputs]}
    stored: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # A view, so that its memory is not reused.
        stored[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*inputs)
        assert output.requires_grad
    return [tensor for address, tensor in stored.items() if address not in addresses_outside]


def num_bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_memory_does_not_grow_with_depth(dtype: torch.dtype) -> None:
    """Under autocast, only one sum of the first unit and the output are stored in float32, and no casts."""
    sizes = {}
    for forward in (recomputing_forward, plain_forward):
        use(forward)
        for num_units in (3, 12):
            group = Group(16, 32, 8, num_units, stride=1).to(memory_format=torch.channels_last)
            inputs = torch.randn(2, 16, 12, 12).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
                tensors = stored_by_autograd(group, inputs)
            sizes[forward, num_units] = num_bytes(tensors)
            if forward is recomputing_forward and dtype != torch.float32:
                shapes = [tuple(t.shape[:2]) for t in tensors if t.dtype == torch.float32 and t.dim() == 4]
                assert sorted(shapes) == [(2, 16), (2, 32)]
    assert sizes[recomputing_forward, 3] == sizes[recomputing_forward, 12]
    assert sizes[plain_forward, 3] > 1.5 * sizes[recomputing_forward, 3]
    assert sizes[plain_forward, 12] > 3 * sizes[plain_forward, 3]


def test_reversible_units_keep_their_output_and_nothing_else() -> None:
    units = ReversibleUnits(Unit(16, 8) for _ in range(5))
    x1, x2 = torch.randn(2, 2, 16, 12, 12)
    assert num_bytes(stored_by_autograd(units, x1, x2)) == 2 * 32 * 12 * 12 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_come_back_in_float32(dtype: torch.dtype) -> None:
    """Compares the inputs of F and G of the real B4 (five reversible units) in both passes.

    The bound is 1e-5 of the largest value. float32 rounds at 6e-8, and bfloat16 streams would differ by 4e-3.
    """
    torch.manual_seed(0)
    group = RevNet().layer3
    inputs_of: dict[nn.Module, list[Tensor]] = {}
    for unit in group.units:
        assert isinstance(unit, Unit)
        for function in (unit.f, unit.g):
            function.register_forward_hook(
                lambda module, args, output: inputs_of.setdefault(module, []).append(args[0].detach().clone())
            )
    inputs = torch.randn(2, 512, 6, 6).relu()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        output = group(inputs)
    assert output.dtype == dtype
    output.float().square().sum().backward()
    assert len(inputs_of) == 10
    for before, after in inputs_of.values():
        assert before.dtype == after.dtype == torch.float32
        assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())


def test_units_behind_something_frozen_learn() -> None:
    """If inputs need no gradients, learning units get theirs, and frozen units inside get none."""
    results = []
    for forward in (recomputing_forward, plain_forward):
        use(forward)
        torch.manual_seed(0)
        units = ReversibleUnits(Unit(8, 4) for _ in range(3))
        units[1].f.requires_grad_(False)  # type: ignore[union-attr]
        x1, x2 = torch.randn(2, 4, 8, 6, 6)
        units(x1, x2).square().sum().backward()
        results.append([p.grad for p in units.parameters()])
    assert [one is None for one in results[0]] == [other is None for other in results[1]]
    assert sum(one is None for one in results[0]) == 9
    pairs = [
        (one, other) for one, other in zip(*results, strict=True) if one is not None and other is not None
    ]
    assert max(apart(one, other) for one, other in pairs) < TOLERANCE


def test_without_gradients_and_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, gradients = [], []
    for forward in (recomputing_forward, plain_forward):
        use(forward)
        backbone = small()
        for _ in range(3):
            backbone(images())
        backbone.eval()
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.delattr(revnet, "_Recomputed")
            output = backbone(images())
        output_with_graph = backbone(images())
        assert torch.equal(output_with_graph, output)
        output_with_graph.square().mean().backward()
        outputs.append(output)
        gradients.append([p.grad for p in backbone.parameters()])
        assert all(int(value) == 3 for name, value in backbone.named_buffers() if name.endswith("tracked"))
    assert torch.equal(*outputs)
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None and apart(one, other) < TOLERANCE


def test_backward_may_be_called_under_autocast() -> None:
    """Autocast's cache then holds weights that the forward pass cast without a graph."""
    torch.manual_seed(0)
    units = ReversibleUnits(Unit(8, 4) for _ in range(2))
    x1, x2 = torch.randn(2, 4, 8, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = units(x1, x2).square().mean()
        loss.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in units.parameters())


def test_what_would_make_gradients_wrong_is_an_error() -> None:
    units = ReversibleUnits(Unit(8, 4) for _ in range(2))
    x1, x2 = torch.randn(2, 4, 8, 6, 6)
    output = units(x1, x2)
    units.eval()
    with pytest.raises(RuntimeError, match="between"):
        output.sum().backward()
    output = units.train()(x1, x2)
    with torch.no_grad():
        next(units.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified"):
        output.sum().backward()
    first = torch.autograd.grad(units(x1.requires_grad_(), x2).square().sum(), x1, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].sum().backward()


def test_state_dict_round_trip() -> None:
    one, other = small(), RevNet(channels=(8, 16, 24, 32, 48), widths=(8, 8, 8, 16))
    one(images())
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(images()), other.eval()(images()))


@pytest.mark.gpu
def test_on_a_gpu_memory_does_not_grow_with_depth_and_gradients_are_the_plain_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gradients, peaks = {}, {}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for forward, num_units, is_half in itertools.product(
        (recomputing_forward, plain_forward), (3, 12), (True, False)
    ):
        use(forward)
        torch.manual_seed(0)
        group = Group(64, 256, 56, num_units, stride=1).cuda().to(memory_format=torch.channels_last)
        inputs = torch.randn(8, 64, 56, 56, device="cuda").to(memory_format=torch.channels_last)
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", dtype=torch.float16, enabled=is_half):
            loss = group(inputs).square().mean()
        if is_half:
            peaks[forward, num_units] = torch.cuda.memory_allocated() - before
        (2.0**8 * loss).backward()  # half precision's smallest numbers are coarse
        flat = torch.cat([p.grad.flatten() for p in group.parameters()])  # type: ignore[union-attr]
        gradients[forward, num_units, is_half] = flat
    activation = 8 * 256 * 56 * 56 * 4
    assert (
        abs(peaks[recomputing_forward, 12] - peaks[recomputing_forward, 3]) < 0.2 * activation
    )  # copies of weights
    assert peaks[plain_forward, 12] - peaks[plain_forward, 3] > 9 * activation
    for num_units in (3, 12):
        plain, plain_half = (gradients[plain_forward, num_units, is_half] for is_half in (False, True))
        # 1.8e-3 was seen with 12 units. The BatchNorm at the end makes the loss nearly constant, and that
        # magnifies all rounding.
        assert apart(gradients[recomputing_forward, num_units, False], plain) < 0.01
        # Inputs that differ in the last bit round to other halves. Two such results are no
        # farther apart than twice the distance of one from float32.
        difference = apart(gradients[recomputing_forward, num_units, True], plain_half)
        assert difference < 2 * apart(plain_half, plain)
