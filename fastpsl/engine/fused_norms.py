"""Views of blocks in which each BatchNorm is fused with the sum and ReLU after it (`--step fused`)."""

import operator
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.engine.block_runner import Runner, run_blocks
from fastpsl.kernels.fused_cuda.batch_norm import Norm, Operand, batch_norm
from fastpsl.models.fold_batchnorm import foreign_batchnorm


class FusedNorm(nn.Module):
    """A BatchNorm fused with its successors: relu(norm(x) + z), with z_norm(z) for z, or without z or ReLU.

    It holds the block's own BatchNorms. The kernels run if these normalise by batch statistics, as in
    training. Otherwise torch runs one operation after the other. torch also handles what it rejects or treats
    as a special case: one value or none per channel, and a z of another shape.

    Attributes:
        norm: The BatchNorm of x.
        z_norm: The BatchNorm of z, or None.
        relu: Whether a ReLU follows.
        fork: Whether to return the result twice (see `batch_norm`).
    """

    def __init__(self, norm: _BatchNorm, z_norm: _BatchNorm | None = None, relu: bool = False):
        super().__init__()
        self.norm, self.z_norm, self.relu, self.fork = norm, z_norm, relu, False

    @override
    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        norms = [self.norm] if self.z_norm is None else [self.norm, self.z_norm]
        if all(_fits(norm, x) for norm in norms) and (z is None or z.shape == x.shape):
            other: Tensor | Operand | None = z
            if z is not None:
                z = z.to(x.dtype)
                other = z if self.z_norm is None else _operand(z, self.z_norm)
            return batch_norm(_operand(x, self.norm), other, relu=self.relu, fork=self.fork)
        y: Tensor = self.norm(x)
        if z is not None:
            y = y + (z if self.z_norm is None else self.z_norm(z))
        y = F.relu(y, inplace=True) if self.relu else y
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


def fused(block: nn.Module) -> nn.Module:
    """Return a view of `block` with `FusedNorm`s. `block` itself does not change.

    The view shares the block's layers, including their parameters, buffers and modes. A block without
    BatchNorm is its own view.

    Raises:
        ValueError: torch.fx cannot trace the block, or a BatchNorm is not torch's own.
    """
    if why_not := foreign_batchnorm(block):
        raise ValueError(why_not)
    if not any(_is_fusable(part) for part in block.modules()):
        return block
    try:
        view = fx.symbolic_trace(block)
    except (TraceError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"torch.fx cannot follow a block of this backbone ({' '.join(str(error).split())[:120]})"
        ) from error
    _join(view)
    _fork(view)
    view.graph.lint()
    view.recompile()
    view.delete_all_unused_submodules()
    return view


def _is_fusable(part: nn.Module | None) -> bool:
    """Return whether the kernels may support this BatchNorm. SyncBatchNorms of vectors run by torch."""
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return isinstance(part, kinds) and part.affine and part.momentum is not None


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
                outputs = [view.graph.call_function(operator.getitem, (node, output)) for output in (1, 0)][
                    ::-1
                ]
            for user, output in zip(users, outputs, strict=True):
                user.replace_input_with(node, output)


def make_fused_runner() -> Runner:
    """Return a version of `run_blocks` that builds the `fused` view of each block at its first call.

    A view lives no longer than its block.
    """
    # A block that is its own view is stored as None, because a value that is its key would keep the key
    # alive.
    views: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()

    def run(blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
        for block in blocks:
            if block not in views:
                view = fused(block)
                views[block] = None if view is block else view
        return run_blocks([views[block] or block for block in blocks], images, every)

    return run
