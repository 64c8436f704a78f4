"""Comparisons of a machine's kernels and steps with their definitions, for `fastpsl doctor --card` and tests.

Each gives a number of bounds: at most 1 if the two agree.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl.doctor.setup import opened_stage
from fastpsl.engine.gpu import set_cudnn_benchmark
from fastpsl.engine.optim.optimisers import lars
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.device_crops import crop_area, crop_densely
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused import fused_modules, module_for
from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Rotate45, Shift, WarpPair
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise, out_shape

Ops = tuple[Any, ...]
CHANNELS_LAST = torch.channels_last

# The fused views.

# (relative, absolute) of the fused path against the plain one, for the normalised output (x - mean) / std, by
# its dtype. The absolute tolerance is for values in [0, 1]. 1 / std turns it into one of the output, at most
# 4.5 times as large for ImageNet's std and 35.4 times for SobelXY's.
# float32: some ten roundings of 2^-24 on each path, in another order; sums over pixels are in blocks.
# float16: one rounding of the result is 2^-11 of it. The input of a blur or filter is rounded before: the
#   image (2^-12), the taps (2^-11 of each, added up at worst) and the product along one axis (2^-12),
#   together 2^-10 of 1.
# bfloat16: the same halves inside, and one rounding of the result: 2^-8 of it, but Triton's interpreter
#   truncates: 2^-7.
VIEW_BOUNDS = {
    torch.float32: (1e-5, 1.1e-5),
    torch.float16: (2**-11, 2**-10),
    torch.bfloat16: (2**-7, 2**-10),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Channels → mean and std. Two channels are those of SobelXY.
STATISTICS = {1: (MEAN[:1], STD[:1]), 2: ((0.1, -0.2), (SOBEL_XY_STD,) * 2), 3: (MEAN, STD)}
_FLIP, _COLOUR, _GREY = Flip(), ColourDistortion(0.8, 0.8, 0.8, 0.2), Grey(0.2)
_T3: Ops = (_FLIP, _COLOUR, _GREY, GaussianBlur(23, p=0.5), Sobel(0.2))
# Chains of the recipes by the side of their images: each kind of kernel.
CHAINS: dict[str, Callable[[int], Ops]] = {
    "flip": lambda side: (_FLIP,),
    "SimCLR T3": lambda side: _T3,
    "UIC": lambda side: (_FLIP, SobelXY()),
    "UIC, strong": lambda side: (*_T3[:-1], SobelXY()),
    "jigsaw": lambda side: (_FLIP, JigsawTiles(3, side // 3, side // 3 - 5)),
    "turns by 45": lambda side: (Rotate45(),),
    "all turns": lambda side: (AllTurns(4),),
    "SSL++, context": lambda side: (Shift(4), _FLIP, Hole()),
    "SSL++, colorization": lambda side: (Shift(4), _FLIP, Lightness()),
    "SSL++, rotation": lambda side: (Shift(4), _FLIP, AllTurns(4)),
    "SSL++, AET": lambda side: (Shift(4), _FLIP, WarpPair(side)),
    "enlarged": lambda side: (Enlarge(side + 8, side), SobelXY()),
}


def one_by_one(images: Tensor, ops: Sequence[Any], draws: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return what the operations make of the images, one after the other."""
    for op, draw in zip(ops, draws, strict=True):
        images = op(images, draw)
    return images


def close_calls(images: Tensor, ops: Sequence[Any], draws: Sequence[dict[str, Tensor]]) -> Tensor:
    """Return a mask of the result, bool: values that an operation rounds to a byte from near a half."""
    is_close = torch.zeros(one_by_one(images, ops, draws).shape, dtype=torch.bool)
    for i, op in enumerate(ops):
        if isinstance(op, WarpPair | Enlarge):
            exact = 255 * op(one_by_one(images, ops[:i], draws[:i]).float() / 255, draws[i])
            is_close = (exact - exact.floor() - 0.5).abs() < 1e-3
    if any(isinstance(op, SobelXY) for op in ops):
        is_close = F.max_pool2d(is_close.float(), 3, 1, 1).amax(1, keepdim=True).expand(-1, 2, -1, -1) > 0
    return is_close


