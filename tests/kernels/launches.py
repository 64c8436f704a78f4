"""The launches that are compiled as a test: chains of operations, BatchNorms, dtypes, sizes, alignments."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused_cuda import (
    area,
    geometric,
    isotropic,
    lars,
    photometric,
    prepared,
    shifted,
    warped,
)
from fastpsl.kernels.fused_cuda.batch_norm import Norm, Operand, batch_norm, max_pool
from fastpsl.kernels.fused_cuda.pool_windows import Windows
from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Rotate45, Rotate90, Shift, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import out_shape

Ops = tuple[object, ...]

FLIP, COLOUR, GREY, LIGHTNESS = Flip(), ColourDistortion(0.8, 0.8, 0.8, 0.2), Grey(0.2), Lightness()
BLUR, WIDE_BLUR, SOBEL = GaussianBlur(23, p=0.5), GaussianBlur(51, p=0.5), Sobel(0.2)
T3 = (FLIP, COLOUR, GREY, BLUR, SOBEL)
XY, SHIFT = SobelXY(), Shift(4)
# The launches of training.
MAIN: dict[str, tuple[ModuleType, Ops, int]] = {
    "T1": (photometric, (FLIP,), 224),
    "SimCLR T3": (photometric, T3, 224),
    "MoCo T3": (photometric, (FLIP, ColourDistortion(0.4, 0.4, 0.4, 0.1), GREY, BLUR, SOBEL), 224),
    "UIC": (photometric, (FLIP, XY), 224),
    "UIC, strong": (photometric, (*T3[:-1], XY), 224),
    "jigsaw": (geometric, (FLIP, JigsawTiles(3, 75, 64)), 225),
    "all turns": (geometric, (AllTurns(4),), 224),
    "SSL++, context": (shifted, (SHIFT, FLIP, Hole()), 32),
    "SSL++, colorization": (shifted, (SHIFT, FLIP, LIGHTNESS), 32),
    "SSL++, rotation": (geometric, (SHIFT, FLIP, AllTurns(4)), 32),
    "SSL++, AET": (warped, (SHIFT, FLIP, WarpPair(32)), 32),
}
# A missing operation is None or a constant to a kernel, so each is here alone, all together, and all but one.
PHOTOMETRIC: dict[str, Ops] = {
    "none": (),
    "flip": (FLIP,),
    "colour": (COLOUR,),
    "grey": (GREY,),
    "lightness": (LIGHTNESS,),
    "blur": (BLUR,),
    "Sobel": (SOBEL,),
    "T3": T3,
    "T3, lightness": (*T3[:3], LIGHTNESS, BLUR, SOBEL),
    "T3, 51 taps": (*T3[:3], WIDE_BLUR, SOBEL),
    "T3, lightness, 51 taps": (*T3[:3], LIGHTNESS, WIDE_BLUR, SOBEL),
    "SobelXY": (XY,),
    "flip, SobelXY": (FLIP, XY),
    "colour, SobelXY": (COLOUR, XY),
    "UIC, strong": (*T3[:-1], XY),
    "UIC, 51 taps": (*T3[:3], WIDE_BLUR, XY),
}
T3_WITHOUT: dict[str, Ops] = {
    "flip": T3[1:],
    "colour": (FLIP, *T3[2:]),
    "hue": (FLIP, ColourDistortion(0.8, 0.8, 0.8, 0), *T3[2:]),
    "contrast": (FLIP, ColourDistortion(0.8, 0, 0.8, 0.2), *T3[2:]),
    "grey": (FLIP, COLOUR, BLUR, SOBEL),
    "blur": (FLIP, COLOUR, GREY, SOBEL),
    "Sobel": T3[:-1],
}
GEOMETRIC: dict[str, Ops] = {
    "tiles": (JigsawTiles(3, 75, 64),),
    "flip, odd tiles": (FLIP, JigsawTiles(2, 48, 33)),
    "all turns": (AllTurns(4),),
    "all half turns": (AllTurns(2),),
    "turns": (Rotate90(4),),
    "half turns": (Rotate90(2),),
    "turns by 45": (Rotate45(),),
}
OTHERS: dict[str, tuple[ModuleType, Ops]] = {
    "flip, hole": (shifted, (FLIP, Hole())),
    "shift": (shifted, (SHIFT,)),
    "flip, all turns": (geometric, (FLIP, AllTurns(4))),
    "shift, half turns": (geometric, (SHIFT, Rotate90(2))),
    "shift, lightness": (shifted, (SHIFT, LIGHTNESS)),
    "flip, pair": (warped, (FLIP, WarpPair(225))),
    "pair": (warped, (WarpPair(225, "affine"),)),
    "shift, flip, SobelXY": (prepared, (SHIFT, FLIP, XY)),
    "enlarge": (prepared, (Enlarge(256, 224),)),
}


class Launch(NamedTuple):
    """A call that launches kernels.

    Attributes:
        name: Its name in reports.
        call: The call.
        on_all: Whether to compile it for all architectures and not for one alone.
    """

    name: str
    call: Callable[[], object]
    on_all: bool


def launches() -> Iterator[Launch]:
    for chain, (module, ops, side) in MAIN.items():
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            yield _launch(chain, module, ops, dtype, (side, side), dtype != torch.float32)
    for module, chains in ((photometric, PHOTOMETRIC), (geometric, GEOMETRIC)):
        for chain, ops in chains.items():
            # Sizes that 16 divides, odd ones and, where allowed, one that is not square.
            odd, other = ((97, 97), (64, 97)) if module is photometric else ((225, 225), (225, 225))
            yield _launch(chain, module, ops, torch.float16, (240, 240))
            yield _launch(chain, module, ops, torch.bfloat16, odd)
            yield _launch(chain, module, ops, torch.float32, other)
    for chain, (module, ops) in OTHERS.items():
        yield _launch(chain, module, ops, torch.bfloat16, (225, 225))
    for missing, ops in T3_WITHOUT.items():
        yield _launch(f"T3 without {missing}", photometric, ops, torch.bfloat16, (97, 97))
    # A single block of a mean, and a size of 1, because Triton takes the number 1 as a constant.
    yield _launch("T2", photometric, T3[:3], torch.float16, (8, 8))
    yield _launch("Sobel", photometric, (SOBEL,), torch.float16, (1, 33))
    yield _launch("SobelXY", photometric, (XY,), torch.float16, (1, 33))
    for start in (0, 4):
        images = torch.empty(start + 2 * 60 * 91 * 3, dtype=torch.uint8)[start:].view(2, 60, 91, 3)
        boxes = torch.zeros(2, 5, dtype=torch.int64)
        name = f"isotropic windows, from byte {start} on"
        yield Launch(name, partial(isotropic.crop, images, boxes, 32), start == 0)
    images, indices = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    yield Launch("crops by area", partial(area.crop, images, indices, boxes.int(), 32), True)

    # Widths that 8 divides, and others.
    widths = {torch.float16: (64, 72, 70, 1), torch.bfloat16: (64,), torch.float32: (64, 70)}
    for dtype, width, fork in ((d, w, f) for d in widths for w in widths[d] for f in (False, True)):
        name = f"BatchNorms, {width} channels, {dtype}{', used twice' if fork else ''}".replace("torch.", "")
        on_all = width == 64 and dtype != torch.float32
        yield Launch(name, partial(_batch_norms, width, dtype, fork), on_all)

    for start in (0, 1):  # gradients of DDP lie anywhere
        yield Launch(f"LARS{', unaligned' if start else ''}", partial(_lars, start), start == 0)


def _lars(start: int, num: int = 65) -> None:
    """Make a step of one tensor, of values from `start` on."""
    tensors, scalar = [torch.zeros(num)[start:]], torch.zeros(())
    division = lars.divided([tensors[0].numel()])
    rates = lars.rates_of(tensors, tensors, *division, scalar, scalar, 0.1, 0.001)
    for each in (rates, None):
        momenta = [torch.zeros(num)[start:]]
        lars.update(tensors, momenta, momenta, *division, each, scalar, scalar, scalar, 0.1, 0.9)


def _batch_norms(width: int, dtype: torch.dtype, fork: bool) -> None:
    """Run a BatchNorm alone, with a sum and with two norms, forward and backward, and with a pool."""
    channels_last = torch.channels_last
    x, z, dy = (
        torch.zeros(4, width, 9, 9, dtype=dtype).contiguous(memory_format=channels_last) for _ in range(3)
    )
    weight, bias = torch.ones(width, requires_grad=True), torch.zeros(width, requires_grad=True)
    running = torch.zeros(width), torch.ones(width), torch.zeros((), dtype=torch.int64)
    of = Operand(x.requires_grad_(), weight, bias, Norm(1e-5, 0.1, *running))
    for other in (None, z, Operand(z.clone(), weight, bias, Norm(1e-5))):
        result = batch_norm(of, other, relu=True, fork=fork)
        results = result if isinstance(result, tuple) else (result,)
        torch.autograd.backward(results, [dy] * len(results))
    stem = Windows((3, 3), (2, 2), (1, 1))
    result = batch_norm(of, relu=True, fork=fork, pool=stem)
    results = result if isinstance(result, tuple) else (result,)
    torch.autograd.backward(results, [torch.zeros_like(results[0])] * len(results))
    max_pool(x, stem, bias.detach().to(dtype), relu=True)
    max_pool(x, stem)


def _launch(
    chain: str, module: ModuleType, ops: Ops, dtype: torch.dtype, size: tuple[int, int], on_all: bool = False
) -> Launch:
    """Return the launch of a chain.

    For an odd size it takes the later samples of larger tensors, whose addresses have no alignment.
    """
    skipped = size[1] % 2
    channels_last = torch.channels_last
    images = torch.empty((2 + skipped, 3, *size), dtype=torch.uint8).contiguous(memory_format=channels_last)
    batch, *shape = out_shape(ops, images.shape)
    out = torch.empty((batch, *shape), dtype=dtype).contiguous(memory_format=channels_last)
    keys = Keys(0, 0, np.arange(2 + skipped, dtype=np.int64))
    draws = [
        {name: _tensor(values)[skipped:] for name, values in op.draw(keys).items()}  # type: ignore[attr-defined]
        for op in ops
    ]
    images, out = images[skipped:], out[batch // len(images) * skipped :]
    call = partial(module.run, images, ops, draws, (0.5,) * shape[0], (0.25,) * shape[0], out)
    return Launch(f"{chain}, {dtype}, {size[0]} x {size[1]} px".replace("torch.", ""), call, on_all)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
