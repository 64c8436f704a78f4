"""The engines: every batch gets its own images, in memory that is pinned for a GPU and used again.

There need not be a GPU. Its copies are made on the host, by numpy, which `HostCopies` does not see.
"""

import errno
import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
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
from fastpsl.kernels.device_crops import fused_form
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders import memory
from fastpsl.pipelines.decoders.codes import READING, REASONS
from fastpsl.pipelines.decoders.dali_pipeline import put
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Request, SyntheticDecoder
from fastpsl.pipelines.interface.dataset import SampleTable
from fastpsl.pipelines.loader import engines
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.engines import PendingBatch, QueueEngine, ThreadEngine
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.stages import LoaderSpec
from fastpsl.pipelines.views import ViewSpec
from tests.fake_cuda import fake_cuda
from tests.pipelines.threads import loader_threads, wait_for_the_end_of_loader_threads
from tests.programs import run

VIEWS = [ViewSpec(RandomResizedCrop(8)), ViewSpec(RandomResizedCrop(4))]
NUM, BATCH = 60, 4


class Numbered(BatchDecoder):
    """A decoder of images with the value of the sample's index.

    `act` is called with each step's name and indices.
    """

    name, reasons, depth = "numbered", REASONS, 3

    def __init__(self, act: Callable[[str, list[int]], None]) -> None:
        self.act = act
        self.submitted: deque[tuple[np.ndarray, list[int]]] = deque()

    @override
    def begin(self, rows: SampleTable) -> list[Any]:
        return [None] * len(rows.indices)

    @override
    def encode(self, rows: SampleTable, encoded: list[Any], part: slice) -> None:
        self.act("encode", rows.indices[part].tolist())
        encoded[part] = rows.indices[part].tolist()

    @override
    def submit(
        self, rows: SampleTable, encoded: list[Any], boxes: list[np.ndarray], sizes_px: list[int]
    ) -> None:
        assert encoded == rows.indices.tolist()
        self.act("submit", encoded)
        self.submitted.append((rows.indices, sizes_px))

    @override
    def collect(self) -> tuple[np.ndarray, list[Tensor]]:
        indices, sizes_px = self.submitted.popleft()
        self.act("collect", indices.tolist())
        numbers = torch.from_numpy(indices.astype(np.uint8))[:, None, None, None]
        return np.zeros(len(indices), np.int8), [numbers.repeat(1, size, size, 3) for size in sizes_px]

    @override
    def close(self) -> None:
        self.act("close", [])


@contextmanager
def make_loader(act: Callable[[str, list[int]], None], **options: Any) -> Iterator[Loader]:
    with Loader(
        Synthetic(NUM), VIEWS, batch_size_per_rank=BATCH, train=False, num_threads=2, **options
    ) as loader:
        loader._engine.close(1)
        loader.decoder = Numbered(act)
        loader._engine = QueueEngine(loader.decoder, 2)
        yield loader


def assert_own_images(loader: Loader) -> None:
    batches = list(loader.epoch(0))
    assert len(batches) == NUM // BATCH
    for batch in batches:
        for images in batch.images:
            assert images.flatten(1).unique(dim=1).flatten().tolist() == batch.indices.tolist()


def test_a_batch_that_is_submitted_as_the_consumer_leaves_is_no_other_batchs() -> None:
    submitting, has_left = threading.Event(), threading.Event()

    def act(what: str, indices: list[int]) -> None:
        if what == "submit" and 5 in indices and not has_left.is_set():
            submitting.set()
            has_left.wait(240)

    with make_loader(act) as loader:
        loader.decoder.depth = 1  # type: ignore[union-attr, misc]
        epoch = loader.epoch(0)
        next(epoch)
        assert submitting.wait(240)
        threading.Timer(0.1, has_left.set).start()
        epoch.close()
        assert_own_images(loader)


