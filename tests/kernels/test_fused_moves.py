"""Fused moves, tiles, turns, holes, pairs and enlarged images, by numba and by Triton, against one by one."""

import importlib.util
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fastpsl.doctor.proof import STATISTICS, close_calls, one_by_one, views_apart
from fastpsl.kernels import geometry
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import Sobel, SobelXY
from fastpsl.kernels.fused import module_for
from fastpsl.kernels.fused_cpu import geometric as cpu_geometric
from fastpsl.kernels.fused_cpu import warped as cpu_warped
from fastpsl.kernels.geometry import AllTurns, Enlarge, Flip, Hole, Rotate45, Rotate90, Shift, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise, out_shape
from tests.slow import slow

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
on_gpu = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
DTYPES = (torch.float16, torch.float32, torch.bfloat16)


class Backend(NamedTuple):
    """The modules of a device, and the share of values that rounding may move by a level."""

    name: str
    device: torch.device
    modules: tuple[ModuleType, ...]
    most_close: float


NUMBA = Backend("numba", torch.device("cpu"), (cpu_geometric, cpu_warped), 0.02)
BACKENDS = [NUMBA]
TRITON: Any = None
if importlib.util.find_spec("triton"):
    import triton.language as tl

    from fastpsl.kernels.fused_cuda import geometric, prepared, shifted, warped

    # Without a GPU the interpreter runs the kernels.
    TRITON = Backend("triton", DEVICE, (geometric, shifted, warped, prepared), 0.5)
    BACKENDS.append(TRITON)

SHIFT, FLIP, SIDE = Shift(3), Flip(), 13
TILES = JigsawTiles(3, 4, 3)
# Name → the operations, and the modules of numba and of Triton that do them.
CHAINS = {
    "tiles": ((TILES,), "geometric", "geometric"),
    "flip, tiles": ((FLIP, TILES), "geometric", "geometric"),
    "shift, flip, tiles": ((SHIFT, FLIP, JigsawTiles(2, 5, 5)), "geometric", None),
    "one of four turns": ((Rotate90(4),), "geometric", "geometric"),
    "one of two turns": ((Rotate90(2),), "geometric", "geometric"),
    "turns by 45": ((Rotate45(),), "geometric", "geometric"),
    "all turns": ((AllTurns(4),), "geometric", "geometric"),
    "all half turns": ((AllTurns(2),), "geometric", "geometric"),
    "rotation": ((SHIFT, FLIP, AllTurns(4)), "geometric", "geometric"),
    "flip, half turns": ((FLIP, AllTurns(2)), "geometric", "geometric"),
    "shift, one turn": ((SHIFT, Rotate90(4)), "geometric", "geometric"),
    "nothing": ((), None, "shifted"),
    "shift": ((SHIFT,), "geometric", "shifted"),
    "plain": ((SHIFT, FLIP), "geometric", "shifted"),
    "hole": ((Hole(0.4),), "geometric", "shifted"),
    "flip, hole": ((FLIP, Hole(0.4, (1.0, 0.0, 0.501))), "geometric", "shifted"),
    "context": ((SHIFT, FLIP, Hole()), "geometric", "shifted"),
    "colorization": ((SHIFT, FLIP, Lightness()), None, "shifted"),
    "AET": ((SHIFT, FLIP, WarpPair(SIDE)), "warped", "warped"),
    "flip, affine": ((FLIP, WarpPair(SIDE, "affine")), "warped", "warped"),
    "pair": ((WarpPair(SIDE),), "warped", "warped"),
    "gradients": ((SHIFT, FLIP, SobelXY()), None, "prepared"),
    "shift, Sobel": ((SHIFT, Sobel(0.5)), None, "prepared"),
    "enlarged": ((Enlarge(20, 15),), None, "prepared"),
    "enlarged, gradients": ((Enlarge(20, 15), SobelXY()), None, "prepared"),
}
SQUARE = (Rotate45, WarpPair)
every_backend = pytest.mark.parametrize("by", [pytest.param(by, marks=on_gpu, id=by.name) for by in BACKENDS])


def chains(backends=BACKENDS, names=tuple(CHAINS)):
    """Parametrise a test by all pairs of a backend and one of the chains that it has."""
    pairs = [
        pytest.param(by, CHAINS[name][0], marks=on_gpu, id=f"{by.name}-{name}")
        for by in backends
        for name in names
        if CHAINS[name][1 + BACKENDS.index(by)]
    ]
    return pytest.mark.parametrize(("by", "ops"), pairs)


triton_only = [TRITON] if TRITON else []


def is_square(ops):
    return any(isinstance(op, SQUARE) or getattr(op, "num", 0) == 4 for op in ops)


