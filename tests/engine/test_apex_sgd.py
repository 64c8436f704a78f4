"""--apex with packages that imitate apex, and with the real one if apex and CUDA are available."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine.distributed import World
from fastpsl.engine.optim.optimisers import fused_sgd, require_apex, sgd
from fastpsl.engine.options import SGDOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule, TrainStep
from fastpsl.scripts.recipe_files import find_recipe
from tests.engine.test_stage import VIEWS, Brightness
from tests.engine.tiny import TinyNet, noise_batch
from tests.programs import ROOT

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
        result.scaler.load_state_dict(
            result.scaler.state_dict() | {"scale": 256.0}
        )  # 65,536 overflows by itself
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
    buffers = [
        uninterrupted.optimiser.state[p]["momentum_buffer"]
        for _, p in uninterrupted.module.learning_parameters()
    ]
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
