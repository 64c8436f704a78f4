"""The CPU's fused moves, tiles, turns, holes and pairs against the operations one by one, on equal draws."""

import threading

import numpy as np
import pytest
import torch

from fastpsl.kernels import geometry
from fastpsl.kernels.colour import Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused import module_for
from fastpsl.kernels.fused_cpu import geometric, warped
from fastpsl.kernels.geometry import AllTurns, Flip, Hole, Rotate45, Rotate90, Shift, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.normalise import normalise, out_shape
from tests.kernels.close_calls import close_calls, one_by_one

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODULES = (geometric, warped)
SHIFT, FLIP, SIDE = Shift(3), Flip(), 13
TILES, SMALL_TILES = JigsawTiles(3, 4, 3), JigsawTiles(2, 5, 5)
CHAINS = {
    "tiles": (TILES,),
    "flip, tiles": (FLIP, TILES),
    "shift, flip, tiles": (SHIFT, FLIP, SMALL_TILES),
    "one of four turns": (Rotate90(4),),
    "one of two turns": (Rotate90(2),),
    "turns by 45": (Rotate45(),),
    "all turns": (AllTurns(4),),
    "rotation": (SHIFT, FLIP, AllTurns(4)),
    "flip, half turns": (FLIP, AllTurns(2)),
    "shift": (SHIFT,),
    "plain": (SHIFT, FLIP),
    "hole": (Hole(0.4),),
    "context": (SHIFT, FLIP, Hole(0.5, (1.0, 0.0, 0.501))),
    "AET": (SHIFT, FLIP, WarpPair(SIDE)),
    "flip, affine": (FLIP, WarpPair(SIDE, "affine")),
    "pair": (WarpPair(SIDE),),
}
SQUARE = {"one of four turns", "turns by 45", "all turns", "rotation", "AET", "flip, affine", "pair"}
every_chain = pytest.mark.parametrize("name", CHAINS)


def make_draws(ops, num, as_tensors):
    """Return the operations' draws, with every other image flipped and all turns in rotation."""
    keys = Keys(5, 1, np.arange(num, dtype=np.int64))
    draws = [as_tensors(op.draw(keys)) for op in ops]
    for op, draw in zip(ops, draws, strict=True):
        if "flip" in draw:
            draw["flip"] = torch.arange(num) % 2 == 0
        elif "turns" in draw and draw["turns"].ndim == 1:
            draw["turns"] = torch.arange(num) % 2 * 2 if op == Rotate90(2) else (torch.arange(num) + 1) % 4
    return draws


def fused(images, ops, draws, dtype=torch.float32, mean=MEAN, std=STD):
    """Run the fused kernel, with the result between images that must not change."""
    module = module_for(MODULES, ops)
    assert module is not None
    shape = out_shape(ops, images.shape)
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, dtype=dtype)
    whole = whole.contiguous(memory_format=torch.channels_last)
    module.run(images, ops, draws, mean, std, whole[1:-1])
    assert whole[0].isnan().all() and whole[-1].isnan().all()
    assert not whole[1:-1].isnan().any()
    return whole[1:-1]


@pytest.fixture
def check(assert_fused_close):
    """Return a check that `out` equals the operations one after the other.

    Values that are rounded from near a half may be off by a level.
    """

    def compare(out, images, ops, draws):
        expected = normalise(one_by_one(images, ops, draws), MEAN, STD, out.dtype)
        close = close_calls(images, ops, draws)
        assert close.sum() <= 0.02 * close.numel()
        level = 1.2 / (255 * min(STD))
        assert torch.allclose(out[close].float(), expected[close].float(), rtol=2**-7, atol=level)
        assert_fused_close(torch.where(close, expected, out), expected)

    return compare


