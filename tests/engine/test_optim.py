"""SGD, Adam and apex equal plain loops and torch; schedules equal their formulas."""

import copy
import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.engine.optim.optimisers import adam, fused_sgd, lars, require_apex, sgd
from fastpsl.engine.optim.schedules import (
    Moment,
    cosine,
    inverse_root,
    linear_decay,
    polynomial,
    step_drops,
    warmed_up,
)
from fastpsl.engine.options import SGDOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.train_step import TrainStep
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.steps import VIEWS, at_rate, make_step
from tests.engine.tiny import noise_batch, one_process
from tests.programs import ROOT


def test_biases_do_not_decay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = at_rate(0.1, sgd(module.named_parameters(), momentum=0.9, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in module.named_parameters():
        expected = before[name] if name.endswith("bias") else before[name] * (1 - 0.1 * 0.5)
        assert torch.allclose(parameter, expected), name


def test_everything_decays_where_asked_and_nesterov_is_torchs() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    twin = copy.deepcopy(module)
    optimiser = sgd(module.named_parameters(), weight_decay=0.5, nesterov=True, decay_biases=True)
    torchs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True)
    at_rate(0.1, optimiser)
    for _ in range(3):
        for parameter, twin_parameter in zip(module.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin_parameter.grad = parameter.grad.clone()
        optimiser.step()
        torchs.step()
    for parameter, twin_parameter in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter, twin_parameter, atol=1e-6)


def test_a_skipped_first_step_leaves_no_garbage_behind() -> None:
    """torch's momentum buffers are uninitialised before the first step, which fp16 often skips."""
    results = []
    for skipped in (0, 1, 3):
        torch.manual_seed(0)
        module = nn.Linear(200, 300)
        optimiser = at_rate(0.1, sgd(module.named_parameters(), weight_decay=0.0))
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
        at_rate(rate, optimiser).step()
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


STANDS_IN = '''
import torch


class FusedSGD(torch.optim.Optimizer):
    """apex's interface, its skip flag and its first step; the arithmetic is written out, on any device."""

    def __init__(self, params, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False,
                 wd_after_momentum=False, materialize_master_grads=True, set_grad_none=False):
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
                    "nesterov": nesterov}
        super().__init__(params, defaults)
        device = self.param_groups[0]["params"][0].device
        self._dummy_overflow_buf = torch.tensor([0], dtype=torch.int, device=device)

    def zero_grad(self):
        super().zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                first = "momentum_buffer" not in self.state[p]
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                if self._dummy_overflow_buf.item():
                    continue
                d = p.grad + group["weight_decay"] * p
                if group["momentum"]:
                    buffer.copy_(d if first else buffer * group["momentum"] + (1 - group["dampening"]) * d)
                    d = d + group["momentum"] * buffer if group["nesterov"] else buffer
                p -= group["lr"] * d
'''  # fmt: skip


def put_apex(folder: Path, monkeypatch: pytest.MonkeyPatch, optimizers: str | None) -> None:
    """Create a package `apex` in `folder`, found before any other; without `optimizers`, as PyPI's."""
    (folder / "apex").mkdir()
    (folder / "apex" / "__init__.py").write_text("")
    if optimizers is not None:
        (folder / "apex" / "optimizers.py").write_text(optimizers)
    for name in ("apex", "apex.optimizers"):
        # Registered for undo, so that the test's imports are removed after it.
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)


def real_apex() -> bool:
    try:
        return torch.cuda.is_available() and importlib.util.find_spec("apex.optimizers") is not None
    except ImportError:
        return False


def train_step(
    optimiser_of: Callable[..., torch.optim.Optimizer], precision: str, device: str = "cpu", **settings: Any
) -> TrainStep:
    torch.manual_seed(0)
    stage, optimiser = make_plan("psl", (1, 1, 1))[1], partial(optimiser_of, **settings)
    result = make_step(stage, precision=precision, world=one_process(device), optimiser=optimiser)
    if precision == "fp16":
        # 65,536 overflows by itself.
        result.scaler.load_state_dict(result.scaler.state_dict() | {"scale": 256.0})
    return result


