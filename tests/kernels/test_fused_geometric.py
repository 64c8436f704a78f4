"""Fused tiles and turns against plain slices and numpy.rot90 of each image, normalised in float64."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from fastpsl.kernels.colour import Grey
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused_cuda import geometric
from fastpsl.kernels.geometry import AllTurns, Flip, Rotate45, Rotate90
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.normalise import normalise, out_shape
from tests.slow import slow

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Without a GPU the interpreter runs the kernels.
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
Ops = tuple[object, ...]
Draws = Sequence[dict[str, Tensor]]
Compare = Callable[[Tensor, Tensor], None]
Make = Callable[..., Tensor]


def make_draws(ops: Ops, num: int) -> Draws:
    """Return the operations' draws, with every other image flipped and all turns in rotation."""
    keys = Keys(5, 1, np.arange(num, dtype=np.int64))
    draws = [op.draw(keys) for op in ops]  # type: ignore[attr-defined]
    for draw in draws:
        if "flip" in draw:
            draw["flip"] = keys.indices % 2 == 0
        elif "turns" in draw and draw["turns"].ndim == 1:
            draw["turns"] = (keys.indices + 1) % 4 if getattr(ops[0], "num", 4) == 4 else keys.indices % 2 * 2
    return [{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in draw.items()} for draw in draws]


def plain(images: Tensor, ops: Ops, draws: Draws) -> Tensor:
    """Return float64 [N, 3, h, w], computed image by image."""
    out: list[np.ndarray] = []
    for i, image in enumerate(images.numpy()):
        op, draw = ops[-1], draws[-1]
        if len(ops) == 2 and draws[0]["flip"][i]:
            image = image[:, :, ::-1]
        if isinstance(op, JigsawTiles):
            for cell, (y, x) in enumerate(draw["offsets"][i].tolist()):
                top, left = cell // op.grid * op.cell_px + y, cell % op.grid * op.cell_px + x
                out.append(image[:, top : top + op.tile_px, left : left + op.tile_px])
        else:
            out += [np.rot90(image, turns, (1, 2)) for turns in np.atleast_1d(draw["turns"][i].numpy())]
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return torch.from_numpy((np.stack(out) / 255 - mean) / std)


def fused(
    images: Tensor,
    ops: Ops,
    draws: Draws,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Run the fused kernel, with the result between images that must not change."""
    shape = out_shape(ops, images.shape)
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, dtype=dtype, device=DEVICE)
    whole = whole.contiguous(memory_format=torch.channels_last)
    device_draws = [{k: v.to(DEVICE) for k, v in draw.items()} for draw in draws]
    geometric.run(images.to(DEVICE), ops, device_draws, mean, std, whole[1:-1])
    assert whole[0].isnan().all() and whole[-1].isnan().all()
    assert not whole[1:-1].isnan().any()
    return whole[1:-1].cpu()


JIGSAWS = [
    (JigsawTiles(num_permutations=500), (1, 225, 225)),  # PSL
    (JigsawTiles(3, 11, 8), (2, 33, 34)),
    (JigsawTiles(2, 7, 7), (3, 15, 14)),
    (JigsawTiles(1, 5, 2), (2, 5, 9)),
    (JigsawTiles(1, 71, 66), (2, 71, 73)),  # more than a program handles, in both directions
    (JigsawTiles(5, 3, 1), (1, 15, 15)),
]


@pytest.mark.parametrize("flip", [slow(()), (Flip(),)], ids=["", "flip"])
@pytest.mark.parametrize(("op", "shape"), JIGSAWS)
def test_tiles_are_slices(
    op: JigsawTiles, shape: tuple[int, ...], flip: Ops, make_images: Make, assert_fused_close: Compare
) -> None:
    images = make_images(*shape, torch.uint8)
    ops = (*flip, op)
    draws = make_draws(ops, shape[0])
    assert_fused_close(fused(images, ops, draws), plain(images, ops, draws))


TURNS = [Rotate90(4), Rotate90(2), Rotate45(), AllTurns(4), AllTurns(2)]


@pytest.mark.parametrize("op", TURNS, ids=repr)
@pytest.mark.parametrize("side", [1, *map(slow, (7, 32)), 33, slow(36)])
def test_turns_are_numpys(op: object, side: int, make_images: Make, assert_fused_close: Compare) -> None:
    """Squares of one program's size and more, with sides that are and are not multiples of four."""
    num = 2 if isinstance(op, AllTurns) else 4
    images = make_images(num, side, side, torch.uint8)
    draws = make_draws((op,), num)
    assert_fused_close(fused(images, (op,), draws), plain(images, (op,), draws))


@pytest.mark.parametrize("op", [Rotate90(2), AllTurns(2)], ids=repr)
@pytest.mark.parametrize("size", [(5, 9), (34, 3), (40, 36)])
def test_half_turns_of_other_shapes(
    op: object, size: tuple[int, int], make_images: Make, assert_fused_close: Compare
) -> None:
    images = make_images(3, *size, torch.uint8)
    draws = make_draws((op,), 3)
    assert_fused_close(fused(images, (op,), draws), plain(images, (op,), draws))


EVERY: list[Ops] = [(JigsawTiles(3, 11, 8),), (Flip(), JigsawTiles(3, 11, 8)), *((op,) for op in TURNS)]
every_op = pytest.mark.parametrize("ops", EVERY, ids=lambda ops: " ".join(map(repr, ops)))


@every_op
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        *map(slow, (torch.float32, torch.bfloat16)),
    ],
)
def test_equals_the_operations_themselves(
    ops: Ops, dtype: torch.dtype, make_images: Make, assert_fused_close: Compare
) -> None:
    images = make_images(2, 33, 33, torch.uint8)
    draws = make_draws(ops, 2)
    expected = images
    for op, draw in zip(ops, draws, strict=True):
        expected = op(expected, draw)  # type: ignore[operator]
    out = fused(images, ops, draws, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    wanted = normalise(expected, MEAN, STD, torch.float32)
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        # Triton's interpreter truncates where a GPU rounds.
        wanted = (wanted.view(torch.int32) & -(2**16)).view(torch.float32)
    assert_fused_close(out, wanted.to(dtype))


@every_op
@pytest.mark.parametrize("batch", [0, 1])
def test_few_images(ops: Ops, batch: int, make_images: Make, assert_fused_close: Compare) -> None:
    images = make_images(batch, 33, 33, torch.uint8)
    draws = make_draws(ops, batch)
    out = fused(images, ops, draws)
    if batch:
        assert_fused_close(out, plain(images, ops, draws))
    else:
        assert out.shape == out_shape(ops, images.shape) and len(out) == 0


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda x: x.contiguous(),
    "a part": lambda x: torch.cat([x, x], 3)[:, :, :, : x.shape[3]],
    "every other": lambda x: x.repeat_interleave(2, 0)[::2],
    "turned": lambda x: x.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3),
    "one, expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("ops", EVERY[1:3], ids=repr)
