"""Blocks with fused BatchNorms train like plain ones, share their state, and leave special cases to torch."""

import copy
import gc
import weakref
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.resnet import BasicBlock
from typing_extensions import override

from fastpsl.engine import fused_norms
from fastpsl.engine.fused_norms import FusedNorm, fused, make_fused_runner
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import run_blocks
from fastpsl.kernels.fused_cuda import batch_norm as kernels
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.models.factory import make_backbone
from fastpsl.models.fold_batchnorm import folded
from fastpsl.tasks.contrastive.moco import KeyEncoder
from tests.engine.steps import VIEWS
from tests.engine.test_step_modes import make_train_step, values
from tests.engine.tiny import TinyNet, noise_batch
from tests.models.test_fold_batchnorm import Branches, as_after_training
from tests.tasks.test_moco import query
from tests.warm import results_of_ranks

pytest.importorskip("triton", reason="triton is not installed")

Calls = list[tuple[str, bool, bool]]


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use large tiles, because the interpreter's time grows with the number of programs."""
    monkeypatch.setattr(kernels, "CHANNELS", 512)
    monkeypatch.setattr(kernels, "ROWS", 256)
    monkeypatch.setattr(kernels, "MOMENTS_ROWS", 256)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Record the kernels' calls: what is added, or a pool, whether a ReLU follows, whether two use it."""
    records = []

    def record_call(of: Any, z: Any = None, *, relu: bool, fork: bool, pool: Any) -> Any:
        kind = "a pool" if pool else "nothing" if z is None else "a map" if isinstance(z, Tensor) else "both"
        records.append((kind, relu, fork))
        return kernels.batch_norm(of, z, relu=relu, fork=fork, pool=pool)

    monkeypatch.setattr(fused_norms, "batch_norm", record_call)
    return records


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return make_backbone(name).to(memory_format=torch.channels_last)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def apart(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


@pytest.mark.slow
def test_a_whole_resnet_18_is_the_eager_one(calls: Calls) -> None:
    """Compared to float64 through 20 BatchNorms, errors in float32 are like those of eager steps."""
    fused_net = network("resnet18")
    eager, exact = copy.deepcopy(fused_net), copy.deepcopy(fused_net).double()
    images, keys = noise(4, 3, 64, 64), list(fused_net.state_dict())
    results = []
    for net, runner in ((fused_net, make_fused_runner()), (eager, run_blocks), (exact, run_blocks)):
        outputs = runner(net.blocks(), images.to(next(net.parameters()).dtype), True)  # type: ignore[operator]
        sum(each.square().mean() for each in outputs).backward()  # type: ignore[union-attr]
        results.append(outputs)
    assert list(fused_net.state_dict()) == keys and len(calls) == 17
    assert [calls.count(kind) for kind in (("both", True, True), ("a map", True, True))] == [3, 1]
    assert [calls.count(kind) for kind in (("a map", True, False), ("nothing", True, False))] == [4, 9]
    for value, exact_value in zip(results[0], results[2], strict=True):
        assert value.is_contiguous(memory_format=torch.channels_last) and apart(value, exact_value) < 1e-5
    for (name, value), eager_value, exact_value in zip(
        fused_net.named_parameters(), eager.parameters(), exact.parameters(), strict=True
    ):
        assert value.grad is not None and eager_value.grad is not None and exact_value.grad is not None
        bound = max(2e-5, 3 * apart(eager_value.grad, exact_value.grad))
        assert apart(value.grad, exact_value.grad) < bound, name
    for (name, value), exact_value in zip(fused_net.named_buffers(), exact.buffers(), strict=True):
        assert torch.allclose(value.double(), exact_value.double(), atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "block", "expected"),
    [
        # conv1, and three bottlenecks. The first has a normalised shortcut, and two results are used twice.
        ("resnet50", 0, {("nothing", True, False): 1}),
        ("resnet50", 1, {("nothing", True, False): 6, ("both", True, True): 1,
                         ("a map", True, True): 1, ("a map", True, False): 1}),
        ("vgg16", 2, {("nothing", True, False): 3}),
        ("nin4", 0, {("nothing", True, False): 2, ("a pool", True, False): 1}),
        ("alexnet", 1, {("nothing", True, False): 1}),
    ],
)  # fmt: skip
def test_what_is_joined(name: str, block: int, expected: dict[Any, int], calls: Calls) -> None:
    part = network(name).blocks()[block]  # type: ignore[operator]
    inputs = next(p.shape[1] for p in part.parameters() if p.dim() == 4)
    view = fused(part)
    view(noise(2, inputs, 8, 8))
    assert {kind: calls.count(kind) for kind in calls} == expected
    left = {type(module) for module in view.modules() if not isinstance(module, FusedNorm)}
    assert nn.ReLU not in left


