"""Blocks that do not learn, with their BatchNorms folded into the convolutions before them (`--fold-frozen`)."""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm

from fastpsl.backbones.revnet import Group


def check_foldable(blocks: Iterable[nn.Module], frozen_batchnorm: str) -> None:
    """ValueError where `blocks`, frozen, cannot be folded."""
    if frozen_batchnorm != "eval":
        raise ValueError(
            f"--fold-frozen with --frozen-batchnorm {frozen_batchnorm}: what normalises by each batch cannot be folded; leave out "
            f"one of them"
        )
    for block in blocks:
        folded(block, torch.float32)


def folded(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `block` in eval mode without BatchNorm, its convolutions of `dtype` in channels-last memory.

    Of the block as it is now; it shares no tensor with it and learns nothing. Folded in the weights' own float32 and rounded once,
    so that under autocast of `dtype` no weight is cast in a step: each output differs from the block's by the rounding of the
    weights and of what stands between convolution and BatchNorm. ValueError where a BatchNorm follows no convolution.
    """
    own = copy.deepcopy(block).requires_grad_(False).eval()
    if any(isinstance(part, Group) for part in own.modules()):
        raise ValueError(
            "--fold-frozen: RevNet's BatchNorms stand before its convolutions, behind a ReLU; leave it out"
        )
    for part in own.modules():
        if isinstance(part, nn.SyncBatchNorm):
            # In eval mode it is no other than this, which torch.fx knows.
            part.__class__ = nn.BatchNorm2d
    try:
        result: nn.Module = fuse(own, inplace=True)
    except (TraceError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"--fold-frozen: torch.fx cannot follow a block of this backbone ({' '.join(str(error).split())[:120]}); leave it out"
        ) from error
    left = [name for name, part in result.named_modules() if isinstance(part, _BatchNorm)]
    if left:
        raise ValueError(
            f"--fold-frozen: {len(left)} BatchNorms of a block follow no convolution alone, such as {left[0]}; leave it out"
        )
    for part in result.modules():
        if isinstance(part, nn.Conv2d):
            part.to(dtype=dtype, memory_format=torch.channels_last)
    return result.requires_grad_(False)