def views_apart(actual: Tensor, expected: Tensor, is_close: Tensor | None = None) -> float:
    """Return the largest difference of normalised views in units of `VIEW_BOUNDS`; NaN is infinitely far.

    Where `is_close`, a byte may be rounded to the next one, so that the value may be off by a level.
    """
    relative, absolute = VIEW_BOUNDS[actual.dtype]
    scale = 1 / SOBEL_XY_STD if actual.shape[1] == 2 else 4.5
    bound = absolute * scale + relative * expected.double().abs()
    if is_close is not None:
        # A gradient has at most a sixth of a byte.
        level = (0.5 if actual.shape[1] == 2 else 1) * 1.2 / (255 * min(STATISTICS[actual.shape[1]][1]))
        bound = torch.where(is_close, 2**-7 * expected.double().abs() + level, bound)
    apart = (actual.double() - expected.double()).abs() / bound
    return float(apart.nan_to_num(torch.inf).max()) if apart.numel() else 0.0


def chain_apart(name: str, side: int, dtype: torch.dtype, device: torch.device) -> float | None:
    """Return how far a fused chain is from its operations on drawn images; None if no module does it."""
    ops, modules = CHAINS[name](side), fused_modules(device)[0]
    module = module_for(modules, ops)
    if module is None:
        return None
    random = np.random.default_rng(side)
    images = torch.from_numpy(random.integers(0, 256, (4, 3, side, side), np.uint8))
    images[:, :, ::5] = images[:, :1, ::5]  # grey, where hue has no angle
    draws = [
        {key: torch.from_numpy(values) for key, values in op.draw(Keys(5, 1, np.arange(4))).items()}
        for op in ops
    ]
    shape = out_shape(ops, tuple(images.shape))
    mean, std = STATISTICS[shape[1]]
    expected = normalise(one_by_one(images, ops, draws), mean, std, torch.float32)
    out = torch.full(shape, torch.nan, dtype=dtype, device=device).contiguous(memory_format=CHANNELS_LAST)
    on_device = [{key: values.to(device) for key, values in draw.items()} for draw in draws]
    module.run(images.contiguous(memory_format=CHANNELS_LAST).to(device), ops, on_device, mean, std, out)
    return views_apart(out.cpu(), expected, close_calls(images, ops, draws))


# Crops of whole batches, and the optimiser that has kernels.

# Of bytes that may be on the other side of a half: rounding to half precision moves them by 0.005.
MOST_DIFFER = 0.01


