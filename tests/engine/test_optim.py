"""SGD, Adam, LARS and apex equal plain loops and torch; schedules equal their formulas."""

import copy
import importlib.util
import io
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fastpsl.engine.distributed import World
from fastpsl.engine.optim import optimisers
from fastpsl.engine.optim.optimisers import LARS, adam, fused_sgd, lars, require_apex, sgd
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
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule, TrainStep
from fastpsl.models.resnet import ResNet
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tasks.contrastive.simclr import ProjectionHead
from tests.engine.test_stage import VIEWS, Brightness
from tests.engine.tiny import TinyNet, noise_batch
from tests.fake_cuda import fake_cuda
from tests.programs import ROOT


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
    twin = copy.deepcopy(module)
    optimiser = sgd(module.named_parameters(), weight_decay=0.5, nesterov=True, decay_biases=True)
    torchs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
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
    backbone, task, stage = TinyNet(), Brightness(), make_plan("psl", (1, 1, 1))[1]
    module = StageModule(StageBlocks(backbone, stage), task.head(1, 16), task).to(device)
    optimiser = optimiser_of(module.learning_parameters(), **settings)
    result = TrainStep(module, optimiser, VIEWS, precision, World(0, 1, 0, 1, torch.device(device)))
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
    apex_step, torch_step = (
        train_step(make, precision, **({"weight_decay": 0.1} | settings)) for make in (fused_sgd, sgd)
    )
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
        for group in optimiser.param_groups:
            group["lr"] = torch.full((), 0.3, device="cuda")
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
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
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


def test_one_cosine_goes_through_all_stages() -> None:
    """PSL: 60, 70 and 70 epochs "with a cosine decay schedule without restart"."""
    rate = cosine(0.3)
    rates = [
        rate(Moment(epoch * 5 + i, epochs * 5, first, epochs, 200))
        for first, epochs in ((0, 60), (60, 70), (130, 70))
        for epoch in range(epochs)
        for i in range(5)
    ]
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
    rate = linear_decay(0.1)
    rates = [
        rate(Moment(step, epochs * 5, first, epochs, 200))
        for first, epochs in ((0, 60), (60, 70), (130, 70))
        for step in range(epochs * 5)
    ]
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
