"""Views of blocks with each BatchNorm fused with the sum, ReLU and max pool after it (`--compile fused`)."""

import operator
from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.engine.stage_blocks import Runner, run_blocks
from fastpsl.kernels.fused_cuda.batch_norm import DTYPES, Norm, Operand, batch_norm, max_pool
from fastpsl.kernels.fused_cuda.pool_windows import MAX_PLACES, Windows
from fastpsl.models.fold_batchnorm import ConvReLU, foreign_batchnorm


class FusedPool(nn.Module):
    """A max pool by a kernel, with the bias and the ReLU of a folded convolution before it.

    `joined` is that convolution with its ReLU, or None. torch computes what needs a gradient, and what it
    rejects or treats as a special case.
    """

    def __init__(self, pool: nn.MaxPool2d, windows: Windows, joined: ConvReLU | None = None):
        super().__init__()
        self.pool, self.windows, self.joined = pool, windows, joined

    def fits(self, x: Tensor) -> bool:
        """Return whether the kernels pool a map like x."""
        is_map = x.dim() == 4 and x.dtype in DTYPES and x.numel() > 0
        return is_map and min(self.windows.pooled_size(x)) > 0

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not (x.requires_grad and torch.is_grad_enabled()):
            y, bias = x, None
            if self.joined is not None:
                conv = self.joined.conv
                y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
                bias = conv.bias
            if self.fits(y):
                return max_pool(y, self.windows, bias, relu=self.joined is not None)
        return self.pool(x if self.joined is None else self.joined(x))


class FusedNorm(nn.Module):
    """A BatchNorm fused with its successors: relu(norm(x) + z), with z_norm(z) for z, or without z or ReLU.

    Without z, a max pool may follow.

    It holds the block's own BatchNorms. The kernels run if these normalise by batch statistics, as in
    training. Otherwise torch runs one operation after the other. torch also handles what it rejects or treats
    as a special case: one value or none per channel, and a z of another shape. `fork` is whether to return
    the result twice (see `batch_norm`).
    """

    def __init__(self, norm: _BatchNorm, z_norm: _BatchNorm | None = None, relu: bool = False):
        super().__init__()
        self.norm, self.z_norm, self.relu, self.fork = norm, z_norm, relu, False
        self.pool: FusedPool | None = None

    @override
    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        norms = [self.norm] if self.z_norm is None else [self.norm, self.z_norm]
        pool = self.pool
        fits = all(_fits(norm, x) for norm in norms) and (pool is None or pool.fits(x))
        if fits and (z is None or z.shape == x.shape):
            other: Tensor | Operand | None = z
            if z is not None:
                z = z.to(x.dtype)
                other = z if self.z_norm is None else _operand(z, self.z_norm)
            windows = None if pool is None else pool.windows
            return batch_norm(_operand(x, self.norm), other, relu=self.relu, fork=self.fork, pool=windows)
        y: Tensor = self.norm(x)
        if z is not None:
            y = y + (z if self.z_norm is None else self.z_norm(z))
        y = F.relu(y, inplace=True) if self.relu else y
        y = y if pool is None else pool(y)
        return (y, y) if self.fork else y


def _fits(norm: _BatchNorm, x: Tensor) -> bool:
    by_batch = norm.training or norm.running_mean is None
    return by_batch and x.dim() == 4 and (x.numel() > x.shape[1] or _group(norm) is not None)


def _group(norm: _BatchNorm) -> Any:
    """Return the process group with which a SyncBatchNorm shares statistics in training, or None."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _operand(x: Tensor, norm: _BatchNorm) -> Operand:
    momentum = norm.momentum
    assert momentum is not None
    running = (None, None, None)
    if norm.training and norm.track_running_stats:
        running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)  # type: ignore[assignment]
    return Operand(x, norm.weight, norm.bias, Norm(norm.eps, momentum, *running, _group(norm)))


def fused(*blocks: nn.Module) -> nn.Module:
    """Return a view of `blocks`, run in sequence, with `FusedNorm`s. The blocks themselves do not change.

    The view shares the blocks' layers, including their parameters, buffers and modes. A block without
    BatchNorm is its own view, unless it is folded.
    """
    block = blocks[0] if len(blocks) == 1 else nn.Sequential(*blocks)
    if why_not := foreign_batchnorm(block):
        raise ValueError(why_not)
    if not _has_fusable(block):
        return block
    try:
        view = fx.GraphModule(block, _Tracer().trace(block))
    except (TraceError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"torch.fx cannot follow a block of this backbone ({' '.join(str(error).split())[:120]})"
        ) from error
    _join(view)
    _pool(view)
    _fork(view)
    view.graph.lint()
    view.recompile()
    view.delete_all_unused_submodules()
    return view


def _is_fusable(part: nn.Module | None) -> bool:
    """Return whether the kernels may support this BatchNorm. SyncBatchNorms of vectors run by torch."""
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return isinstance(part, kinds) and part.affine and part.momentum is not None


def _has_fusable(block: nn.Module) -> bool:
    return any(_is_fusable(part) or isinstance(part, ConvReLU) for part in block.modules())


class _Tracer(fx.Tracer):
    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ConvReLU) or super().is_leaf_module(m, module_qualified_name)


def _called_module(view: fx.GraphModule, node: object) -> nn.Module | None:
    """Return the module that `node` calls, or None."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return view.get_submodule(str(node.target)) if is_call else None  # type: ignore[attr-defined]