def make_draws(ops, num, as_tensors):
    """Return the operations' draws, with every other image flipped and all turns in rotation."""
    draws = [as_tensors(op.draw(Keys(5, 1, np.arange(num, dtype=np.int64)))) for op in ops]
    for op, draw in zip(ops, draws, strict=True):
        if "flip" in draw:
            draw["flip"] = torch.arange(num) % 2 == 0
        elif "turns" in draw and draw["turns"].ndim == 1:
            draw["turns"] = torch.arange(num) % 2 * 2 if op == Rotate90(2) else (torch.arange(num) + 1) % 4
    return draws


def fused(by, images, ops, draws, dtype=torch.float32, statistics=None):
    """Run the fused kernel, with the result between images that must not change."""
    module: Any = module_for(by.modules, ops)
    shape = out_shape(ops, images.shape)
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, dtype=dtype, device=by.device)
    whole = whole.contiguous(memory_format=torch.channels_last)
    device_draws = [{k: v.to(by.device) for k, v in draw.items()} for draw in draws]
    module.run(images.to(by.device), ops, device_draws, *(statistics or STATISTICS[shape[1]]), whole[1:-1])
    assert whole[0].isnan().all() and whole[-1].isnan().all()
    assert not whole[1:-1].isnan().any()
    assert whole[1:-1].is_contiguous(memory_format=torch.channels_last)
    return whole[1:-1].cpu()


@pytest.fixture
def check(make_images, as_tensors):
    """Return a check of a chain on drawn images of a shape [B, H, W] against the operations one by one.

    Values that are rounded from near a half may be off by a level.
    """

    def compare(by, ops, shape, dtype=torch.float32, statistics=None, **drawn):
        images, draws = make_images(*shape, torch.uint8), make_draws(ops, shape[0], as_tensors)
        draws[:1] = [draw | drawn for draw in draws[:1]]
        before = images.clone()
        out = fused(by, images, ops, draws, dtype, statistics)
        assert torch.equal(images, before) and out.dtype == dtype
        result = one_by_one(images, ops, draws)
        expected = normalise(result, *STATISTICS[result.shape[1]], torch.float32)
        if dtype == torch.bfloat16 and by is TRITON and by.device.type == "cpu":
            # Triton's interpreter truncates where a GPU rounds.
            expected = (expected.view(torch.int32) & -(2**16)).view(torch.float32)
        expected, close = expected.to(dtype), close_calls(images, ops, draws)
        assert close.sum() <= by.most_close * close.numel()
        assert views_apart(out, expected, close) <= 1
        return result

    return compare


@chains(triton_only)
@pytest.mark.parametrize("dtype", [DTYPES[0], *map(slow, DTYPES[1:])])
def test_equals_the_operations(by, ops, dtype, check):
    check(by, ops, (3, SIDE, SIDE if is_square(ops) else SIDE + 4), dtype)


@chains([NUMBA])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num", [0, 1, 9])
def test_equals_the_operations_on_the_cpu(by, ops, dtype, num, check):
    check(by, ops, (num, SIDE, SIDE if is_square(ops) else SIDE + 4), dtype)


@chains(triton_only)
@pytest.mark.parametrize("num", [0, 1])
def test_few_images(by, ops, num, check):
    """No image, and one that is larger than a program handles."""
    side = SIDE if isinstance(ops and ops[-1], WarpPair) else 34
    check(by, ops, (num, side, side))


LARGE_TILES = [
    (JigsawTiles(num_permutations=500), (1, 225, 225)),  # PSL
    (JigsawTiles(3, 11, 8), (2, 33, 34)),
    (JigsawTiles(2, 7, 7), (3, 15, 14)),
    (JigsawTiles(1, 5, 2), (2, 5, 9)),
    (JigsawTiles(1, 71, 66), (2, 71, 73)),  # more than a program handles, in both directions
    (JigsawTiles(5, 3, 1), (1, 15, 15)),
]
TURNS = [Rotate90(4), Rotate90(2), Rotate45(), AllTurns(4), AllTurns(2)]


@every_backend
@pytest.mark.parametrize("flip", [slow(()), (FLIP,)], ids=["", "flip"])
@pytest.mark.parametrize(("op", "shape"), LARGE_TILES)
def test_tiles_of_any_size(by, op, shape, flip, check):
    check(by, (*flip, op), shape)


@every_backend
@pytest.mark.parametrize("op", TURNS, ids=repr)
@pytest.mark.parametrize("side", [1, *map(slow, (7, 32)), 33, slow(36)])
def test_turns_of_any_size(by, op, side, check):
    """Squares of one program's size and more, with sides that are and are not multiples of four."""
    check(by, (op,), (2 if isinstance(op, AllTurns) else 4, side, side))


