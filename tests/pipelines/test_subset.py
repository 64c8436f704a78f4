"""Subsets, and data sets of many samples, whose memory does not grow with them."""

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.beton.pages import pages_of
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import CHUNK
from fastpsl.pipelines.datasets.open import glance
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.datasets.subset import Subset, Synthetic, held_back, split_by_name
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader import order as order_module
from fastpsl.pipelines.loader.loader import ORDERS, Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import COMPILED, DECODERS, JPG, RAW, jpeg, photo, write
from tests.pipelines.sparse_set import NUM_CLASSES, PAGE_SAMPLES, write_sparse_set
from tests.pipelines.written import photo_tree, write_folder

pytestmark = pytest.mark.usefixtures("cache")
VIEW = [ViewSpec(ShorterSideCrop(40, 40, where="center"))]
CHOSEN = np.array([11, 2, 3, 17, 0, 7, 5])  # of 18, unsorted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_tree(tmp_path_factory.mktemp("folder") / "photos")


@pytest.fixture(scope="module")
def beton(folder: Path) -> Path:
    write_folder(folder, folder.parent / "photos.beton")
    return folder.parent / "photos.beton"


def read_images(data: Dataset, decoder: str) -> tuple[torch.Tensor, list[int], list[int]]:
    """Return the images, labels and indices of an evaluation in batches of 4, without padding."""
    with Loader(data, VIEW, batch_size_per_rank=4, train=False, decoder=decoder, num_threads=1) as loader:
        batches = list(loader.epoch(0))
    indices = torch.cat([batch.indices for batch in batches])
    keep = indices >= 0
    images = torch.cat([batch.images[0] for batch in batches])[keep]
    return images, torch.cat([batch.labels for batch in batches])[keep].tolist(), indices[keep].tolist()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["beton", "folder"])
def test_every_decoder_reads_it(folder: Path, beton: Path, decoder: str, kind: str) -> None:
    if kind == "folder" and decoder in COMPILED:
        pytest.skip("it reads no folders")
    with Beton(beton) if kind == "beton" else Folder(folder) as whole:
        images, labels, _ = read_images(whole, decoder)
        part = Subset(whole, CHOSEN)
        part_images, part_labels, indices = read_images(part, decoder)
    assert indices == list(range(len(CHOSEN)))
    assert part_labels == [labels[i] for i in CHOSEN]
    assert torch.equal(part_images, images[CHOSEN])


def test_a_resident_set_keeps_the_part_alone(tmp_path: Path) -> None:
    samples = [(photo(i, 40, 40).tobytes(), 40, 40, RAW) for i in range(18)]
    with Beton(write(tmp_path / "raw.beton", samples)) as whole:
        images, labels, _ = read_images(whole, "resident")
        part = Subset(whole, CHOSEN)
        part_images, part_labels, indices = read_images(part, "resident")
        assert indices == list(range(7)) and part_labels == [labels[i] for i in CHOSEN]
        assert torch.equal(part_images, images[CHOSEN])
        with Loader(part, VIEW, batch_size_per_rank=4, decoder="resident") as loader:
            assert len(loader.decoder._images) == 7  # type: ignore[union-attr]


def test_what_it_says_of_itself_is_of_the_part(beton: Path) -> None:
    with Beton(beton) as whole:
        part = Subset(whole, CHOSEN)
        heights = whole.rows(CHOSEN).height
        assert part.image_sizes()[::2] == (heights.min(), heights.max()) != whole.image_sizes()[::2]
        assert part.labels().tolist() == whole.labels()[CHOSEN].tolist()
        assert (part.num_samples, part.num_classes, part.class_names) == (7, 3, ["ant", "cat", "dog"])
        assert part.name(3) == whole.name(17)
        rows = part.rows(np.array([3, 0]))
        assert rows.indices.tolist() == [3, 0]
        assert rows.offset.tolist() == whole.rows(CHOSEN[[3, 0]]).offset.tolist()
        # A subset with fewer classes keeps the labels of the whole.
        assert Subset(whole, np.flatnonzero(whole.labels() == 2)).num_classes == 3
        with pytest.raises(IndexError, match="the data has 0 to 6"):
            part.rows(np.array([7]))
        with pytest.raises(AttributeError, match="shards"):
            part.shards  # noqa: B018


