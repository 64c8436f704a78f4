"""A batch's way to a GPU: decoded into pinned memory, and copied from there, without copies on the host.

There need not be a GPU. Its copies are made on the host, by numpy, which `HostCopies` does not see.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fastpsl.engine.gpu import AsyncCopy
from fastpsl.engine.last_step import Snapshot
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.isotropic_batch import fused_form
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders import memory
from fastpsl.pipelines.decoders.dali_pipeline import put
from fastpsl.pipelines.decoders.decoder import SyntheticDecoder
from fastpsl.pipelines.loader import engines
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.engines import PendingBatch, ThreadEngine
from fastpsl.pipelines.loader.stages import LoaderSpec
from fastpsl.pipelines.views import ViewSpec
from tests.fake_cuda import fake_cuda

SIZES_PX = 16, 24
NUM = 6
VIEWS = tuple(ViewSpec(RandomResizedCrop(size), (Flip(),)) for size in SIZES_PX)
COPIES = {"copy_", "clone", "_to_copy", "_pin_memory", "contiguous", "cat", "stack"}
EMPTY = torch.empty


class HostCopies(TorchDispatchMode):
    """The sizes of the host's copies, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: list[int] = []

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") in COPIES:
            self.num_bytes.append(result.nbytes)
        return result


class Gpu:
    """A GPU whose copies are recorded: their addresses on the host, and whether that memory is pinned."""

    def __init__(self, patch: pytest.MonkeyPatch, has_pinned: bool) -> None:
        self.pinned: dict[int, Tensor] = {}
        self.copies: list[tuple[int, int, bool]] = []
        self._has_pinned = has_pinned
        patch.setattr(torch, "empty", self._empty)
        patch.setattr(Tensor, "is_pinned", lambda tensor: self._is_pinned(tensor))
        patch.setattr(Tensor, "pin_memory", lambda tensor: self._empty(tensor.shape, pin_memory=True))
        patch.setattr(Tensor, "to", lambda tensor, *to, **how: self._copied(tensor, *to, **how))
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        patch.setattr(LoaderSpec, "on_copy_stream", lambda _: nullcontext())
        patch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None))
        patch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(wait_event=lambda _: None))

    def _empty(self, *size: Any, pin_memory: bool = False, **more: Any) -> Tensor:
        if pin_memory and not self._has_pinned:
            raise RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`.")
        tensor = EMPTY(*size, **more)
        if pin_memory:
            self.pinned[tensor.data_ptr()] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def _copied(self, tensor: Tensor, device: object, non_blocking: bool = False) -> Tensor:
        assert non_blocking == tensor.is_pinned()
        self.copies.append((tensor.data_ptr(), tensor.nbytes, tensor.is_pinned()))
        return torch.from_numpy(tensor.numpy().copy(order="K"))


class Here:
    """A replacement for Workers without threads, because a dispatch mode sees its own thread only."""

    num_threads, closed = 1, False

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        function(*arguments)

    def grow(self, num_threads: int) -> None:
        pass


class Noting(SyntheticDecoder):
    """A decoder that notes where it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[int] = []

    @override
    def begin(self, rows: Any, boxes: Any, outs: list[np.ndarray]) -> Any:
        self.places = [out.ctypes.data for out in outs]
        return super().begin(rows, boxes, outs)


def loaded(decoder: Noting, device: str, copy_stream: Any) -> Batch:
    spec = LoaderSpec(Synthetic(40), VIEWS, 0, decoder, "raise", torch.device(device), copy_stream)
    pending = PendingBatch(spec, 0, 0, np.arange(NUM), threading.Event())
    ThreadEngine(decoder, 1).start(pending)
    return pending.result(1.0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(engines, "Workers", Here)
    monkeypatch.setattr(memory, "_has_warned", threading.Event())
    return monkeypatch


def test_images_are_decoded_into_pinned_memory_and_copied_once(here: pytest.MonkeyPatch) -> None:
    on_cpu = loaded(Noting(), "cpu", None)
    gpu, decoder = Gpu(here, has_pinned=True), Noting()
    with HostCopies() as host:
        batch = loaded(decoder, "cuda:0", "a stream")
    num_small = sum(tensor.nbytes for tensor in batch._small())
    images = [NUM * size * size * 3 for size in SIZES_PX]
    assert [num for _, num, _ in gpu.copies[:2]] == images and len(gpu.copies) == 2 + 1
    assert all(is_pinned for *_, is_pinned in gpu.copies)
    assert [place for place, *_ in gpu.copies[:2]] == decoder.places
    assert sum(host.num_bytes) == num_small  # each small tensor once, into the packed one
    for tensor, expected in zip(batch.tensors(), on_cpu.tensors(), strict=True):
        assert torch.equal(tensor, expected) and tensor.stride() == expected.stride()


def test_without_pinned_memory_the_batch_is_the_same_and_one_line_says_why(here: pytest.MonkeyPatch) -> None:
    on_cpu = loaded(Noting(), "cpu", None)
    gpu = Gpu(here, has_pinned=False)
    with pytest.warns(UserWarning, match=r"of pinned host memory \(CUDA error: out of memory Comp") as caught:
        batch = loaded(Noting(), "cuda:0", "a stream")
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert not any(is_pinned for *_, is_pinned in gpu.copies) and len(gpu.copies) == 2 + 1
    for tensor, expected in zip(batch.tensors(), on_cpu.tensors(), strict=True):
        assert torch.equal(tensor, expected) and tensor.stride() == expected.stride()


def copy_without_pinned_memory() -> None:
    with fake_cuda(has_pinned=False) as cuda:
        weights = torch.zeros(2, 8, 3, 3, device=cuda.device).to(memory_format=torch.channels_last)
        snapshot = Snapshot()
        copied, fetch = snapshot.take({"weights": weights})["weights"], AsyncCopy(weights)
        for tensor in (copied, fetch.values()):
            assert tensor.device.type == "cpu" and not tensor.is_pinned()
            assert tensor.shape == weights.shape and tensor.stride() == weights.stride()
        # The copy may be in flight all the same, so both wait for the device.
        assert snapshot._arrived is not None and fetch._arrived is not None
        images = [torch.zeros(4, 8, 8, 3, dtype=torch.uint8, device=cuda.device)]
        put(images, np.array([2, 0]), [images[0][:2]])
        assert fused_form(cuda.device) is not None


def test_without_pinned_memory_all_copies_use_other_memory_and_one_line_says_so(
    here: pytest.MonkeyPatch,
) -> None:
    with pytest.warns(UserWarning, match="of pinned host memory") as caught:
        copy_without_pinned_memory()
    assert len([each for each in caught if "pinned" in str(each.message)]) == 1
