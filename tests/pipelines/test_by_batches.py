"""The engine for decoders of whole batches: every batch gets its own images, whatever happens around it."""

import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders.codes import REASONS
from fastpsl.pipelines.decoders.decoder import BatchDecoder
from fastpsl.pipelines.loader import engines
from fastpsl.pipelines.loader.engines import PendingBatch, QueueEngine
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec

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
    for thread in threading.enumerate():
        if thread.name.startswith("fastpsl-loader"):
            thread.join(240)


STUCK = """
import time
from tests.pipelines.test_by_batches import make_loader
def act(what, indices):
    if what == "collect" and 9 in indices:
        time.sleep(1000)
with make_loader(act, timeout_s=0.5) as loader:
    list(loader.epoch(0))
"""


@pytest.mark.slow
def test_a_decoder_that_hangs_does_not_hold_up_the_exit() -> None:
    process = subprocess.run(
        [sys.executable, "-c", STUCK], check=False, capture_output=True, text=True, timeout=240
    )
    assert process.returncode == 1
    assert re.search(
        r"TimeoutError: epoch 0, step [0-2]: no batch within 0.5 s", process.stderr.splitlines()[-1]
    )