def test_its_digest_is_of_the_data_and_of_the_choice(beton: Path) -> None:
    with Beton(beton) as whole:
        digest = Subset(whole, CHOSEN).digest()
        parts = Subset(whole, CHOSEN[::-1]), Subset(whole, CHOSEN[:-1]), Subset(Synthetic(18), CHOSEN)
        others = [data.digest() for data in (*parts, whole)]
        assert Subset(whole, CHOSEN.astype(np.int32)).digest() == digest
    assert digest not in others and len(set(others)) == 4


@pytest.mark.parametrize(
    ("indices", "message"),
    [([], "without any"), ([3, 18], "sample 18"), ([-1], "sample -1"), ([3, 5, 3], "sample 3 .* twice")],
)
def test_wrong_indices_are_refused(indices: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subset(Synthetic(18), np.array(indices, np.int64))


def test_closing_it_closes_the_whole(beton: Path) -> None:
    whole = Beton(beton)
    with Subset(whole, CHOSEN):
        whole.rows(np.array([0]))
    with pytest.raises(OSError):
        whole.rows(np.array([0]))


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


def test_a_share_is_held_back_by_the_names_alone(
    folder: Path, beton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.jpg"))]

    def is_held(name: str) -> bool:
        key = hashlib.blake2b(name.encode(), digest_size=8, key=b"fastpsl validation").digest()
        return int.from_bytes(key, "little") < 0.25 * 2**64

    expected = [is_held(name) for name in names]
    assert 1 < sum(expected) < len(names)
    listed = tmp_path / "list.txt"
    moved = photo_tree(tmp_path / "moved" / "photos")
    listed.write_text("".join(f"moved/photos/{name} {name.split('/')[0]}\n" for name in names))
    for data in (Folder(folder), Folder(moved), Beton(beton)):
        assert list(data.names()) == names
        assert held_back(data.names(), 0.25).tolist() == expected
        train, val = split_by_name(data, 0.25)
        assert val is not None
        parts = [*train.names()], [*val.names()]
        assert parts[1] == [name for name, held in zip(names, expected, strict=True) if held]
        assert parts[0] == [name for name, held in zip(names, expected, strict=True) if not held]
        assert train.class_names == val.class_names == ["ant", "cat", "dog"]
        train.close()
        assert len(val.rows(np.arange(val.num_samples)).label) == sum(expected)
        val.close()
    for source in (folder, beton, listed):
        found = glance(source, None)
        prefix = "moved/photos/" if source == listed else ""
        assert [*found.names] == [prefix + name for name in names] and found[::2] == (18, 3)
    assert glance(folder, 5)[:1] == glance(beton, 5)[:1] == (5,)
    monkeypatch.chdir(folder)
    assert [*glance(".", None).names] == names


def test_samples_without_names_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    shards = [write(tmp_path / f"{i}.beton", [(jpeg(photo(i, 30, 30)), 30, 30, JPG)] * 3) for i in range(2)]
    with Beton(shards) as data:
        assert [*data.names()] == [*map(str, range(6))] == [*Synthetic(6).names()]
        held = held_back(data.names(), 0.5)
        _, val = split_by_name(data, 0.5)
        assert val is not None and [*val.names()] == [str(i) for i in np.flatnonzero(held)]
        val.close()
        none, nothing = split_by_name(data, 1e-9)
        assert none is data and nothing is None
        with pytest.raises(ValueError, match="holds all of them back"):
            split_by_name(data, 1 - 1e-12)
    assert held_back([], 0.5).tolist() == []


def test_a_part_of_a_part_is_a_part_of_the_whole(beton: Path) -> None:
    with Beton(beton) as whole:
        part = Subset(Subset(whole, CHOSEN), np.array([5, 0]))
        assert part.data is whole and part.indices.tolist() == [7, 11]
        assert part.digest() == Subset(whole, np.array([7, 11])).digest()
