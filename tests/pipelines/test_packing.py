"""Packed tensors come out of the buffer unchanged, also from a copy of it."""

import pytest
import torch
from torch import Tensor

from fastpsl.kernels.geometry import Flip, Rotate90
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.pipelines.loader.batch import ALIGNMENT, Batch, pack, unpack

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = [
    torch.arange(7),
    torch.rand(5, generator=GENERATOR) < 0.5,
    torch.rand((3, 2), generator=GENERATOR),
    torch.empty((0, 4), dtype=torch.int64),
    torch.randint(0, 255, (11,), dtype=torch.uint8, generator=GENERATOR),
    torch.rand((4, 6), generator=GENERATOR).t(),  # not contiguous
    torch.rand((), generator=GENERATOR, dtype=torch.float64),
    torch.rand((2, 3), generator=GENERATOR).half(),
]


def test_what_is_unpacked_is_what_was_packed_and_aligned() -> None:
    buffer, starts = pack(TENSORS)
    moved = buffer.clone()  # like a copy on a device
    buffer.zero_()
    unpacked = unpack(moved, starts, TENSORS)
    for tensor, view in zip(TENSORS, unpacked, strict=True):
        assert view.dtype == tensor.dtype and torch.equal(view, tensor)
        assert view.is_contiguous() and view.untyped_storage().data_ptr() == moved.data_ptr()
        assert (view.storage_offset() * view.element_size()) % ALIGNMENT == 0
    assert len(buffer) < sum(tensor.nbytes for tensor in TENSORS) + ALIGNMENT * len(TENSORS)


def test_nothing_is_packed_to_nothing() -> None:
    buffer, starts = pack([])
    assert len(buffer) == 0 and unpack(buffer, starts, []) == []


@pytest.mark.parametrize("num", [0, 3])
def test_a_batch_moves_with_everything_it_has(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, without pinning and without the copy to a device."""
    copies: list[int] = []

    def copied(tensor: Tensor, device: object, non_blocking: bool = False) -> Tensor:
        copies.append(tensor.nbytes)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "is_pinned", lambda _: True)
    monkeypatch.setattr(Tensor, "to", copied)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **more: empty(*size, **more))
    draws = [
        ({"flip": torch.rand(num) < 0.5}, {}, {"order": torch.rand(num, 4), "grey": torch.rand(num)}),
        (),
    ]
    images = [torch.full((num, 3, 4, 4), view, dtype=torch.uint8) for view in range(2)]
    batch = Batch(images, draws, torch.arange(num), torch.full((num,), -1), 3, 4)  # type: ignore[arg-type]
    moved = batch.to(torch.device("meta"))
    assert len(copies) == 2 + 1  # one per view, and one for the rest
    assert (moved.epoch, moved.step) == (3, 4)
    for original, copy in zip(batch.tensors(), moved.tensors(), strict=True):
        assert original.dtype == copy.dtype and torch.equal(original, copy)
        assert num == 0 or original.data_ptr() != copy.data_ptr()
    assert [[list(draw) for draw in view] for view in moved.draws] == [[["flip"], [], ["order", "grey"]], []]
    assert len({tensor.untyped_storage().data_ptr() for tensor in moved._small()}) == 1


def test_a_batch_finds_an_ops_draw_by_its_type() -> None:
    flips, turns = torch.tensor([True, False]), torch.tensor([3, 1])
    draws = [({"flip": flips}, {"turns": turns}), ({"flip": ~flips},)]
    ops = [(Flip(), Rotate90()), (Flip(),)]
    batch = Batch([], draws, torch.arange(2), torch.arange(2), 0, 0, ops=ops)  # type: ignore[arg-type]
    for same in (batch, batch.first(2)):
        assert torch.equal(same.draw(Rotate90)["turns"], turns)
    with pytest.raises(AssertionError, match=r"Flip stands 2 times, not once, in .*'Flip', 'Rotate90'"):
        batch.draw(Flip)
    with pytest.raises(AssertionError, match="JigsawTiles stands 0 times"):
        batch.draw(JigsawTiles)
