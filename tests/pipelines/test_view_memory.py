"""Memory of arenas and views is used again when nothing refers to it; batches are packed into it."""

import gc
import os
import pickle
import resource
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Flip, Rotate90
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.pipelines.decoders import memory
from fastpsl.pipelines.decoders.memory import Arenas, ViewMemory
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.loader.batch import ALIGNMENT, Batch, pack, unpack
from fastpsl.pipelines.views import Op, ViewSpec
from tests.pipelines.threads import in_a_forked_process

SHAPE = (6, 3, 40, 30)
CPU = torch.device("cpu")


def taken(memory: ViewMemory) -> Tensor:
    (tensor,) = memory.empty([SHAPE], torch.float32)
    return tensor


def test_tensors_of_all_shapes_lie_side_by_side_in_channels_last_memory() -> None:
    shapes = [(5, 3, 7, 9), (0, 3, 4, 4), (2, 1, 3, 3), (4, 2, 8, 1)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensors = ViewMemory().empty(shapes, dtype)
        for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            assert tensor.shape == shape and tensor.dtype == dtype and tensor.data_ptr() % 64 == 0
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            tensor.fill_(number)
        assert all((tensor == number).all() for number, tensor in enumerate(tensors))
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


def graph_of(tensor: Tensor) -> Tensor:
    return torch.ones(1, requires_grad=True) * tensor


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "a slice": lambda tensor: tensor[4:, 1, ::3],
    "an array": lambda tensor: tensor.numpy()[2:],
    "a tensor by DLPack": lambda tensor: torch.from_dlpack(tensor)[5],
    "an array by DLPack": lambda tensor: np.from_dlpack(tensor),
    "a capsule": lambda tensor: torch.utils.dlpack.to_dlpack(tensor),
    "a graph": graph_of,
    "another dtype": lambda tensor: tensor.view(torch.int32).permute(0, 2, 3, 1).flatten(),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_memory_waits_for_its_last_holder(kind: str) -> None:
    memory = ViewMemory()
    tensor = taken(memory)
    holder, place = HOLDERS[kind](tensor), tensor.data_ptr()
    del tensor
    gc.collect()
    assert taken(memory).data_ptr() != place
    del holder
    gc.collect()
    assert place in {each.data_ptr() for each in [taken(memory), taken(memory)]}


def test_more_than_the_pool_keeps_is_allocated_and_then_freed() -> None:
    memory = ViewMemory()
    held = [taken(memory) for _ in range(12)]
    assert len({tensor.data_ptr() for tensor in held}) == 12
    held.clear()
    kept = memory._arenas._free
    assert len(kept) == 4
    for num in (1, 300, 7, 300, 2, 300, 300):  # such as the last batch of an evaluation
        tensors = [memory.empty([(num, *SHAPE[1:])], torch.float32) for _ in range(2)]
        del tensors
    assert len(kept) == 4 and sum(len(each) * 4 > 300 * 4 * 3600 for each in kept) <= 2


def test_a_forked_process_and_its_parent_share_nothing() -> None:
    memory = ViewMemory()
    held = [taken(memory).fill_(1)]
    place = held[0].data_ptr()

    def drop_and_write() -> int:
        held.clear()
        return taken(memory).fill_(2).data_ptr()

    assert in_a_forked_process(drop_and_write) == place  # in its own copy of the memory
    assert (held[0] == 1).all() and taken(memory).data_ptr() != place
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0 if (held[0] == 1).all() else 1)
    assert drop_and_write() == place
    os.write(writing, b"!")
    assert os.waitpid(child, 0)[1] == 0


def test_a_pickle_is_a_copy_of_the_tensor_alone() -> None:
    memory = ViewMemory()
    memory.empty([(500, *SHAPE[1:])], torch.float32)
    tensor = taken(memory).fill_(3)
    data = pickle.dumps(tensor)
    assert len(data) < tensor.nbytes + 2000
    copy, place = pickle.loads(data), tensor.data_ptr()
    del tensor
    again = taken(memory)
    assert again.data_ptr() == place
    again.fill_(4)
    assert (copy == 3).all()


