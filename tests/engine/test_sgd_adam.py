import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.engine.optim.optimisers import adam, lars, sgd


def test_biases_do_not_decay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = sgd(module.named_parameters(), momentum=0.9, weight_decay=0.5)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in module.named_parameters():
        expected = before[name] if name.endswith("bias") else before[name] * (1 - 0.1 * 0.5)
        assert torch.allclose(parameter, expected), name


def test_everything_decays_where_asked_and_nesterov_is_torchs() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    twin = nn.Linear(3, 3)
    twin.load_state_dict(module.state_dict())
    optimiser = sgd(module.named_parameters(), weight_decay=0.5, nesterov=True, decay_biases=True)
    torch_optimiser = torch.optim.SGD(
        twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True
    )
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    for _ in range(3):
        for parameter, twin_parameter in zip(module.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin_parameter.grad = parameter.grad.clone()
        optimiser.step()
        torch_optimiser.step()
    for parameter, twin_parameter in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter, twin_parameter, atol=1e-6)


def test_a_skipped_first_step_leaves_no_garbage_behind() -> None:
    """torch's momentum buffers are uninitialised before the first step, which fp16 often skips."""
    results = []
    for skipped in (0, 1, 3):
        torch.manual_seed(0)
        module = nn.Linear(200, 300)
        optimiser = sgd(module.named_parameters(), weight_decay=0.0)
        for group in optimiser.param_groups:
            group["lr"] = 0.1
        for step in range(skipped + 2):
            for parameter in module.parameters():
                parameter.grad = torch.full_like(parameter, 1.0 + step - skipped)
            optimiser.grad_scale = None  # type: ignore[attr-defined]  # as the scaler hands them over
            optimiser.found_inf = torch.tensor(float(step < skipped))  # type: ignore[attr-defined]
            optimiser.step()
        results.append(module.weight.detach().clone())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_adam_is_the_plain_formula(betas: tuple[float, float], weight_decay: float) -> None:
    """Kingma and Ba, algorithm 1, with the decay of weights and biases in the gradient."""
    torch.manual_seed(0)
    module, (first, second), rate = nn.Linear(3, 2), betas, 0.01
    optimiser = adam(module.named_parameters(), betas, weight_decay)
    expected = [parameter.detach().double().numpy().copy() for parameter in module.parameters()]
    moments = [(np.zeros_like(values), np.zeros_like(values)) for values in expected]
    for step in range(1, 5):
        for place, parameter in enumerate(module.parameters()):
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double().numpy() + weight_decay * expected[place]
            mean, square = moments[place]
            mean = first * mean + (1 - first) * gradient
            square = second * square + (1 - second) * gradient**2
            moments[place] = mean, square
            scale = np.sqrt(square / (1 - second**step)) + 1e-8
            expected[place] -= rate * mean / (1 - first**step) / scale
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    for parameter, values in zip(module.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), values, rtol=1e-4, atol=1e-6)


def test_usual_settings() -> None:
    """SGD's are PSL's (section 4.1), Adam's those of Kingma and Ba, and the decay of LARS is SimCLR's."""
    named = list(nn.Linear(3, 2).named_parameters())
    decayed, biases = sgd(named).param_groups
    assert (decayed["momentum"], decayed["weight_decay"], decayed["nesterov"]) == (0.9, 1e-4, False)
    assert (biases["momentum"], biases["weight_decay"]) == (0.9, 0.0)
    (group,) = adam(named).param_groups
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.999), 0.0, 1e-8)
    adapted, others = lars(named).param_groups
    assert (adapted["momentum"], adapted["weight_decay"], adapted["eeta"]) == (0.9, 1e-6, 0.001)
    assert (others["momentum"], others["weight_decay"]) == (0.9, 0.0)