def crops_apart(side: int, device: torch.device) -> dict[str, float]:
    """Return how far crops by kernels are from those by torch on the CPU: by areas, and isotropic windows."""
    from fastpsl.kernels.fused_cuda import area, isotropic

    random = np.random.default_rng(side)
    images = torch.from_numpy(random.integers(0, 256, (4, side, side + 4, 3), np.uint8))
    places = [[0, 0, side, side, 0], [1, 2, side // 2, side // 3, 0], [5, 3, 9, 11, 0], [0, 4, 17, side, 0]]
    boxes = torch.tensor(places)
    found = area.crop(images.to(device), torch.arange(4, device=device), boxes.int().to(device), 16)
    by_area = 0.0 if torch.equal(found.cpu(), crop_area(images, boxes, 16)) else float("inf")
    # A third of the image in its middle, which leaves the margin that the kernel reads.
    boxes = torch.tensor([[side // 3] * 4 + [base] for base in (ISOTROPIC, DIAGONAL)])
    windows = isotropic.crop(images[:2].to(device), boxes.to(device), 16).cpu().int()
    apart = (windows - crop_densely(images[:2], boxes, 16)).abs()
    differ = float((apart > 0).float().mean()) / MOST_DIFFER if apart.max() <= 1 else float("inf")
    return {f"by area, {side} px": by_area, f"isotropic, {side} px": differ}


def lars_apart(device: torch.device) -> float:
    """Return how far steps of LARS are from those of torch's operations on the CPU, in bounds of 1e-5."""
    ends = []
    for place in (torch.device("cpu"), device):
        random = torch.Generator().manual_seed(0)
        shapes = {"conv": (64, 32, 3, 3), "linear": (65, 129), "one": (1, 3), "bn.bias": (65,)}
        drawn = {name: torch.randn(shape, generator=random).to(place) for name, shape in shapes.items()}
        named = {name: nn.Parameter(values) for name, values in drawn.items()}
        optimiser = lars(named.items(), weight_decay=0.01)
        for rate in (0.5, 1.0, 0.1):
            for group in optimiser.param_groups:
                group["lr"] = rate
            for parameter in named.values():
                parameter.grad = torch.randn(parameter.shape, generator=random).to(place)
            optimiser.step()
        ends.append(torch.cat([parameter.detach().double().cpu().flatten() for parameter in named.values()]))
    return near(ends[1], ends[0], 1e-5)


# The fused norms.

EPS, Z_EPS, MOMENTUM = 1e-5, 1e-3, 0.1
# Bounds relative to the largest value. float32 has some ten operations and sums in another order. Halves have
# one rounding of the result, 2^-11 or 2^-8, and one of the sum before it. Triton's interpreter truncates
# bfloat16, 2^-7.
NORM_BOUNDS = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-6}
NORM_KINDS = ("alone", "sum", "both")


class NormCase(NamedTuple):
    """A case of x and z.

    Attributes:
        leaves: x, its weight and bias, and the same of z.
        running: x's running statistics.
        gradients: Two gradients of the result.
    """

    leaves: list[Tensor]
    running: tuple[Tensor, Tensor, Tensor]
    gradients: list[Tensor]


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device) -> Tensor:
    """Return normal noise, channels-last if it has four dimensions."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if len(shape) == 4:
        values = values.contiguous(memory_format=CHANNELS_LAST)
    return values.to(device)


def norm_case(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> NormCase:
    """Return a case of maps of a shape [B, C, H, W]."""
    maps = [noise(*shape, dtype=dtype, seed=seed, device=device) for seed in range(4)]
    maps[0] = (3 * maps[0] + 1).to(dtype)
    affine = [noise(shape[1], seed=seed, device=device) for seed in range(4, 8)]
    if shape[1] > 1:
        affine[0][0] = affine[1][0] = 0  # the ReLU gets a 0, and lets no gradient through
    leaves = [each.requires_grad_() for each in (maps[0], *affine[:2], maps[1], *affine[2:])]
    mean, var = noise(shape[1], device=device), noise(shape[1], device=device).exp()
    return NormCase(leaves, (mean, var, torch.zeros((), dtype=torch.int64, device=device)), maps[2:])


def by_kernels(case: NormCase, kind: str, relu: bool, fork: bool) -> tuple[Tensor, ...]:
    """Return the results of the fused norm: two if it is used twice."""
    from fastpsl.kernels.fused_cuda.batch_norm import Norm, Operand, batch_norm

    x, weight, bias, z, z_weight, z_bias = case.leaves
    other = {"alone": None, "sum": z, "both": Operand(z, z_weight, z_bias, Norm(Z_EPS))}[kind]
    running_mean, running_var, num_batches = case.running
    norm = Norm(EPS, MOMENTUM, running_mean, running_var, num_batches)
    result = batch_norm(Operand(x, weight, bias, norm), other, relu=relu, fork=fork)
    return result if isinstance(result, tuple) else (result,)


def by_torch(case: NormCase, kind: str, relu: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the result, its leaves and the running mean and variance, in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in case.leaves]
    running = [each.double() for each in case.running[:2]]
    x, weight, bias, z, z_weight, z_bias = leaves
    y = F.batch_norm(x, running[0], running[1], weight, bias, True, MOMENTUM, EPS)
    if kind != "alone":
        y = y + (z if kind == "sum" else F.batch_norm(z, None, None, z_weight, z_bias, True, 0.0, Z_EPS))
    return F.relu(y) if relu else y, leaves, running


def near(actual: Tensor | None, expected: Tensor | None, bound: float) -> float:
    """Return the largest difference relative to the largest value, over the bound; NaN is infinitely far."""
    if actual is None or expected is None:
        return 0.0 if actual is expected else float("inf")
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    apart = (actual.double() - expected).abs().nan_to_num(torch.inf).max()
    return float(apart / expected.abs().max().clamp(min=1.0)) / bound


def norms_apart(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    fork: bool,
    *,
    kind: str,
    relu: bool = True,
) -> float:
    """Return how far a fused norm is from torch's in float64: results, gradients, running statistics."""
    case = norm_case(shape, dtype, device)
    expected, leaves, running = by_torch(case, kind, relu)
    results = by_kernels(case, kind, relu, fork)
    gradients = case.gradients[: len(results)]
    # The kernel reads the sum as another op that adds both would have rounded it.
    expected.backward(torch.stack(gradients).sum(0).double())
    torch.autograd.backward(results, gradients)
    assert len(results) == (2 if fork else 1) and all(result.dtype == dtype for result in results)
    assert all(result.is_contiguous(memory_format=CHANNELS_LAST) for result in results)
    bound = NORM_BOUNDS[dtype]
    apart = [near(result.detach(), expected.detach(), bound) for result in results]
    apart += _training_apart(case.leaves, leaves, case.running, running, bound)
    return max(*apart, 0.0 if int(case.running[2]) == 1 else float("inf"))


def _training_apart(
    leaves: Sequence[Tensor], wanted: Sequence[Tensor], running: Sequence[Tensor],
    wanted_running: Sequence[Tensor], bound: float,
) -> list[float]:  # fmt: skip
    """Return how far gradients, running means and running variances are apart."""
    # Gradients of weights are sums of some hundred independent roundings.
    pairs = zip(leaves, wanted, strict=True)
    apart = [near(leaf.grad, of.grad, (10 if leaf.dim() == 1 else 2) * bound) for leaf, of in pairs]
    return apart + [near(running[i], wanted_running[i], 1e-6) for i in range(2)]


# Of a max pool: the size of its windows, their stride and padding.
Pool = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
STEM: Pool = ((3, 3), (2, 2), (1, 1))


def pooled_apart(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    fork: bool,
    *,
    pool: Pool = STEM,
    relu: bool = True,
) -> float:
    """Return how far a norm with a max pool behind it is from torch's, for maps with many equal maxima.

    Which of them is the maximum follows from rounded values. So torch finds the places in the kernel's own
    unpooled map, and float64 takes the values there.
    """
    from fastpsl.kernels.fused_cuda.batch_norm import Norm, Operand, batch_norm
    from fastpsl.kernels.fused_cuda.pool_windows import Windows

    drawn = partial(noise, device=device)
    x = drawn(*shape).round().to(dtype).requires_grad_()
    weight, bias = (drawn(shape[1], seed=seed) for seed in (1, 2))
    weight[0] = bias[0] = 0  # the ReLU gets zeros, and lets no gradient through
    if shape[1] > 1:
        weight[1], bias[1] = -0.01, 30  # halves round different values to equal ones
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]
    count = torch.zeros((), dtype=torch.int64, device=device)
    running = drawn(shape[1]), drawn(shape[1]).exp(), count
    exact_running = [each.double() for each in running[:2]]
    of = Operand(x, weight, bias, Norm(EPS, MOMENTUM, *running))
    result = batch_norm(of, relu=relu, fork=fork, pool=Windows(*pool))
    results = result if isinstance(result, tuple) else (result,)
    unpooled = batch_norm(Operand(x, weight, bias, Norm(EPS)), relu=relu)
    assert isinstance(unpooled, Tensor) and len(results) == (2 if fork else 1)
    assert all(each.is_contiguous(memory_format=CHANNELS_LAST) for each in results)
    pooled, places = F.max_pool2d(unpooled.detach().float(), *pool, return_indices=True)
    are_equal = all(each.dtype == dtype and torch.equal(each, pooled.to(dtype)) for each in results)

    gradients = [drawn(*pooled.shape, dtype=dtype, seed=seed) for seed in (3, 4)][: len(results)]
    torch.autograd.backward(results, gradients)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    mean, var = exact_running
    y = F.batch_norm(exact[0], mean, var, exact[1], exact[2], True, MOMENTUM, EPS)
    y = (F.relu(y) if relu else y).flatten(2).gather(2, places.flatten(2)).view(pooled.shape)
    y.backward(torch.stack(gradients).double().sum(0))
    apart = _training_apart(leaves, exact, running, exact_running, NORM_BOUNDS[dtype])
    return max(*apart, 0.0 if are_equal and int(count) == 1 else float("inf"))


# The steps.

# fp16 has 11 bits. Rounding of gradients (2^-11) and other orders of sums change weights after three steps by
# up to 2 % of the largest change of a weight. A missing step or a gradient that is added twice changes them
# by 30 % and more.
STEP_BOUNDS = {"fp32": 1e-3, "fp16": 0.02}
_RATES = (0.02,) * 3 + (0.01,) * 3  # of the steps; the fourth has another
# Options of the ways in which a step may run, by the type of the device.
WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {"folded": ("--fold-frozen", "on")},
    "cuda": {
        "fused": ("--compile", "fused"),
        "captured": ("--compile", "fused", "--graph", "on"),
        "folded": ("--compile", "fused", "--graph", "on", "--fold-frozen", "on"),
    },
}
_EAGER = {"--compile": "off", "--graph": "off", "--fold-frozen": "off"}
# Recipes, whose optimisers are SGD and LARS.
STEP_RECIPES = {"rotation": ("--batch-size", "4", "--short-side", "73"), "simclr": ("--batch-size", "8")}


@contextmanager
def exact() -> Iterator[None]:
    """Compute in plain float32, by the same convolutions each time."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    set_cudnn_benchmark(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        set_cudnn_benchmark(True)


class Trained(NamedTuple):
    """The end of a few steps of stage S2."""

    before: Tensor  # weights and running statistics, float64
    after: Tensor
    resumed: Tensor  # the same after the last two steps, made again from a checkpoint
    is_kept: bool  # whether a step with gradients that are not finite changed nothing
    losses: list[float]


def small_step(way: Sequence[str], precision: str) -> list[str]:
    """Return the arguments of a small network whose steps run in a way of `WAYS`, or eager without one."""
    given = {"--backbone": "resnet18", "--size-px": "64", "--precision": precision} | _EAGER
    given |= dict(zip(way[::2], way[1::2], strict=True))
    return [*itertools.chain(*given.items())]


def trained(recipe: str, precision: str, way: Sequence[str]) -> Trained:
    """Train from one seed: three steps, three at another rate, one that must change nothing, and two more."""
    with opened_stage(recipe, [*small_step(way, precision), *STEP_RECIPES[recipe]], "S2") as bench:
        with bench.loader("synthetic") as loader:
            batches = list(itertools.islice(loader.epoch(0), len(_RATES) + 3))
        step, backbone = bench.train_step, bench.experiment.backbone
        tensors = lambda: [*backbone.state_dict().values(), *step.module.head.state_dict().values()]
        flat = lambda: torch.cat([value.flatten().double().cpu() for value in tensors()])
        before, losses = flat(), list[float]()
        for batch, rate in zip(batches, _RATES, strict=False):
            values = step.step([batch], rate).values[0]
            losses.append(float(values[0] / values[1]))
        kept, scaler = flat(), step.scaler.state_dict()
        step.scaler.load_state_dict(scaler | {"scale": float("inf")})
        step.step([batches[-3]], _RATES[-1])
        step.scaler.load_state_dict(scaler)
        is_kept = bool(torch.equal(kept, flat()))
        state, weights = copy.deepcopy(step.state_dict()), copy.deepcopy(backbone.state_dict())
        ends = []
        for is_resumed in (False, True):
            if is_resumed:
                backbone.load_state_dict(weights)
                step.load_state_dict(state)
            for batch in batches[-2:]:
                step.step([batch], _RATES[-1])
            ends.append(flat())
    return Trained(before, ends[0], ends[1], is_kept, losses)


def steps_apart(one: Trained, other: Trained, precision: str) -> float:
    """Return the largest difference of weights after the steps, in units of `STEP_BOUNDS`."""
    largest = (one.after - one.before).abs().max()
    return float((one.after - other.after).abs().max() / largest) / STEP_BOUNDS[precision]