@every_chain
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num", [0, 1, 9])
def test_values_are_the_plain_path_s(name, dtype, num, make_images, as_tensors, check):
    ops, images = CHAINS[name], make_images(num, SIDE, SIDE if name in SQUARE else SIDE + 4, torch.uint8)
    before, draws = images.clone(), make_draws(ops, num, as_tensors)
    out = fused(images, ops, draws, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    assert bool(len(out)) == bool(num) and torch.equal(images, before)
    check(out, images, ops, draws)


def test_every_shift(make_images, as_tensors, check):
    """All shifts that max_px allows, of images so small that some become black; also flipped and turned."""
    moves = torch.cartesian_prod(torch.arange(7), torch.arange(7)).repeat_interleave(2, 0)
    images = make_images(len(moves), 2, 2, torch.uint8)
    for ops in ((SHIFT, FLIP), (SHIFT, FLIP, AllTurns(4)), (SHIFT, FLIP, WarpPair(2))):
        draws = make_draws(ops, len(moves), as_tensors)
        draws[0]["shift"] = moves
        check(fused(images, ops, draws), images, ops, draws)
    assert (one_by_one(images, (SHIFT,), draws[:1])[::2].flatten(1).amax(1) == 0).any()


def test_where_a_copy_comes_from_nowhere(make_images, as_tensors, check):
    """Grey lies outside the source, on the horizon and behind it; half a pixel inside, the edge's pixels."""
    ops, images = (WarpPair(8),), make_images(4, 8, 8, torch.uint8)
    draws = make_draws(ops, 4, as_tensors)
    draws[0]["matrix"] = torch.tensor(
        [
            [[1, 0, 20], [0, 1, 0], [0, 0, 1]],  # all outside
            [[1, 0, 0], [0, 1, 0], [1, 0, -3.5]],  # w = 0 at x = 3.5, below 0 left of it
            [[0.9, 0, 0], [0, 0.9, 0.2], [0, 0, 1]],
            [[1, 0, -0.25], [0, 1, 0.25], [0, 0, 1]],
        ],
        dtype=torch.float32,
    )
    check(fused(images, ops, draws), images, ops, draws)
    copies = one_by_one(images, ops, draws)[1::2]
    assert (copies[0] == 128).all() and (copies[1] == 128).any() and (copies[1] != 128).any()


@every_chain
def test_any_strides(name, make_images, as_tensors):
    """The images and the draws have any strides."""
    ops, large = CHAINS[name], make_images(4, SIDE, SIDE + 3, torch.uint8)
    draws, images = make_draws(ops, 2, as_tensors), large[::2, :, :, 3:]
    apart = [{k: torch.stack([v, v.flip(0)], -1)[..., 0] for k, v in draw.items()} for draw in draws]
    assert torch.equal(fused(images, ops, apart), fused(images.contiguous(), ops, draws))


@pytest.mark.parametrize("name", ["flip, tiles", "rotation", "AET"])
def test_threads_change_nothing(name, make_images, as_tensors, monkeypatch):
    """Neither torch's number of threads nor concurrent callers change a bit."""
    monkeypatch.setattr(geometric, "_VALUES_PER_THREAD", 1)
    monkeypatch.setattr(warped, "_PIXELS_PER_THREAD", 1)
    ops, images = CHAINS[name], make_images(40, SIDE, SIDE, torch.uint8)
    draws, threads_before = make_draws(ops, 40, as_tensors), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = fused(images, ops, draws)
        torch.set_num_threads(2)
        results = [fused(images, ops, draws)]
        callers = [
            threading.Thread(target=lambda: results.append(fused(images, ops, draws))) for _ in range(3)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
    finally:
        torch.set_num_threads(threads_before)
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)


def test_which_operations_fit():
    assert all(module_for(MODULES, ops) for ops in CHAINS.values())
    for others in [
        (), (FLIP,), (FLIP, SHIFT), (Grey(),), (TILES, FLIP), (AllTurns(4), FLIP), (Hole(), FLIP),
        (FLIP, Grey(), TILES), (SHIFT, Grey()), (Hole(), AllTurns(4)), (WarpPair(8), FLIP),
        (WarpPair(8), Hole()),
    ]:  # fmt: skip
        assert not module_for(MODULES, others)


@pytest.mark.parametrize(
    ("ops", "size"),
    [
        ((JigsawTiles(2, 8, 4),), (15, 20)),
        ((FLIP, AllTurns(4)), (8, 9)),
        ((Rotate45(),), (8, 9)),
        ((Rotate90(4),), (8, 9)),
        ((FLIP, Hole(0.05)), (8, 8)),
        ((Hole(0.5, (0.5,)),), (8, 8)),
        ((WarpPair(8),), (8, 9)),
    ],
)
def test_what_the_operation_refuses_is_refused_in_its_words(ops, size, make_images, as_tensors):
    images = make_images(2, *size, torch.uint8)
    with pytest.raises(ValueError) as op_error:
        one_by_one(images, ops, make_draws(ops, 2, as_tensors))
    module = module_for(MODULES, ops)
    assert module is not None
    with pytest.raises(ValueError) as module_error:
        out_shape(ops, images.shape)
    assert str(module_error.value) == str(op_error.value)


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("which", ["mean", "std"])
def test_two_percent_of_a_constant_are_seen(which, channel, make_images, as_tensors, check):
    images = make_images(2, SIDE, SIDE, torch.uint8)
    moved = {"mean": list(MEAN), "std": list(STD)}
    moved[which][channel] *= 1.02
    for name in ("plain", "pair"):
        draws = make_draws(CHAINS[name], 2, as_tensors)
        with pytest.raises(AssertionError):
            check(fused(images, CHAINS[name], draws, **moved), images, CHAINS[name], draws)


def test_the_loops_constant_is_that_of_the_operation():
    assert warped._GREY == geometry._GREY


def test_it_is_compiled_once_for_all_operations(make_images, as_tensors):
    for ops in CHAINS.values():
        for num in (1, 2):
            fused(make_images(num, SIDE, SIDE, torch.uint8), ops, make_draws(ops, num, as_tensors))
    assert len(geometric.walks.signatures) == len(warped.pairs.signatures) == 1