@every_backend
@pytest.mark.parametrize("op", [Rotate90(2), AllTurns(2)], ids=repr)
@pytest.mark.parametrize("size", [(5, 9), (34, 3), (40, 36)])
def test_half_turns_of_other_shapes(by, op, size, check):
    check(by, (op,), (3, *size))


@pytest.mark.parametrize("by", triton_only)
def test_pairs_of_more_than_a_programs_share(by, check):
    check(by, (SHIFT, FLIP, WarpPair(35)), (1, 35, 35))


@every_backend
def test_every_shift(by, check):
    """All shifts that max_px allows, of images so small that some become black; also flipped and turned."""
    shift = torch.cartesian_prod(torch.arange(7), torch.arange(7)).repeat_interleave(2, 0)
    result = check(by, (SHIFT, FLIP), (98, 2, 3), shift=shift)
    assert (result[::2].flatten(1).amax(1) == 0).any()
    if by is NUMBA:
        for last in (AllTurns(4), WarpPair(2)):
            check(by, (SHIFT, FLIP, last), (98, 2, 2), shift=shift)


@every_backend
@pytest.mark.filterwarnings("ignore:divide by zero")  # from numpy in Triton's interpreter
def test_where_a_copy_comes_from_nowhere(by, check):
    """Grey lies outside the source, on the horizon and behind it; half a pixel inside, the edge's pixels."""
    matrices = [
        [[1, 0, 20], [0, 1, 0], [0, 0, 1]],  # all outside
        [[1, 0, 0], [0, 1, 0], [1, 0, -3.5]],  # w = 0 at x = 3.5, below 0 left of it
        [[0.9, 0, 0], [0, 0.9, 0.2], [0, 0, 1]],
        [[1, 0, -0.25], [0, 1, 0.25], [0, 0, 1]],
    ]
    copies = check(by, (WarpPair(8),), (4, 8, 8), matrix=torch.tensor(matrices, dtype=torch.float32))[1::2]
    assert (copies[0] == 128).all() and (copies[1] == 128).any() and (copies[1] != 128).any()


LAYOUTS = {
    "channels first": lambda x: x.contiguous(),
    "a part": lambda x: torch.cat([x, x], 3)[:, :, :, : x.shape[3]],
    "every other": lambda x: x.repeat_interleave(2, 0)[::2],
    "turned": lambda x: x.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3),
    "one, expanded": lambda x: x[:1].expand(x.shape),
}


@chains(names=("flip, tiles", "one of four turns"))
def test_any_layout(by, ops, make_images, as_tensors):
    images, draws = make_images(2, SIDE, SIDE, torch.uint8), make_draws(ops, 2, as_tensors)
    expected, of_one = (fused(by, images[which], ops, draws) for which in ([0, 1], [0, 0]))
    for layout, take in LAYOUTS.items():
        laid_out = take(images)
        before, out = laid_out.clone(), fused(by, laid_out, ops, draws)
        assert torch.equal(out, of_one if layout == "one, expanded" else expected), layout
        assert torch.equal(laid_out, before)


@chains()
def test_any_strides(by, ops, make_images, as_tensors):
    """The images and the draws have any strides."""
    images, draws = make_images(4, SIDE, SIDE + 3, torch.uint8)[::2, :, :, 3:], make_draws(ops, 2, as_tensors)
    apart = [{k: torch.stack([v, v.flip(0)], -1)[..., 0] for k, v in draw.items()} for draw in draws]
    assert torch.equal(fused(by, images, ops, apart), fused(by, images.contiguous(), ops, draws))


@chains([NUMBA], ["flip, tiles", "rotation", "AET"])
def test_threads_change_nothing(by, ops, make_images, as_tensors, monkeypatch, by_any_threads):
    """Neither torch's number of threads nor concurrent callers change a bit."""
    monkeypatch.setattr(cpu_geometric, "_VALUES_PER_THREAD", 1)
    monkeypatch.setattr(cpu_warped, "_PIXELS_PER_THREAD", 1)
    images, draws = make_images(40, SIDE, SIDE, torch.uint8), make_draws(ops, 40, as_tensors)
    by_any_threads(lambda: fused(by, images, ops, draws))