@pytest.mark.parametrize(
    "layout", ["a part", "turned", "one, expanded", *map(slow, ("channels first", "every other"))]
)
def test_any_strides(ops: Ops, layout: str, make_images: Make, assert_fused_close: Compare) -> None:
    images = LAYOUTS[layout](make_images(2, 33, 33, torch.uint8))
    before, draws = images.clone(), make_draws(ops, 2)
    assert_fused_close(fused(images, ops, draws), plain(images, ops, draws))
    assert torch.equal(images, before)


@pytest.mark.parametrize("ops", [slow(EVERY[0]), *EVERY[1:4], *map(slow, EVERY[4:])], ids=repr)
def test_draws_of_any_strides(ops: Ops, make_images: Make, assert_fused_close: Compare) -> None:
    images, draws = make_images(3, 33, 33, torch.uint8), make_draws(ops, 3)
    apart = [{k: torch.stack([v, v.flip(0)], -1)[..., 0] for k, v in draw.items()} for draw in draws]
    assert_fused_close(fused(images, ops, apart), plain(images, ops, draws))


def test_what_fits() -> None:
    tiles = JigsawTiles()
    for ops in EVERY:
        assert geometric.fits(ops)
    for others in [(), (Flip(),), (Grey(),), (tiles, Flip()), (AllTurns(4), Flip()), (Flip(), Grey(), tiles)]:
        assert not geometric.fits(others)


@pytest.mark.parametrize("op", [Rotate90(4), Rotate45(), AllTurns(4), JigsawTiles(2, 8, 4)], ids=repr)
def test_what_the_operation_refuses_is_refused_in_its_words(op: object, make_images: Make) -> None:
    images = make_images(2, 15, 20, torch.uint8)
    with pytest.raises(ValueError) as op_error:
        op(images, make_draws((op,), 2)[0])  # type: ignore[operator]
    with pytest.raises(ValueError) as module_error:
        out_shape((op,), images.shape)
    assert str(module_error.value) == str(op_error.value) and "15 x 20 px given" in str(module_error.value)


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("which", ["mean", "std"])
def test_two_percent_of_a_constant_are_seen(
    which: str, channel: int, make_images: Make, assert_fused_close: Compare
) -> None:
    images, ops = make_images(2, 9, 9, torch.uint8), (AllTurns(2),)
    draws = make_draws(ops, 2)
    moved = {"mean": list(MEAN), "std": list(STD)}
    moved[which][channel] *= 1.02
    out = fused(images, ops, draws, torch.float16, **moved)
    with pytest.raises(AssertionError, match="beyond the relative tolerance"):
        assert_fused_close(out, plain(images, ops, draws))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs CUDA")
@every_op
def test_the_host_never_waits(ops: Ops, make_images: Make) -> None:
    images = make_images(3, 33, 33, torch.uint8).to(DEVICE)
    draws = [{k: v.to(DEVICE) for k, v in draw.items()} for draw in make_draws(ops, 3)]
    out = torch.empty(out_shape(ops, images.shape), device=DEVICE)
    out = out.contiguous(memory_format=torch.channels_last)
    torch.cuda.set_sync_debug_mode("error")
    try:
        geometric.run(images, ops, draws, MEAN, STD, out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
