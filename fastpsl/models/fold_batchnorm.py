"""Folding of frozen blocks' BatchNorms into the preceding convolutions (`--fold-frozen`)."""

import copy
import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.console.words import warn
from fastpsl.models.backbone import cast_layers
from fastpsl.models.revnet import Group


class FoldError(ValueError):
    """An error of blocks that cannot be folded, for `reason`."""

    def __init__(self, text: str, reason: str):
        super().__init__(text)
        self.reason = reason


def _unfoldable(reason: str) -> FoldError:
    return FoldError(f"--fold-frozen: {reason}; leave it out", reason)


def check_foldable(blocks: Iterable[nn.Module], frozen_batchnorm: str) -> None:
    """Raise FoldError if frozen `blocks` cannot be folded, which needs `frozen_batchnorm` "eval"."""
    if frozen_batchnorm != "eval":
        raise _unfoldable(f"--frozen-batchnorm {frozen_batchnorm} normalises by each batch")
    for block in blocks:
        folded(block, torch.float32)


def foreign_batchnorm(block: nn.Module) -> str:
    """Return a text about a BatchNorm that is not torch's own, or an empty string.

    Its class may do more. timm's BatchNormAct2d holds an activation, which a plain BatchNorm would lose.
    """
    for part in block.modules():
        if isinstance(part, _BatchNorm) and not type(part).__module__.startswith("torch.nn."):
            return f"{type(part).__name__} may do more than torch's BatchNorm does"
    return ""


def folded(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of `block` in eval mode, with each BatchNorm folded into the convolution before it.

    The copy has the block's present weights, shares no tensor with it and is not trained. Weights are folded
    in float32 and rounded once to `dtype`, so that autocast to `dtype` casts no weight at each step. They are
    in channels-last memory. The outputs differ from the block's by the rounding of the weights and of the
    values between convolution and BatchNorm. ReLUs, and the sums before them, are fused with their
    convolution (`ConvReLU`).
    """
    clone = copy.deepcopy(block).requires_grad_(False).eval()
    if any(isinstance(part, Group) for part in clone.modules()):
        raise _unfoldable("RevNet's BatchNorms stand before its convolutions, behind a ReLU")
    if why_not := foreign_batchnorm(clone):
        raise _unfoldable(f"{why_not}, so it cannot be folded")
    try:
        traced = fx.symbolic_trace(clone)
        _unsynchronise(traced)
        repeated = _repeated(traced)
        result: nn.Module = fuse(clone, inplace=True)
    except (TraceError, TypeError, RuntimeError) as error:
        words = " ".join(str(error).split())[:120]
        raise _unfoldable(f"torch.fx cannot follow a block of this backbone ({words})") from error
    if repeated:
        raise _unfoldable(f"{repeated} is called twice in a block, and one convolution takes one BatchNorm")
    unfolded = [name for name, part in result.named_modules() if isinstance(part, _BatchNorm)]
    if unfolded:
        raise _unfoldable(
            f"{len(unfolded)} BatchNorms of a block follow no convolution alone, such as {unfolded[0]}"
        )
    cast_layers(result, dtype)
    result.to(memory_format=torch.channels_last)
    assert isinstance(result, fx.GraphModule)
    _join_activations(result)
    return result.requires_grad_(False)


def _unsynchronise(module: fx.GraphModule) -> None:
    """Turn SyncBatchNorms, which torch.fx cannot fold, into BatchNorms, which are equal in eval mode."""
    for node in module.graph.nodes:
        part = module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(part, nn.SyncBatchNorm):
            before = node.args[0]
            source = module.get_submodule(before.target) if before.op == "call_module" else None
            of_linear = isinstance(source, nn.Linear)
            part.__class__ = nn.BatchNorm1d if of_linear else nn.BatchNorm2d  # type: ignore[assignment]


def _repeated(module: fx.GraphModule) -> str:
    """Return the name of a convolution or BatchNorm that is called more than once, or an empty string."""
    seen: set[nn.Module] = set()
    for node in module.graph.nodes:
        if node.op == "call_module":
            part = module.get_submodule(node.target)
            if part in seen and isinstance(part, nn.Conv2d | _BatchNorm):
                return str(node.target)
            seen.add(part)
    return ""


class ConvReLU(nn.Module):
    """A convolution with a ReLU behind it: relu(conv(x) + z), or relu(conv(x)) without z.

    On a GPU in half precision, one cuDNN kernel computes it and writes the result once. Without this kernel,
    folding would save next to nothing. Adding the bias is one more pass over the result, as BatchNorm is in
    eval mode. torch.compile gets the plain operations, because it fuses them itself. A fused step joins a max
    pool too (`fused_norms.FusedPool`).
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.by_cudnn = conv.weight.is_cuda and conv.weight.dtype != torch.float32 and self._cudnn_can()

    @override
    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if self.by_cudnn and not torch.compiler.is_compiling():
            return self._cudnn(x, z)
        y: Tensor = self.conv(x)
        return F.relu(y if z is None else y + z, inplace=True)

    def _cudnn(self, x: Tensor, z: Tensor | None) -> Tensor:
        conv = self.conv
        x, where = x.to(conv.weight.dtype), (conv.stride, conv.padding, conv.dilation, conv.groups)
        if z is None:
            return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *where)  # type: ignore[arg-type]
        return torch.cudnn_convolution_add_relu(x, conv.weight, z, 1.0, conv.bias, *where)  # type: ignore[arg-type]

    @torch.no_grad()
    def _cudnn_can(self) -> bool:
        """Return whether cuDNN runs the kernel on a small image, which depends on its version and the GPU."""
        side = 4 * max(self.conv.kernel_size)
        x = torch.zeros(1, self.conv.in_channels, side, side, device=self.conv.weight.device)
        x = x.contiguous(memory_format=torch.channels_last)
        try:
            self._cudnn(x, self._cudnn(x, None))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            warn(
                "--fold-frozen gains little here: cuDNN has no kernel that joins convolution and ReLU "
                f"({reason}); you may leave it out"
            )
            return False
        return True


def _join_activations(module: fx.GraphModule) -> None:
    """Replace ReLUs by `ConvReLU`s, in place, if they follow a convolution or its sum with another value."""
    graph, parts = module.graph, dict(module.named_modules())

    def convolution(node: object) -> nn.Conv2d | None:
        """Return the convolution that `node` calls, if its result has a single user; else None."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return None
        part = parts[str(node.target)]
        is_plain = isinstance(part, nn.Conv2d) and part.padding_mode == "zeros"
        return part if is_plain and not isinstance(part.padding, str) else None  # type: ignore[return-value]

    for number, node in enumerate(list(graph.nodes)):
        if node.op != "call_module" or not isinstance(parts[node.target], nn.ReLU):
            continue
        others: list[Any] = []
        source = total = node.args[0]
        if source.op == "call_function" and source.target is operator.add and len(source.users) == 1:
            source, *others = source.args
        conv = convolution(source)
        if conv is None or source in others or not all(isinstance(other, fx.Node) for other in others):
            continue
        module.add_submodule(f"joined_{number}", ConvReLU(conv))
        with graph.inserting_before(node):
            joined = graph.call_module(f"joined_{number}", (source.args[0], *others))
        node.replace_all_uses_with(joined)
        graph.erase_node(node)
        if total is not source:
            graph.erase_node(total)
        graph.erase_node(source)
    graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
