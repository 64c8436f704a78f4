import torch
from torch import nn

from fastpsl.engine.optim.sgd_adam import sgd


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