def train(one: TrainStep, num_steps: int, broken: tuple[int, ...]) -> torch.Tensor:
    """Return the weights after `num_steps`, where the steps in `broken` have non-finite gradients."""
    weight = one.module.blocks.learning[0][0].weight  # type: ignore[index]
    for step in range(num_steps):
        hook = weight.register_hook(lambda gradient: gradient * float("nan")) if step in broken else None  # type: ignore[operator, union-attr]
        batch = noise_batch(VIEWS, 4, seed=step)
        batch.images = [images.to(one.world.device) for images in batch.images]
        one.step([batch], lr=0.05)
        if hook:
            hook.remove()
    return torch.cat([p.detach().flatten() for p in one.module.parameters()]).cpu()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "settings", [{}, {"nesterov": True, "weight_decay": 0.1, "decay_biases": True}, {"momentum": 0.0}]
)
@pytest.mark.parametrize("broken", [(), (0,), (2,)])
def test_it_learns_skips_and_counts_as_torchs_sgd(
    precision: str,
    settings: dict[str, Any],
    broken: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Covers a skipped first step, unscaling of fp16's gradients, and weight decay without biases."""
    put_apex(tmp_path, monkeypatch, STANDS_IN)
    settings = {"weight_decay": 0.1} | settings
    apex_step, torch_step = (train_step(make, precision, **settings) for make in (fused_sgd, sgd))
    assert type(apex_step.optimiser).__mro__[1].__module__ == "apex.optimizers"
    apex_weights, torch_weights = train(apex_step, 4, broken), train(torch_step, 4, broken)
    # A rounding in float32 may change a rounding in fp16, and with it the gradients of later steps.
    assert torch.allclose(apex_weights, torch_weights, rtol=1e-5, atol=1e-6 if precision == "fp32" else 1e-4)
    assert float(apex_step.num_skipped) == float(torch_step.num_skipped) == len(broken)
    assert float(apex_step.scaler.get_scale()) == float(torch_step.scaler.get_scale())


def test_its_state_goes_through_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_apex(tmp_path, monkeypatch, STANDS_IN)
    uninterrupted, stopped, resumed = (train_step(fused_sgd, "fp32") for _ in range(3))
    state = uninterrupted.optimiser.state
    buffers = [state[p]["momentum_buffer"] for _, p in uninterrupted.module.learning_parameters()]
    assert buffers and not any(buffer.any() for buffer in buffers)  # made before the first step
    train(stopped, 2, ())
    resumed.module.load_state_dict(stopped.module.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    train(uninterrupted, 2, ())
    assert torch.equal(train(uninterrupted, 2, ()), train(resumed, 2, ()))


def test_on_the_cpu_it_is_refused() -> None:
    with pytest.raises(ValueError, match="--apex on cpu: .* needs CUDA"):
        SGDOptions(apex=True, device="cpu").sgd()
    assert SGDOptions(device="cpu").sgd() is sgd


@pytest.mark.parametrize("which", ["absent", "pypi", "no_fused_sgd", "not_built"])
def test_what_is_missing_is_said_in_one_line(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's apex, a web toolkit, lacks `optimizers`. NVIDIA's without CUDA extensions raises an error."""
    if which == "absent":
        monkeypatch.setitem(sys.modules, "apex", None)
    else:
        init = '    def __init__(self, *a, **k): raise RuntimeError("requires cuda extensions")\n'
        not_built = f"class FusedSGD:\n{init}"
        contents = {"pypi": None, "no_fused_sgd": "class FusedAdam: pass\n", "not_built": not_built}
        put_apex(tmp_path, monkeypatch, contents[which])
    with pytest.raises(ValueError, match="github.com/NVIDIA/apex.*PyPI's apex is another project") as excinfo:
        require_apex(torch.device("cuda"))
    assert "\n" not in str(excinfo.value)


def test_only_recipes_that_learn_by_it_have_the_option() -> None:
    with_apex = set()
    for path in (ROOT / "recipes").glob("*.py"):
        text = path.read_text()
        if issubclass(find_recipe(path.stem).options, SGDOptions):
            with_apex.add(path.stem)
            assert "options.sgd()" in text or "tasks.build_uic(options)" in text, path.name
        assert "options.sgd()" not in text or path.stem in with_apex, path.name
    assert len(with_apex) == 11 and not with_apex & {"simclr_r50", "sslpp_colorization", "sslpp_iic"}


@pytest.mark.skipif(not real_apex(), reason="needs CUDA and NVIDIA's apex")
def test_the_real_one_on_a_gpu_without_a_sync() -> None:
    require_apex(torch.device("cuda"))
    apex_step, torch_step = (train_step(make, "fp16", "cuda", weight_decay=0.1) for make in (fused_sgd, sgd))
    apex_weights, torch_weights = train(apex_step, 6, (0, 3)), train(torch_step, 6, (0, 3))
    assert torch.allclose(apex_weights, torch_weights, rtol=1e-4, atol=1e-5)
    assert float(apex_step.num_skipped) == float(torch_step.num_skipped) == 2.0
    for parameter in apex_step.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    apex_step.optimiser.found_inf = apex_step.optimiser.grad_scale = torch.ones((), device="cuda")  # type: ignore[attr-defined]
    torch.cuda.set_sync_debug_mode("error")
    try:
        apex_step.optimiser.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


STEPS_PER_EPOCH = 7


def of_stage(step: int, num_steps: int) -> Moment:
    return Moment(step, num_steps, 0, 60, 180)


@pytest.mark.parametrize(
    ("epoch", "drops"), [(0, 0), (19, 0), (20, 1), (39, 1), (40, 2), (49, 2), (50, 3), (59, 3)]
)
def test_rate_drops_on_the_first_step_of_its_epoch(epoch: int, drops: int) -> None:
    rate = step_drops(0.01, (20, 20, 10, 10))
    num_steps = 60 * STEPS_PER_EPOCH
    for step in (epoch * STEPS_PER_EPOCH, epoch * STEPS_PER_EPOCH + STEPS_PER_EPOCH - 1):
        assert math.isclose(rate(of_stage(step, num_steps)), 0.01 * 0.1**drops)


def test_intervals_stretch_with_the_stage() -> None:
    rate = step_drops(1.0, (20, 20, 10, 10))
    powers = [round(math.log10(rate(of_stage(step, 180)))) for step in (59, 60, 119, 120, 149, 150)]
    assert powers == [0, -1, -1, -2, -2, -3]


@pytest.mark.parametrize(
    ("schedule", "arguments", "says"),
    [
        *((step_drops, arguments, "above 0") for arguments in ((0.0, (1,)), (0.1, ()), (0.1, (1, 0)))),
        *((warmed_up, (step_drops(0.1, (1,)), *rest), "warm-up")
          for rest in ((-1, 0.1), (10, -0.1), (10, 1.5))),
        (cosine, (0.0,), "above 0"),
        (cosine, (0.1, -1), "0 or more"),
        (linear_decay, (0.0,), "above 0"), (linear_decay, (math.nan,), "above 0"),
        *((inverse_root, arguments, "above 0") for arguments in ((0.0, 0.1), (-1.0, 0.1), (0.1, -1e-9))),
        *((polynomial, arguments, "power")
          for arguments in ((0.0, 0.9, 0.0), (0.1, 0.0, 0.0), (0.1, 0.9, 0.1), (0.1, 1, -1))),
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused(schedule: Any, arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        schedule(*arguments)


def test_a_warm_up_rises_in_a_straight_line_and_then_is_gone() -> None:
    """VISSL's detection in Detectron2: 100 steps from .00002 to .02, and a drop after 17,000 of 25,000."""
    rate = warmed_up(step_drops(0.02, (17, 8)), 100)
    steps = (0, 1, 50, 99, 100, 16_999, 17_000, 24_999)
    expected = (2e-5, 0.02 * 0.01099, 0.02 * 0.5005, 0.02 * 0.99001, 0.02, 0.02, 0.002, 0.002)
    for step, value in zip(steps, expected, strict=True):
        assert math.isclose(rate(of_stage(step, 25_000)), value), step


def test_a_warm_up_of_no_steps_changes_nothing() -> None:
    plain = step_drops(0.1, (3, 1))
    rate = warmed_up(plain, 0)
    assert all(rate(of_stage(step, 8)) == plain(of_stage(step, 8)) for step in range(8))


def of_three_stages(rate: Callable[[Moment], float]) -> list[float]:
    """Return a schedule's rates over stages of 60, 70 and 70 epochs of five steps."""
    return [
        rate(Moment(step, epochs * 5, first, epochs, 200))
        for first, epochs in ((0, 60), (60, 70), (130, 70))
        for step in range(epochs * 5)
    ]


def test_one_cosine_goes_through_all_stages() -> None:
    """PSL: 60, 70 and 70 epochs "with a cosine decay schedule without restart"."""
    rate = cosine(0.3)
    rates = of_three_stages(rate)
    assert len(rates) == 1000
    for step, value in enumerate(rates):
        assert math.isclose(value, 0.15 * (1 + math.cos(math.pi * step / 1000)), abs_tol=1e-12), step
    assert rate(Moment(350, 350, 130, 70, 200)) == pytest.approx(0, abs=1e-12)


def test_warm_up_rises_in_a_line_and_the_cosine_follows_it() -> None:
    rate = cosine(0.3, warmup_epochs=10)
    assert rate(Moment(0, 60, 0, 60, 200)) == 0
    assert rate(Moment(5, 60, 0, 60, 200)) == pytest.approx(0.15)
    assert rate(Moment(10, 60, 0, 60, 200)) == pytest.approx(0.3)
    assert rate(Moment(45, 70, 60, 70, 200)) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.1), (1, 0.0998), (125, 0.075), (250, 0.05), (400, 0.02), (499, 0.0002)]
)
def test_a_line_falls_to_0(epoch: int, expected: float) -> None:
    """UIC, section 4.2: 500 epochs with "0.1 learning rate decaying linearly"."""
    steps = 500 * STEPS_PER_EPOCH
    rate = linear_decay(0.1)(Moment(epoch * STEPS_PER_EPOCH, steps, 0, 500, 500))
    assert rate == pytest.approx(expected, rel=1e-9)