def test_blocks_in_sequence_are_fused_across_their_borders(calls: Calls) -> None:
    """B1's BatchNorm takes B2's pool, and both users of B2's result add their gradients in B2's kernel."""
    blocks, images = network("resnet18").blocks()[:3], noise(2, 3, 40, 48)  # type: ignore[operator]
    results = []
    for runner, dtype in ((make_fused_runner(), torch.float32), (run_blocks, torch.float64)):
        chain = copy.deepcopy(nn.ModuleList(blocks)).to(dtype)
        (result,) = runner(list(chain), images.to(dtype))
        result.square().mean().backward()
        results.append([result, *(parameter.grad for parameter in chain.parameters())])
    assert [calls.count(("a pool", True, True)), calls.count(("a map", True, True))] == [1, 2]
    assert all(apart(a, b) < 1e-4 for a, b in zip(*results, strict=True))
    calls.clear()
    run = make_fused_runner()
    assert len(run(blocks, images, True)) == 3
    assert ("a pool", True, True) not in calls and calls[0] == ("nothing", True, False)


class OpsOnMaps(TorchDispatchMode):
    """A mode that records torch's operations on tensors with more than one position."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
        if any(each.dim() == 4 and each.shape[-1] > 1 for each in tensors):
            self.counts[func.overloadpacket.__name__] += 1
        return result


def test_torch_computes_nothing_but_convolutions_between_blocks() -> None:
    """There is no sum of gradients, pool or copy to another layout, but one from a mean's gradient."""
    blocks, images = network("resnet18").blocks()[:3], noise(2, 3, 40, 48)  # type: ignore[operator]
    with OpsOnMaps() as ops:
        (result,) = make_fused_runner()(blocks, images)
        mean_of_positions(result).square().sum().backward()
    others = ("add", "add_", "div", "relu", "copy_", "max_pool2d_with_indices", "native_batch_norm")
    assert not any(ops.counts[name] for name in others) and ops.counts["clone"] == 1
    assert ops.counts["convolution"] == ops.counts["convolution_backward"] == 10


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the calls of the kernel that pools by itself, or with a bias."""
    records = []

    def record_call(x: Tensor, windows: Any, bias: Any = None, relu: bool = False) -> Tensor:
        records.append("alone" if bias is None else "bias")
        return kernels.max_pool(x, windows, bias, relu)

    monkeypatch.setattr(fused_norms, "max_pool", record_call)
    return records


def test_in_eval_mode_only_the_pool_is_a_kernel(calls: Calls, pools: list[str]) -> None:
    block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).eval()
    images = noise(2, 8, 7, 9).requires_grad_()
    assert torch.equal(fused(block)(images), block(images)) and not pools
    with torch.no_grad():
        assert torch.equal(fused(block)(images), block(images)) and pools == ["alone"]
    assert not calls


@pytest.mark.parametrize(
    ("pool", "is_fused"),
    [
        (nn.MaxPool2d(2), True),
        (nn.MaxPool2d((3, 2), (2, 2), (1, 0)), True),
        (nn.MaxPool2d(4, 2), False),
        (nn.MaxPool2d(3, 1, 1), False),
        (nn.MaxPool2d(3, 2, ceil_mode=True), False),
        (nn.MaxPool2d(2, dilation=2), False),
    ],
)
def test_other_pools_are_torchs(pool: nn.MaxPool2d, is_fused: bool, calls: Calls, pools: list[str]) -> None:
    """A pool that nothing precedes has a kernel where it needs no gradient."""
    block, images = nn.Sequential(pool, nn.BatchNorm2d(8), copy.deepcopy(pool)), noise(2, 8, 12, 12)
    expected = copy.deepcopy(block)(images)
    assert apart(fused(block)(images), expected) < 1e-6
    assert calls == [("a pool" if is_fused else "nothing", False, False)]
    assert pools == ["alone"] * is_fused


def test_a_map_smaller_than_a_window_is_torchs_error() -> None:
    with pytest.raises(RuntimeError, match="too small"):
        fused(nn.Sequential(nn.BatchNorm2d(8), nn.MaxPool2d(2)))(noise(2, 8, 1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_folded_blocks_pool_by_a_kernel(dtype: torch.dtype, pools: list[str]) -> None:
    """The convolution before it runs without its bias."""
    blocks = as_after_training(network("resnet18")).blocks()[:2]  # type: ignore[operator]
    copies, images = [folded(block, dtype) for block in blocks], noise(1, 3, 33, 40).to(dtype)
    with torch.no_grad():
        (result,) = make_fused_runner()(copies, images)
        (expected,) = run_blocks(copies, images)
    assert pools == ["bias"] and result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert apart(result, expected) < (1e-6 if dtype == torch.float32 else 2e-3)


def test_running_statistics_are_used_for_both_terms_of_a_sum() -> None:
    """In eval mode torch computes relu(norm(x) + z_norm(z)), without the kernels."""
    torch.manual_seed(0)
    norm, z_norm = nn.BatchNorm2d(3, eps=0.1), nn.BatchNorm2d(3, eps=0.5)
    for part in (norm, z_norm):
        for value in (*part.parameters(), part.running_mean, part.running_var):
            assert value is not None
            nn.init.uniform_(value, 0.5, 2.0)
    x, z = noise(2, 3, 4, 4), noise(2, 3, 4, 4)
    found = FusedNorm(norm, z_norm, relu=True).eval()(x, z)
    terms = [
        (t - part.running_mean.view(1, 3, 1, 1)) / (part.running_var.view(1, 3, 1, 1) + part.eps).sqrt()  # type: ignore[union-attr]
        * part.weight.view(1, 3, 1, 1) + part.bias.view(1, 3, 1, 1)
        for t, part in ((x, norm), (z, z_norm))
    ]  # fmt: skip
    torch.testing.assert_close(found, (terms[0] + terms[1]).clamp(min=0))


def test_epsilon_and_momentum_are_the_batchnorms(calls: Calls) -> None:
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(8, eps=0.5, momentum=0.3), noise(4, 8, 4, 4)
    expected = copy.deepcopy(norm)
    torch.testing.assert_close(FusedNorm(norm)(x), expected(x), rtol=1e-4, atol=1e-5)
    assert calls == [("nothing", False, False)]
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)


class Awkward(nn.Module):
    """A block with BatchNorms that must not be fused with what follows.

    One result has two users before the ReLU, one BatchNorm has no ReLU, one is added to itself, and one has
    no weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4, affine=i < 4) for i in range(5))
        self.relu = nn.ReLU(inplace=True)

    @override
    def forward(self, x: Tensor) -> Tensor:
        a = self.norms[0](x)
        b = self.relu(a + 0.5) + a
        c = self.norms[1](b)
        d = self.norms[2](c)
        return self.relu(d + d) + self.relu(self.norms[3](c) + 2 * x) + self.norms[4](x)  # type: ignore[no-any-return]