def test_the_decoder_has_all_it_can_hold_while_a_batch_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default prefetch and slow reads; otherwise a decoder's stages would not overlap."""
    monkeypatch.setattr(engines, "_READ_WAIT_S", 240.0)
    started, in_hands = threading.Semaphore(0), []

    def act(what: str, indices: list[int]) -> None:
        if what == "encode":
            time.sleep(0.002)
        elif what == "collect":
            in_hands.append(1 + len(loader.decoder.submitted))  # type: ignore[union-attr]
            # The consumer has started three more batches while it waits for this one.
            if indices[0] + 4 * BATCH <= NUM:
                assert started.acquire(timeout=240)

    with make_loader(act) as loader:
        start = loader._engine.start

        def counted(pending: PendingBatch) -> None:
            start(pending)
            if pending.step >= loader.prefetch_batches - 1:
                started.release()

        loader._engine.start = counted  # type: ignore[method-assign]
        assert_own_images(loader)
    assert loader.prefetch_batches == 4 and in_hands[1:-2] == [loader.decoder.depth] * (NUM // BATCH - 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("where", ["encode", "submit", "collect"])
@pytest.mark.parametrize("error", [SystemExit(3), MemoryError("none left")])
def test_an_error_is_raised_in_its_own_batch_and_the_others_live(where: str, error: BaseException) -> None:
    raised: list[str] = []

    def act(what: str, indices: list[int]) -> None:
        if what == where and 9 in indices and not raised:
            raised.append(what)
            raise error

    with make_loader(act) as loader:
        epoch = loader.epoch(0)
        assert [next(epoch).step for _ in range(2)] == [0, 1]
        with pytest.raises(type(error)):
            next(epoch)
        assert_own_images(loader)


def test_an_error_of_padding_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, **__: object) -> Tensor:
        raise MemoryError("none left")

    with Loader(
        Synthetic(6), VIEWS, batch_size_per_rank=BATCH, train=False, num_threads=1, timeout_s=240
    ) as loader:
        loader._engine.close(1)
        loader.decoder = Numbered(lambda *_: None)
        loader._engine = QueueEngine(loader.decoder, 1)
        monkeypatch.setattr(torch, "zeros", zeros)
        epoch = loader.epoch(0)
        next(epoch)
        with pytest.raises(MemoryError):
            next(epoch)


@pytest.mark.parametrize("where", ["encode", "submit", "collect"])
def test_what_hangs_is_raised_within_the_timeout_and_ends_with_it(where: str) -> None:
    release, closed = threading.Event(), threading.Event()
    let_go: list[bool] = []

    def act(what: str, indices: list[int]) -> None:
        if what == "close":
            closed.set()
        elif what == where and 9 in indices:
            let_go.append(release.wait(240))

    with make_loader(act, timeout_s=0.5, prefetch_batches=6) as loader:
        # The step depends on the place, because later batches wait for the batch that is being submitted.
        with pytest.raises(TimeoutError, match=r"step [0-2]: no batch within 0.5 s, waiting for synthetic"):
            list(loader.epoch(0))
        assert not let_go  # the loader did not wait for the call
    release.set()
    assert closed.wait(240)  # the decoder is closed in the end
    wait_for_the_end_of_loader_threads()


def break_decoder(loader: Loader, act: Callable[[SampleTable], None]) -> None:
    """Replace the loader's decoder by the test's function and leave everything else."""

    def decode_part(request: Request, part: slice) -> None:
        act(request.rows.part(part))

    loader.decoder.decode_part = decode_part  # type: ignore[union-attr, method-assign]


def test_a_stuck_thread_is_raised_within_the_timeout() -> None:
    release = threading.Event()
    let_go: list[bool] = []

    def act(rows: SampleTable) -> None:
        if 5 in rows.indices:
            let_go.append(release.wait(240))

    with Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, train=False, num_threads=2) as loader:
        break_decoder(loader, act)
        epoch = loader.epoch(0)
        next(epoch)
        loader.timeout_s = 0.5
        with pytest.raises(
            TimeoutError,
            match="step 1: no batch within 0.5 s, waiting for synthetic sample 4, synthetic sample 5",
        ):
            next(epoch)
        assert not let_go  # the loader did not wait for the call
        with pytest.raises(ValueError, match="the loader is closed"):
            loader.epoch(0)
    release.set()
    wait_for_the_end_of_loader_threads()


def test_the_samples_that_are_read_are_named_where_a_wait_is_too_long() -> None:
    release = threading.Event()

    def decode_part(request: Request, part: slice) -> None:
        request.codes[part.start + 2] = READING
        release.wait(240)

    with Loader(Synthetic(64), VIEWS, batch_size_per_rank=8, train=False, num_threads=1) as loader:
        loader.decoder.decode_part = decode_part  # type: ignore[union-attr, method-assign]
        loader.timeout_s = 0.5
        with pytest.raises(TimeoutError, match="waiting for synthetic sample 2;"):
            next(loader.epoch(0))
    release.set()