def _join(view: fx.GraphModule) -> None:
    """Replace BatchNorms, and sums and ReLUs that alone use them, by `FusedNorm`s, in place."""

    def is_free(node: object) -> bool:
        return _is_fusable(_called_module(view, node)) and len(node.users) == 1  # type: ignore[attr-defined]

    for node in list(view.graph.nodes):
        if type(_called_module(view, node)) is not nn.ReLU:
            continue
        total = node.args[0]
        if is_free(total):
            _replace(view, [node], [total])
        elif total.target in (operator.add, operator.iadd) and len(total.users) == 1:
            x, z = sorted(total.args, key=lambda term: not is_free(term))
            if is_free(x) and isinstance(z, fx.Node) and z is not x:
                _replace(view, [node, total], [x, z], is_free(z) and z.target != x.target)
    for node in list(view.graph.nodes):
        if _is_fusable(_called_module(view, node)):
            _replace(view, [], [node])


def _replace(view: fx.GraphModule, behind: list[fx.Node], terms: list[fx.Node], both: bool = False) -> None:
    """Replace terms[0]'s BatchNorm, terms[1]'s (if `both`), and their sum and ReLU (`behind`) by one node."""
    norms = terms if both else terms[:1]
    norm, z_norm = _called_module(view, terms[0]), _called_module(view, terms[1]) if both else None
    last = (behind or terms)[0]
    name = f"fused_{last.name}"
    view.add_submodule(name, FusedNorm(norm, z_norm, bool(behind)))  # type: ignore[arg-type]
    with view.graph.inserting_before(last):
        arguments = [term.args[0] if term in norms else term for term in terms]
        last.replace_all_uses_with(view.graph.call_module(name, tuple(arguments)))
    for node in dict.fromkeys((*behind, *norms)):
        view.graph.erase_node(node)


def _windows(pool: nn.Module | None) -> Windows | None:
    """Return the windows of a max pool that the kernels support, or None."""
    if type(pool) is not nn.MaxPool2d or pool.ceil_mode or pool.return_indices:
        return None
    values = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    pairs: list[Any] = [tuple(v) * (3 - len(v)) if isinstance(v, Sequence) else (v, v) for v in values]
    *of_windows, dilation = pairs
    windows = Windows(*of_windows)
    # torch refuses more padding. A value is in at most four windows.
    fits = all(2 * p <= k <= 2 * s for k, s, p in zip(*windows, strict=True))
    return windows if fits and dilation == (1, 1) and prod(windows.kernel) <= MAX_PLACES else None


def _pool(view: fx.GraphModule) -> None:
    """Give max pools to `FusedNorm`s that they alone use, and replace others by `FusedPool`s, in place."""
    for node in list(view.graph.nodes):
        pool = _called_module(view, node)
        windows = _windows(pool)
        if windows is None or not node.args:
            continue
        assert isinstance(pool, nn.MaxPool2d)
        before = node.args[0]
        part = _called_module(view, before) if len(before.users) == 1 and len(before.args) == 1 else None
        if isinstance(part, FusedNorm):
            part.pool = FusedPool(pool, windows)
            node.replace_all_uses_with(before)
            view.graph.erase_node(node)
            continue
        joined = part if isinstance(part, ConvReLU) else None
        name = f"fused_{node.name}"
        view.add_submodule(name, FusedPool(pool, windows, joined))
        with view.graph.inserting_before(node):
            source = before.args[0] if joined else before
            node.replace_all_uses_with(view.graph.call_module(name, (source,)))
        view.graph.erase_node(node)
        if joined:
            view.graph.erase_node(before)


def _fork(view: fx.GraphModule) -> None:
    """Make `FusedNorm`s return their result twice for two convolutions, or a convolution and a shortcut."""
    for node in list(view.graph.nodes):
        part, users = _called_module(view, node), list(node.users)
        if not isinstance(part, FusedNorm) or len(users) != 2:
            continue
        kinds = [_called_module(view, user) for user in users]
        # Neither kind writes into its input.
        if all(isinstance(kind, nn.Conv2d | FusedNorm) for kind in kinds):
            part.fork = True
            with view.graph.inserting_after(node):
                outputs = [view.graph.call_function(operator.getitem, (node, output)) for output in (1, 0)]
            for user, output in zip(users, reversed(outputs), strict=True):
                user.replace_input_with(node, output)


def make_fused_runner() -> Runner:
    """Return a version of `run_blocks` that builds `fused` views at the first call.

    Blocks in sequence have one view, so that what ends one is fused with what begins the next. If every
    block's output is asked for, each has its own. A view lives as long as its first block, or the runner.
    """
    views: WeakKeyDictionary[nn.Module, dict[tuple[ReferenceType[nn.Module], ...], nn.Module]] = (
        WeakKeyDictionary()
    )

    def view_of(chain: list[nn.Module]) -> nn.Module:
        of_first = views.setdefault(chain[0], {})
        rest = tuple(map(ReferenceType, chain[1:]))
        if rest not in of_first:
            of_first[rest] = fused(*chain)
        return of_first[rest]

    def run(blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
        # Blocks without BatchNorms run as they are: in a view, they would live as long as the view.
        parts: list[nn.Module] = []
        for is_fusable, group in groupby(blocks, _has_fusable):
            chain = list(group)
            if is_fusable:
                parts += map(view_of, [[block] for block in chain] if every else [chain])
            else:
                parts += chain
        return run_blocks(parts, images, every)

    return run
