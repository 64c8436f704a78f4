"""LARS equals plain loops, by torch's operations and by the kernels that it has on a GPU."""

import copy
import importlib.util
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fastpsl.engine.optim import optimisers
from fastpsl.engine.optim.optimisers import LARS, lars
from fastpsl.models.resnet import ResNet
from fastpsl.tasks.contrastive.simclr import ProjectionHead
from tests.engine.steps import at_rate
from tests.fake_cuda import fake_cuda

MOMENTUM, DECAY, EETA = 0.8, 0.03, 0.01
RATES = (0.5, 2.0, 1.0, 0.1)
SHAPES = {"conv.weight": (4, 3, 3, 3), "linear.weight": (5, 4), "bn.weight": (4,), "bn.bias": (4,)}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    values = {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in SHAPES.items()}
    values["zero.weight"] = nn.Parameter(torch.zeros(3, 2))  # a norm of 0
    # More values than a program of the kernels has, and another order in memory.
    large = torch.randn((5, 7, 13, 11), generator=random).contiguous(memory_format=torch.channels_last)
    values |= {"large.weight": nn.Parameter(large), "none.weight": nn.Parameter(torch.empty(0, 3))}
    # Axes of one, whose strides say nothing.
    small = torch.randn((6, 5, 1, 1), generator=random)
    values["small.weight"] = nn.Parameter(small.as_strided((6, 5, 1, 1), (5, 1, 7, 9)))
    return values


@pytest.fixture(params=["operations", "kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LARS step by torch's operations, and by the kernels that it has on a GPU."""
    if request.param == "kernels":
        pytest.importorskip("triton")
        module = importlib.import_module("fastpsl.kernels.fused_cuda.lars")
        monkeypatch.setattr(optimisers, "_lars_kernels", lambda device: module)


def gradients() -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of each step. At the third step, all are 0."""
    random = torch.Generator().manual_seed(1)
    for step in range(len(RATES)):
        factor = 0.0 if step == 2 else 1.0
        yield {name: torch.randn(p.shape, generator=random) * factor for name, p in parameters().items()}


def steps(
    optimiser: LARS, named: dict[str, nn.Parameter], scaler: torch.amp.GradScaler | None = None
) -> None:
    """Make the steps of all `gradients`; with a scaler, on scaled gradients."""
    for rate, step_gradients in zip(RATES, gradients(), strict=True):
        at_rate(rate, optimiser)
        for name, parameter in named.items():
            parameter.grad = step_gradients[name].clone()
        if scaler is None:
            optimiser.step()
            continue
        for parameter in named.values():
            assert parameter.grad is not None
            parameter.grad = scaler.scale(parameter.grad)
        scaler.step(optimiser)
        scaler.update()


def make_lars(named: dict[str, nn.Parameter]) -> LARS:
    return lars(named.items(), momentum=MOMENTUM, weight_decay=DECAY, eeta=EETA)


@pytest.mark.usefixtures("way")
def test_equals_a_plain_loop() -> None:
    expected = {name: p.detach().double().numpy().copy() for name, p in parameters().items()}
    velocity = {name: np.zeros_like(w) for name, w in expected.items()}
    for rate, step_gradients in zip(RATES, gradients(), strict=True):
        for name, w in expected.items():
            g, trust = step_gradients[name].double().numpy(), 1.0
            if not name.startswith("bn"):
                g = g + DECAY * w
                w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
                if w_norm > 0 and g_norm > 0:
                    trust = EETA * w_norm / g_norm
            velocity[name] = MOMENTUM * velocity[name] + rate * trust * g
            expected[name] = w - velocity[name]
    named = parameters()
    optimiser = make_lars(named)
    # As a checkpoint of another memory format has them.
    large = optimiser.state[named["large.weight"]]
    large["momentum_buffer"] = large["momentum_buffer"].contiguous()
    steps(optimiser, named)
    for name, parameter in named.items():
        buffer = optimiser.state[parameter]["momentum_buffer"]
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(buffer.numpy(), velocity[name], rtol=1e-5, atol=1e-6)


class Bytes(TorchDispatchMode):
    """A mode that counts what operations read and write of tensors of at least `least` values."""

    def __init__(self, least: int):
        super().__init__()
        self.num, self.least = 0, least

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.inplace_view not in func.tags and not func.is_view:
            written = [
                value
                for value, argument in zip(args, func._schema.arguments, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            made = [] if written else result
            for each in tree_leaves((args, kwargs, written, made)):
                if isinstance(each, Tensor) and each.numel() >= self.least:
                    self.num += each.nbytes
        return result


@pytest.mark.parametrize("has_kernels", [False, True])
def test_a_step_on_a_gpu_moves_few_bytes(has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with fake_cuda() as cuda:
        if not has_kernels:
            monkeypatch.setattr(optimisers, "_lars_kernels", lambda device: None)
        weights = [nn.Parameter(torch.zeros(256, 300, device=cuda.device)) for _ in range(5)]
        optimiser: Any = LARS(weights, lr=0.0, weight_decay=0.1)
        optimiser.param_groups[0]["lr"] = torch.zeros((), device=cuda.device)
        optimiser.grad_scale, optimiser.found_inf = torch.zeros(2, 1, device=cuda.device)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        with cuda.watched() as seen, Bytes(1000) as bytes_:
            optimiser.step()
        assert not seen.waits
    assert bytes_.num == (28 if has_kernels else 92) * sum(weight.numel() for weight in weights)


@pytest.mark.gpu
def test_kernels_give_the_values_of_operations_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within roundings, and in a captured step, whose gradients lie elsewhere than those of launched ones."""
    results = []
    for has_kernels in (True, False):
        if not has_kernels:
            monkeypatch.setattr(optimisers, "_lars_kernels", lambda device: None)
        torch.manual_seed(0)
        network = ResNet("resnet18").cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser: Any = lars(network.named_parameters(), momentum=MOMENTUM, weight_decay=DECAY, eeta=EETA)
        at_rate(torch.full((), 0.3, device="cuda"), optimiser)
        optimiser.grad_scale, optimiser.found_inf = torch.tensor([[8.0], [0.0]], device="cuda")

        def step(network: nn.Module = network, optimiser: Any = optimiser) -> None:
            for weight in network.parameters():
                weight.grad = weight.detach().sin() * 8
            optimiser.step()
            optimiser.zero_grad()

        for _ in range(2):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(2):
            graph.replay()
        results.append([weight.detach().double() for weight in network.parameters()])
    for mine, theirs in zip(*results, strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_scaled_gradients_give_the_same_weights(scale: float) -> None:
    """Equality is exact, because the scale is a power of two. Decay and norms use unscaled gradients."""
    plain, scaled = parameters(), parameters()
    steps(make_lars(plain), plain)
    steps(make_lars(scaled), scaled, torch.amp.GradScaler("cpu", init_scale=scale))
    for name, parameter in plain.items():
        assert torch.equal(parameter, scaled[name]), name


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(poison: float) -> None:
    named = parameters()
    optimiser = make_lars(named)
    steps(optimiser, named)
    everything = [*named.values(), *(s["momentum_buffer"] for s in optimiser.state.values())]
    before = [t.detach().clone() for t in everything]
    assert all(t.any() for t in before if t.numel())
    flags = []
    optimiser.register_step_pre_hook(lambda o, *_: flags.append(o.found_inf.item()))
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    conv = named["conv.weight"].grad
    assert conv is not None
    conv[1, 2] = poison
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))  # as a backward pass would: it makes the scaler's tensors
    scaler.step(optimiser)
    assert flags == [1.0]
    assert all(map(torch.equal, everything, before))


def test_biases_and_batchnorm_neither_decay_nor_adapt() -> None:
    """One dimension identifies them. The types of their modules, in a backbone and a head, agree."""
    model = nn.ModuleDict({"backbone": ResNet("resnet18"), "head": ProjectionHead(512, 16)})
    adapted, excluded = lars(model.named_parameters(), weight_decay=0.5).param_groups
    assert adapted["adapt"] and adapted["weight_decay"] == 0.5
    assert not excluded["adapt"] and excluded["weight_decay"] == 0
    kinds = {
        id(p): (isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) or name == "bias")
        for m in model.modules()
        for name, p in m.named_parameters(recurse=False)
    }
    assert {id(p) for p in excluded["params"]} == {i for i, is_one in kinds.items() if is_one}
    assert {id(p) for p in adapted["params"]} == {i for i, is_one in kinds.items() if not is_one}
    assert len(adapted["params"]) == 22 and len(excluded["params"]) == 44