def test_a_loader_has_the_threads_that_its_decoder_wants() -> None:
    meet = threading.Barrier(24)

    def act(rows: SampleTable) -> None:
        if rows.indices[0] >= 24:
            meet.wait(240)

    with Loader(Synthetic(48), VIEWS, batch_size_per_rank=1, train=False, num_threads=2) as loader:
        loader.prefetch_batches = 24
        break_decoder(loader, act)
        loader.decoder.wanted_threads = lambda num: 12 * num  # type: ignore[union-attr, method-assign]
        assert len(list(loader.epoch(0))) == 48 and len(loader_threads()) == 24
    assert loader_threads() == []


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), MemoryError("none left"), OSError(5, "Input/output error"), OSError(errno.ETIMEDOUT, "")],
)
def test_a_thread_that_dies_is_raised_and_the_others_live(error: BaseException) -> None:
    def act(rows: SampleTable) -> None:
        if 9 in rows.indices:
            raise error

    with Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, train=False, num_threads=2) as loader:
        break_decoder(loader, act)
        epoch = loader.epoch(0)
        assert [next(epoch).step for _ in range(2)] == [0, 1]
        with pytest.raises(type(error)):
            next(epoch)
        assert len(loader_threads()) == 2
        assert len(list(loader.epoch(0, first_step=3))) == 13
    assert loader_threads() == []


def test_nothing_runs_on_after_an_epoch_is_left() -> None:
    running = []

    def act(rows: SampleTable) -> None:
        running.append(1)
        time.sleep(0.05)
        running.pop()

    with Loader(Synthetic(640), VIEWS, batch_size_per_rank=64, num_threads=2) as loader:
        break_decoder(loader, act)
        epoch = loader.epoch(0)
        next(epoch)
        epoch.close()  # type: ignore[attr-defined]
        for _ in range(5):
            assert not running  # so the caller may close the data
            time.sleep(0.02)


def test_an_epoch_of_a_closed_loader_says_so() -> None:
    loader = Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, num_threads=2, timeout_s=3600)
    epoch = loader.epoch(0)
    next(epoch)
    loader.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        list(epoch)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_loader_that_is_dropped_ends_its_threads() -> None:
    loader = Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, num_threads=2)
    assert len(list(loader.epoch(0))) == 16
    assert len(loader_threads()) == 2
    del loader
    gc.collect()
    wait_for_the_end_of_loader_threads()


STUCK = """
import threading, time
from contextlib import suppress
from tests.pipelines.test_engines import BATCH, NUM, VIEWS, Loader, Synthetic, make_loader
def act(what, indices):
    if what == "collect" and 9 in indices:
        time.sleep(1000)
with suppress(TimeoutError), make_loader(act, timeout_s=0.3) as loader:
    list(loader.epoch(0))
    print("no time limit")
loader = Loader(Synthetic(NUM), VIEWS, batch_size_per_rank=BATCH, timeout_s=0.3)
loader.decoder.decode_part = lambda request, part: time.sleep(1000)
try:
    next(loader.epoch(0))
finally:
    threading._shutdown()  # as the interpreter does at its end: it waits for threads
"""


def test_threads_that_hang_do_not_hold_up_the_exit(tmp_path: Path) -> None:
    """Neither one in a batch's decoder nor one of the loader's."""
    (tmp_path / "stuck.py").write_text(STUCK)
    process = run(tmp_path / "stuck.py", timeout=240)
    assert (process.returncode, process.stdout) == (1, "")
    assert "TimeoutError: epoch 0, step 0: no batch within 0.3 s" in process.stderr.splitlines()[-1]


SIZES_PX = 16, 24
NUM_COPIED = 6
LARGE_VIEWS = tuple(ViewSpec(RandomResizedCrop(size), (Flip(),)) for size in SIZES_PX)
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
    spec = LoaderSpec(Synthetic(40), LARGE_VIEWS, 0, decoder, "raise", torch.device(device), copy_stream)
    pending = PendingBatch(spec, 0, 0, np.arange(NUM_COPIED), threading.Event())
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
    images = [NUM_COPIED * size * size * 3 for size in SIZES_PX]
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
