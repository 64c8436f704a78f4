"""Shift and Flip as numbers: the source positions of the pixels of a moved image."""

from collections.abc import Mapping, Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels.geometry import Flip, Shift

# mypy: disable-error-code="no-untyped-def"


def without_moves(ops: Sequence[object]) -> tuple[object, ...]:
    """Return `ops` without the Shift and the Flip, in this order, that they may begin with."""
    rest = tuple(ops)
    for kind in (Shift, Flip):
        rest = rest[1:] if rest and type(rest[0]) is kind else rest
    return rest


def drawn_moves(
    ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]]
) -> tuple[Tensor | None, Tensor | None, int]:
    """Return the draws of Shift and Flip for `placement`.

    They are flip, bool [B], or None; shift, int64 [B, 2], or None; and the shift's max_px.
    """
    flip = shift = None
    max_px = 0
    for op, draw in zip(ops, draws, strict=True):
        if isinstance(op, Flip):
            flip = draw["flip"].contiguous()
        elif isinstance(op, Shift):
            shift, max_px = draw["shift"].contiguous(), op.max_px
    return flip, shift, max_px


@triton.jit
def placement(sample, flip, shift, MAX_PX: tl.constexpr, WIDTH: tl.constexpr):
    """Return top, left and step of a moved image.

    Its pixel (y, x) is the source's (top + y, left + step * x), or black outside the source.
    """
    top = 0
    left = 0
    step = 1
    if flip is not None:
        mirrored = tl.load(flip + sample)
        step = tl.where(mirrored, -1, 1)
        left = tl.where(mirrored, WIDTH - 1, 0)
    if shift is not None:
        top = tl.load(shift + 2 * sample).to(tl.int32) - MAX_PX
        left += tl.load(shift + 2 * sample + 1).to(tl.int32) - MAX_PX
    return top, left, step