def test_state_goes_through_a_file_bit_for_bit_also_before_the_first_step() -> None:
    for num_runs in (0, 1):
        saved = parameters()
        optimiser = make_lars(saved)
        for _ in range(num_runs):
            steps(optimiser, saved)
        file = io.BytesIO()
        torch.save({"named": saved, "optimiser": optimiser.state_dict()}, file)
        file.seek(0)
        state = torch.load(file)
        loaded = parameters(seed=5)
        other = make_lars(loaded)
        with torch.no_grad():
            for name, parameter in loaded.items():
                parameter.copy_(state["named"][name])
        other.load_state_dict(state["optimiser"])
        assert len(other.state) == len(saved)
        steps(optimiser, saved)
        steps(other, loaded)
        for name, parameter in saved.items():
            assert torch.equal(parameter, loaded[name]), name


@pytest.mark.usefixtures("way")
def test_weights_with_gaps_in_memory_step_as_others() -> None:
    values = torch.randn(4, 6)
    whole, gaps = {"a.weight": nn.Parameter(values[:, :3].clone())}, {"a.weight": nn.Parameter(values[:, :3])}
    for named in (whole, gaps):
        optimiser = make_lars(named)
        for rate in RATES:
            named["a.weight"].grad = torch.arange(12.0).view(4, 3)
            at_rate(rate, optimiser).step()
    assert torch.allclose(whole["a.weight"], gaps["a.weight"], rtol=1e-6) and values[:, 3:].abs().min() > 0


@pytest.mark.usefixtures("way")
def test_a_copy_steps_as_the_original() -> None:
    named = parameters()
    optimiser = make_lars(named)
    steps(optimiser, named)
    copied, of_copy = copy.deepcopy((named, optimiser))
    for each, parameters_of in ((optimiser, named), (of_copy, copied)):
        steps(each, parameters_of)
    assert all(torch.equal(parameter, copied[name]) for name, parameter in named.items())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum -1"):
        LARS([torch.zeros(2)], lr=0.1, momentum=-1)
    with pytest.raises(ValueError, match="weight_decay -1"):
        lars(parameters().items(), weight_decay=-1)
    with pytest.raises(ValueError, match="float16"):
        LARS([torch.zeros(2, dtype=torch.float16)], lr=0.1)
