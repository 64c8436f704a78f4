"""A data set of many samples, without their images: memory that does not grow with them, and seeking."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.beton.pages import pages_of
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import CHUNK
from fastpsl.pipelines.loader import order as order_module
from fastpsl.pipelines.loader.loader import ORDERS, Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.sparse_set import NUM_CLASSES, PAGE_SAMPLES, write_sparse_set

NUM, NUM_SHARDS = 600_000, 3
MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sparse_set(tmp_path_factory.mktemp("sparse"), NUM, NUM_SHARDS)


def peak_mib(work: Callable[[], object]) -> float:
    """Return the largest memory of Python and NumPy while `work` runs, beyond what there was before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        return (tracemalloc.get_traced_memory()[1] - before) / MIB
    finally:
        tracemalloc.stop()


def loader_of(data: Beton, order: str) -> Loader:
    view = ViewSpec(ShorterSideCrop(8, 8))
    return Loader(data, [view], batch_size_per_rank=256, order=order, decoder="synthetic", num_threads=1)


def test_the_tables_are_those_of_a_data_set(source: str) -> None:
    with Beton(source) as data:
        assert (data.num_samples, data.num_classes, data.split) == (NUM, NUM_CLASSES, "train")
        assert [shard.num_samples for shard in data.shards] == [200_000] * 3
        rows = data.rows(np.arange(NUM))
        pages = rows.offset // data.shards[0].page_size
        assert (pages == (rows.offset + rows.num_bytes - 1) // data.shards[0].page_size).all()
        ends = (rows.offset + rows.num_bytes)[:-1]
        follows = (rows.fd[1:] == rows.fd[:-1]) & (pages[1:] == pages[:-1])
        assert (rows.offset[1:] >= ends)[follows].all()
        assert pages_of(data).sizes().max() == PAGE_SAMPLES
        assert data.name(NUM - 1).endswith("train-00002.beton sample 199999 (0999/00002_00199999.jpg)")


@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_takes_no_memory_per_sample(
    source: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored order has 4.6 MiB here, and 13.7 while it is sorted. Pages have a hundred bytes each.

    They are told by the table, of which one chunk is read at a time.
    """
    monkeypatch.setattr(order_module, "MAX_SORTED", NUM - 1)

    def enter() -> None:
        with loader_of(data, order) as loader:
            for epoch, step in ((0, 0), (1, loader.num_steps // 2)):
                batches = loader.epoch(epoch, step)
                assert next(batches).step == step
                batches.close()

    with Beton(source) as data:
        enter()
        pages = 0.0 if order == "random" else (NUM // PAGE_SAMPLES * 500 + CHUNK * 24) / MIB
        assert peak_mib(enter) < 3 + pages


def test_opening_holds_some_chunks_of_the_tables(source: str) -> None:
    def open_it() -> None:
        Beton(source).close()

    open_it()
    assert peak_mib(open_it) < 60  # a row of both tables has 48 bytes: 27 MiB; four threads have a chunk each


@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_from_the_middle_is_that_of_the_epoch(
    source: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "MAX_SORTED", NUM - 1)
    with Beton(source) as data, loader_of(data, order) as loader:
        middle = loader.num_steps // 2
        batches = loader.epoch(3, middle - 2)
        whole = [next(batches).indices.tolist() for _ in range(4)]
        batches.close()
        batches = loader.epoch(3, middle)
        assert [next(batches).indices.tolist() for _ in range(2)] == whole[2:]
        batches.close()
        batch = next(loader.epoch(3, middle))
        assert batch.labels.tolist() == data.labels()[batch.indices.numpy()].tolist()