def test_a_line_falls_at_each_step_through_all_stages() -> None:
    rates = of_three_stages(linear_decay(0.1))
    assert rates == pytest.approx([0.1 - 0.0001 * step for step in range(1000)], rel=1e-9)


@pytest.mark.parametrize(
    ("lr", "decay", "step", "expected"),
    [
        (0.01, 1e-7, 0, 0.01),
        (0.01, 1e-7, 450_000, 0.01 / math.sqrt(1.00045)),
        (0.01, 1e-4, 1_000_000, 0.01 / math.sqrt(2)),
        (2.0, 0.5, 3, 1.0),
        (2.0, 0.5, 8, 2 / 3),
        (2.0, 0.0, 8, 2.0),
    ],
)
def test_the_inverse_root_counts_steps(lr: float, decay: float, step: int, expected: float) -> None:
    """DeepCluster's rule does not depend on the stage's length. Expected values are computed by hand."""
    for num_steps in (step + 1, 10 * step + 1):
        rate = inverse_root(lr, decay)(Moment(step, num_steps, 0, 90, 90))
        assert rate == pytest.approx(expected, rel=1e-9)


def test_a_polynomial_falls_to_its_end() -> None:
    """mmsegmentation's schedule: .01 to .0001 over 20,000 steps by a power of .9."""
    rate = polynomial(0.01, 0.9, 1e-4)
    for step, share in ((0, 1.0), (5_000, 0.75**0.9), (10_000, 0.5**0.9), (19_999, 5e-5**0.9)):
        assert math.isclose(rate(of_stage(step, 20_000)), 1e-4 + 0.0099 * share), step
    assert math.isclose(polynomial(1.0, 1.0)(of_stage(3, 4)), 0.25)
