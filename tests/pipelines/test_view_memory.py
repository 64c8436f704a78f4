"""The memory of views: never handed out while anything refers to it, and used again when nothing does."""

import gc
import os
import pickle
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.lab import Lightness
from fastpsl.pipelines.decoders.memory import ViewMemory
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Op, ViewSpec
from tests.pipelines.forked import in_a_forked_process

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