def test_with_cuda_memory_is_torchs_pinned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not really pinned, because that needs a GPU."""
    pinned, empty = [], torch.empty

    def pageable(shape: tuple[int], *, pin_memory: bool, **more: Any) -> Tensor:
        pinned.append(empty(shape, **more))
        assert pin_memory
        return pinned[-1]

    monkeypatch.setattr(torch, "empty", pageable)
    memory = ViewMemory()
    taken(memory)
    assert not pinned
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    first, second = taken(memory), taken(memory)
    assert [buffer.data_ptr() for buffer in pinned] == [first.data_ptr(), second.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_are_made_in_inference_mode(dtype: torch.dtype) -> None:
    view = ViewSpec(RandomResizedCrop(96), (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1)))
    batch, threads_before = batch_of(64, view), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (expected,) = choose_augment("fused", [view], CPU).inputs(batch, [view], dtype)
        with torch.inference_mode():
            (result,) = choose_augment("fused", [view], CPU).inputs(batch, [view], dtype)
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(result, expected)


def batch_of(num: int, view: ViewSpec) -> Batch:
    side, keys = view.crop.size_px, Keys(0, 0, np.arange(num))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8))
    draws = tuple({name: torch.from_numpy(x) for name, x in op.draw(keys).items()} for op in view.ops)
    numbers = torch.arange(num)
    return Batch([images.permute(0, 3, 1, 2)], [draws], numbers, numbers, 0, 0, ops=[view.ops])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "ops",
    [(Flip(),), (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1)), (Flip(), JigsawTiles(2, 64, 60))],
    ids=["flip", "colour", "tiles"],
)
def test_no_memory_of_a_batchs_size_is_mapped_anew(ops: tuple[Op, ...], dtype: torch.dtype) -> None:
    """Faults are counted over batches of 24 MB and more in float32, far above malloc's threshold."""
    view = ViewSpec(RandomResizedCrop(128), ops)
    batch, augment = batch_of(130, view), choose_augment("auto", [view], CPU)
    assert augment.path == "fused"
    num_faults, inputs = [], []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        inputs = augment.inputs(batch, [view], dtype)  # the former ones are in use until this one is there
        num_faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    num_pages = inputs[0].nbytes // resource.getpagesize()
    assert sum(num_faults[3:]) < num_pages, num_faults  # one page for each page and batch would be five times


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_by_one_parts_have_the_whole_batchs_values(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastpsl.pipelines.loader.augment._PART_BYTES", 7 * 3 * 32 * 32)
    chains: tuple[tuple[Op, ...], ...] = (
        (), (Flip(), Lightness()), (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1)), (JigsawTiles(2, 16, 14),)
    )  # fmt: skip
    for ops in chains:
        num_channels = 1 if any(isinstance(op, Lightness) for op in ops) else 3
        view = ViewSpec(RandomResizedCrop(32), ops, (0.4,) * num_channels, (0.3,) * num_channels)
        for num in (0, 1, 16):
            batch = batch_of(num, view)
            (expected,) = batch.inputs([view], dtype)
            (result,) = choose_augment("torch", [view], CPU).inputs(batch, [view], dtype)
            assert torch.equal(result, expected) and result.dtype == dtype
            assert result.is_contiguous(memory_format=torch.channels_last)


def test_memory_is_used_again_when_its_last_holder_lets_it_go() -> None:
    arenas = Arenas()
    first, second = arenas.take(1000), arenas.take(10)
    places = [arena.memory.ctypes.data for arena in (first, second)]
    assert places[0] != places[1] and len(first.memory) >= 1000
    holder = [first]
    del first
    third = arenas.take(10)  # while `holder` keeps the first one
    assert third.memory.ctypes.data not in places
    holder.clear()
    assert arenas.take(1000).memory.ctypes.data == places[0]
    larger = arenas.take(5000)  # replaces memory that is too small
    assert len(larger.memory) >= 5000
    del second, third, larger
    sizes = [len(arenas.take(1).memory) for _ in range(3)]
    assert max(sizes) >= 5000 and len(arenas._free) == 3


def test_arrays_and_tensors_keep_their_arena_and_a_pool_keeps_no_more_than_its_limit() -> None:
    arenas = Arenas(limit=2)
    array = np.asarray(arenas.take(1000))
    part = torch.from_numpy(array).view(10, -1)[3, 5:7]
    part.fill_(7)
    place, inside = array.ctypes.data, part.data_ptr()
    del array
    assert arenas.take(1000).memory.ctypes.data != place and part.tolist() == [7, 7]
    assert inside - place == 3 * (1250 // 10) + 5
    del part
    assert arenas.take(1000).memory.ctypes.data == place
    held = [arenas.take(10) for _ in range(5)]
    held.clear()
    assert len(arenas._free) == 2


def test_pinned_memory_is_torchs_and_lives_as_long_as_its_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is not really pinned, because that needs a GPU."""
    calls, empty = [], torch.empty

    def pageable(num: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        calls.append((num, pin_memory))
        return empty(num, dtype=dtype)

    monkeypatch.setattr(torch, "empty", pageable)
    arenas = Arenas(pinned=True)
    arena = arenas.take(1000)
    assert calls == [(1250, True)] and arena.is_pinned and isinstance(arena.memory.base, torch.Tensor)
    assert arena.memory.ctypes.data == arena.memory.base.data_ptr()
    del arena
    assert arenas.take(1250).is_pinned and len(calls) == 1
    assert not Arenas().take(1000).is_pinned and len(calls) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is pinned memory")
def test_without_pinned_memory_arenas_are_not_pinned_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_has_warned", threading.Event())
    arenas = Arenas(pinned=True)
    with pytest.warns(UserWarning, match=r"^no 2,621,440 bytes of pinned host memory \(") as caught:
        held = [arenas.take(2 << 20), arenas.take(2 << 20)]
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert not any(arena.is_pinned for arena in held)
    assert [len(arena.memory) >= 2 << 20 for arena in held] == [True, True]


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
    assert repr(batch) == "Batch(2 samples)"
    shown = Batch(
        [torch.zeros(1, 3, 5, 4, dtype=torch.uint8)] * 2, [], torch.arange(1), torch.arange(1), 3, 4
    )
    assert repr(shown.of_step()) == "Batch(1 sample, uint8 [1, 3, 5, 4], uint8 [1, 3, 5, 4])"
    for same in (batch, batch.first(2)):
        assert torch.equal(same.draw(Rotate90)["turns"], turns)
    with pytest.raises(AssertionError, match=r"Flip stands 2 times, not once, in .*'Flip', 'Rotate90'"):
        batch.draw(Flip)
    with pytest.raises(AssertionError, match="JigsawTiles stands 0 times"):
        batch.draw(JigsawTiles)