def test_what_fits():
    for ops, *names in CHAINS.values():
        for by, name in zip(BACKENDS, names, strict=False):
            module = module_for(by.modules, ops)
            assert (module and module.__name__.rpartition(".")[2]) == name, (by.name, ops)
    others: list[tuple[object, ...]] = [
        (Grey(),), (TILES, FLIP), (AllTurns(4), FLIP), (Hole(), FLIP), (FLIP, SHIFT), (FLIP, Grey(), TILES),
        (SHIFT, FLIP, Grey()), (Hole(), AllTurns(4)), (WarpPair(8), FLIP), (WarpPair(8), Hole()),
    ]  # fmt: skip
    assert not any(module_for(by.modules[:3], ops) for by in BACKENDS for ops in others)
    assert not any(module_for(NUMBA.modules, ops) for ops in ((), (FLIP,), (SHIFT, Grey())))
    if TRITON:
        assert not any(geometric.fits(ops) for ops in ((), (FLIP,), (SHIFT, FLIP, TILES)))
        colour = ColourDistortion(0.4, 0.4, 0.4, 0.1)
        assert prepared.fits((SHIFT, FLIP, colour)) and prepared.fits((Enlarge(9, 8), Lightness()))
        others = [(), (FLIP,), (SHIFT, Enlarge(9, 8)), (SHIFT, Hole()), (Enlarge(9, 8), AllTurns(4))]
        assert not any(prepared.fits(ops) for ops in others)


@pytest.mark.parametrize(
    ("ops", "size"),
    [
        ((JigsawTiles(2, 8, 4),), (15, 20)),
        ((Rotate90(4),), (15, 20)),
        ((Rotate45(),), (15, 20)),
        ((AllTurns(4),), (15, 20)),
        ((SHIFT, FLIP, AllTurns(4)), (8, 9)),
        ((FLIP, Hole(0.05)), (8, 8)),
        ((Hole(0.5, (0.5,)),), (8, 8)),
        ((FLIP, WarpPair(8)), (8, 9)),
    ],
)
def test_what_the_operation_refuses_is_refused_in_its_words(ops, size, make_images, as_tensors):
    images = make_images(2, *size, torch.uint8)
    with pytest.raises(ValueError) as op_error:
        one_by_one(images, ops, make_draws(ops, 2, as_tensors))
    with pytest.raises(ValueError) as module_error:
        out_shape(ops, images.shape)
    assert str(module_error.value) == str(op_error.value)
    assert size != (15, 20) or "15 x 20 px given" in str(op_error.value)


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("which", [0, 1], ids=["mean", "std"])
@every_backend
def test_two_percent_of_a_constant_are_seen(by, which, channel, check):
    moved = tuple(map(list, STATISTICS[3]))
    moved[which][channel] *= 1.02
    for ops in ((SHIFT, FLIP), (WarpPair(9),)) if by is NUMBA else ((AllTurns(2),),):
        with pytest.raises(AssertionError):
            check(by, ops, (2, 9, 9), torch.float32 if by is NUMBA else torch.float16, moved)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")
@chains(triton_only)
def test_the_host_never_waits(by, ops, make_images, as_tensors):
    images = make_images(3, SIDE, SIDE, torch.uint8).to(DEVICE)
    draws = [{k: v.to(DEVICE) for k, v in draw.items()} for draw in make_draws(ops, 3, as_tensors)]
    module: Any = module_for(by.modules, ops)
    shape = out_shape(ops, images.shape)
    out = torch.empty(shape, device=DEVICE).contiguous(memory_format=torch.channels_last)
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.run(images, ops, draws, *STATISTICS[shape[1]], out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# INTEGERS rounds by being added, and 2 % more changes nothing. Four times as much rounds to fours.
MOVED = {"UNIT": 1.02, "GREY": 1.02, "INTEGERS": 4.0}


@pytest.mark.skipif(DEVICE.type != "cpu" or not TRITON, reason="a compiled kernel keeps its constants")
@pytest.mark.parametrize(
    "name, constant",
    [("colorization", "UNIT"), ("AET", "GREY"), ("AET", "INTEGERS"), ("enlarged", "INTEGERS")],
)
def test_a_constant_that_moves_is_seen(name, constant, monkeypatch, check):
    ops = CHAINS[name][0]
    module = module_for(TRITON.modules, ops)
    value = getattr(module, constant).value * MOVED[constant]
    monkeypatch.setattr(module, constant, tl.constexpr(value))
    with pytest.raises(AssertionError):
        check(TRITON, ops, (3, SIDE, SIDE))


def test_the_loops_constant_is_that_of_the_operation():
    assert cpu_warped._GREY == geometry._GREY


def test_it_is_compiled_once_for_all_operations(make_images, as_tensors):
    for ops in (ops for ops, module, _ in CHAINS.values() if module):
        for num in (1, 2):
            fused(NUMBA, make_images(num, SIDE, SIDE, torch.uint8), ops, make_draws(ops, num, as_tensors))
    assert len(cpu_geometric.walks.signatures) == len(cpu_warped.pairs.signatures) == 1