def test_what_is_not_joined_stays_right(calls: Calls) -> None:
    block = Awkward()
    images = noise(3, 4, 5, 5)
    expected = copy.deepcopy(block)(images)
    assert apart(fused(block)(images), expected) < 1e-6
    plain = ("nothing", False, False)
    assert calls == [plain, ("nothing", False, True), plain, ("a map", True, False)]


class Pooled(nn.Module):
    """A block that adds one value per channel to all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pool, self.relu = nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.ReLU()

    @override
    def forward(self, images: Tensor) -> Tensor:
        activated: Tensor = self.relu(self.norm(images) + self.pool(images))
        return activated


def test_a_sum_that_broadcasts_is_torchs(calls: Calls) -> None:
    block, images = Pooled(), noise(3, 8, 5, 5)
    expected = copy.deepcopy(block)(images)
    assert torch.equal(fused(block)(images), expected) and not calls


def test_no_block_outlives_its_last_user() -> None:
    norms = [nn.Sequential(nn.BatchNorm2d(8)) for _ in range(2)]
    run, blocks = make_fused_runner(), [nn.Sequential(nn.ReLU()), *norms, nn.Sequential(nn.ReLU())]
    for every in (False, True):
        run(blocks, noise(2, 8, 3, 3), every)
    left = [weakref.ref(block) for block in blocks]
    norms.clear()
    blocks.clear()
    gc.collect()
    assert [each() for each in left] == [None] * 4


def test_the_block_is_left_as_it_is_and_shared() -> None:
    block = network("resnet18").blocks()[2]  # type: ignore[operator]
    before, names = str(block), [name for name, _ in block.named_modules()]
    view = fused(block)
    assert str(block) == before and [name for name, _ in block.named_modules()] == names
    assert {id(p) for p in view.parameters()} == {id(p) for p in block.parameters()}
    assert {id(b) for b in view.buffers()} == {id(b) for b in block.buffers()}
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    assert fused(plain) is plain


def test_batchnorms_of_another_library_are_refused() -> None:
    class BatchNormAndReLU(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="BatchNormAndReLU may do more than torch's BatchNorm does"):
        fused(nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAndReLU(3)))


@torch.no_grad()
def test_a_stage_of_timms_resnet_is_the_eager_one(calls: Calls) -> None:
    pytest.importorskip("timm")
    block = network("timm/resnet10t").blocks()[1]  # type: ignore[operator]
    images = noise(2, 64, 6, 6)
    expected = copy.deepcopy(block)(images)
    assert apart(fused(block)(images), expected) < 1e-5 and len(calls) >= 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_learn_what_eager_ones_do(accumulate: int, calls: Calls) -> None:
    """Train S2 of a small network, with validation passes by torch. Tolerance: 1e-4 of the largest change."""
    stage = make_plan("psl", (1, 1, 1))[1]
    start, results = values(make_train_step(stage)), []
    for runner in (None, make_fused_runner()):
        train_step = make_train_step(stage)
        train_step.module.blocks.runner = runner or train_step.module.blocks.runner
        for seed in range(2):
            train_step.step([noise_batch(VIEWS, 4, seed)] * accumulate, 0.1, accumulate)
            num_calls = len(calls)
            train_step.evaluate([noise_batch(VIEWS, 3)], VIEWS, lambda: False)
            assert len(calls) == num_calls
        results.append(values(train_step))
    # Three blocks learn. The frozen one normalises by its running statistics, without the kernels.
    assert calls == [("nothing", True, False)] * 3 * 2 * accumulate
    changed = (results[0] - start).abs().max()
    assert changed > 0.01 and (results[0] - results[1]).abs().max() < 1e-4 * changed


def test_keys_are_the_same_and_move_nothing(calls: Calls) -> None:
    _, blocks, head, images = query()
    encoder = KeyEncoder(blocks, head, 0.9)
    expected = encoder(images, len(images))
    blocks.runner = make_fused_runner()
    keys = encoder(images, len(images))
    assert len(calls) == 3 and torch.allclose(keys, expected, atol=1e-5) and not keys.requires_grad
    # A copy runs its own blocks.
    other = copy.deepcopy(blocks)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(other(images), blocks(images))


def test_no_value_and_one_are_torchs() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    view, norm = fused(block), block[1]
    result = view(noise(0, 3, 2, 2))
    result.sum().backward()
    assert result.shape == (0, 4, 2, 2) and not norm.weight.grad.any()  # type: ignore[union-attr, operator]
    assert torch.equal(norm.running_mean, torch.zeros(4)) and int(norm.num_batches_tracked) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        view(noise(1, 3, 1, 1))


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.fx cannot follow") as excinfo:
        fused(nn.Sequential(nn.BatchNorm2d(3), Branches()))
    assert "\n" not in str(excinfo.value)


def test_a_stage_by_autocast_is_as_near_as_eager() -> None:
    """Compares bfloat16 in a network of three blocks to float32."""
    net, images = TinyNet().to(memory_format=torch.channels_last), noise(4, 3, 32, 32)
    results = []
    half = torch.bfloat16
    for runner, dtype in ((run_blocks, None), (run_blocks, half), (make_fused_runner(), half)):
        clone = copy.deepcopy(net)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            result = runner(clone.blocks()[:3], images)[-1]
        result.float().square().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in clone.parameters() if p.grad is not None]))
    eager_error, fused_error = (apart(each, results[0]) for each in results[1:])
    # The interpreter truncates to bfloat16, which doubles the rounding error and biases it.
    assert eager_error < 0.1 and fused_error < 4 * eager_error


def ranks_network() -> nn.Module:
    """Build a stem with a pool and two residual blocks, with a normalised shortcut and with a plain one."""
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
    stem = nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    net = nn.Sequential(*stem, BasicBlock(8, 16, downsample=shortcut), BasicBlock(16, 16))
    return net.to(memory_format=torch.channels_last)


def of_a_rank(images: Tensor, rank: int, num_ranks: int) -> list[Tensor]:
    """Return the result, gradients and statistics for a rank's images; a single rank has BatchNorm."""
    net = ranks_network()
    if num_ranks > 1:
        net, images = nn.SyncBatchNorm.convert_sync_batchnorm(net), images.split([2, 3])[rank]
    inputs = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    result = fused(net)(inputs)
    result.square().sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    return [result.detach(), inputs.grad, *gradients, *net.buffers()]  # type: ignore[list-item]


def test_two_ranks_have_statistics_together(tmp_path: Path) -> None:
    """Ranks with 2 and 3 images get what one process gets for all 5. Gradients add up."""
    images = torch.randn(5, 8, 7, 8)
    ranks = results_of_ranks(partial(of_a_rank, images), 2, tmp_path)
    alone = of_a_rank(images, 0, 1)
    num_parameters = len(list(ranks_network().parameters()))
    for number, (first, second, one) in enumerate(zip(*ranks, alone, strict=True)):
        if number < 2:
            assert apart(torch.cat([first, second]), one) < 1e-5
        elif number < 2 + num_parameters:
            assert apart(first + second, one) < 1e-4, number
        else:
            assert torch.equal(first, second) and torch.allclose(first.float(), one.float(), atol=1e-6)
