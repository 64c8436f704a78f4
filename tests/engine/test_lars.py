"""LARS equals a plain loop in numpy's float64, written after google-research/simclr, lars_optimizer."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastpsl.engine.optim.optimisers import LARS, lars
from fastpsl.models.resnet import ResNet
from fastpsl.tasks.contrastive.simclr import ProjectionHead

MOMENTUM, DECAY, EETA = 0.8, 0.03, 0.01
RATES = (0.5, 2.0, 1.0, 0.1)
SHAPES = {"conv.weight": (4, 3, 3, 3), "linear.weight": (5, 4), "bn.weight": (4,), "bn.bias": (4,)}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    values = {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in SHAPES.items()}
    values["zero.weight"] = nn.Parameter(torch.zeros(3, 2))  # a norm of 0
    return values


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
        for group in optimiser.param_groups:
            group["lr"] = rate
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
    steps(optimiser, named)
    for name, parameter in named.items():
        buffer = optimiser.state[parameter]["momentum_buffer"]
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(buffer.numpy(), velocity[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_scaled_gradients_give_the_same_weights(scale: float) -> None:
    """Equality is exact, because the scale is a power of two. Decay and norms use unscaled gradients."""
    plain, scaled = parameters(), parameters()
    steps(make_lars(plain), plain)
    steps(make_lars(scaled), scaled, torch.amp.GradScaler("cpu", init_scale=scale))
    for name, parameter in plain.items():
        assert torch.equal(parameter, scaled[name]), name


@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(poison: float) -> None:
    named = parameters()
    optimiser = make_lars(named)
    steps(optimiser, named)
    everything = [*named.values(), *(s["momentum_buffer"] for s in optimiser.state.values())]
    before = [t.detach().clone() for t in everything]
    assert all(t.any() for t in before)
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
    for tensor, old in zip(everything, before, strict=True):
        assert torch.equal(tensor, old)


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


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum -1"):
        LARS([torch.zeros(2)], lr=0.1, momentum=-1)
    with pytest.raises(ValueError, match="weight_decay -1"):
        lars(parameters().items(), weight_decay=-1)
    with pytest.raises(ValueError, match="float16"):
        LARS([torch.zeros(2, dtype=torch.float16)], lr=0.1)
