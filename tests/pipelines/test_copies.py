"""Copies and other processes: dataset files are opened again, and what cannot be shared refuses a copy."""

import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import data as torch_data
from typing_extensions import override

import fastpsl
from fastpsl.engine.distributed import World
from fastpsl.evaluation.feature_file import PartialFeatures
from fastpsl.files.atomic import PartialFile
from fastpsl.files.remote.address import RemoteObject
from fastpsl.files.remote.cache import Cache
from fastpsl.files.workers import Workers
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders import libffcv
from fastpsl.pipelines.decoders.memory import Arenas
from fastpsl.pipelines.decoders.pillow import PillowDecoder
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.annotated import AnnotatedLoader
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.decoding import loader_of
from tests.pipelines.photos import jpeg, photo, photo_samples, write
from tests.pipelines.threads import in_a_forked_process
from tests.programs import interpreted
from tests.slow import slow
from tests.warm import CONTEXT

NUM = 12
VIEWS = [ViewSpec(RandomResizedCrop(16))]
PICKLED = "pickle"
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    PICKLED: lambda data: pickle.loads(pickle.dumps(data)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.beton", photo_samples(NUM))


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_dataset_file_has_a_descriptor_of_its_own(
    path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path.with_name("b.beton"), photo_samples(NUM, seed=NUM))
    monkeypatch.chdir(path.parent)
    with Beton("?.beton") as data:
        stored = [data.read(i) for i in range(2 * NUM)]
        copied = COPIES[way](data)
        assert not {shard.fd for shard in data.shards} & {shard.fd for shard in copied.shards}
        monkeypatch.chdir("/")  # where the pattern matches nothing
        with COPIES[way](copied) as third:
            assert [third.read(i) for i in range(2 * NUM)] == stored
        copied.close()
        with open(path, "rb"):  # takes the number of the closed file
            assert [data.read(i) for i in range(2 * NUM)] == stored
        part = Subset(data, np.array([20, 3]))
        with COPIES[way](part) as subset:
            assert subset.digest() == part.digest() and subset.data is not data
        assert data.read(5) == stored[5]


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_image_files_is_closed_alone(way: str, tmp_path: Path) -> None:
    for i, sample in enumerate(photo_samples(2)):
        (tmp_path / f"{i}.jpg").write_bytes(sample[0])
    with Folder(tmp_path) as data:
        with COPIES[way](data) as copied:
            assert copied.digest() == data.digest()
        assert data.name(1) == str(tmp_path / "1.jpg") and len(data.rows(np.array([0, 1])).path) == 2


def test_a_copy_of_a_file_that_has_changed_is_refused(path: Path) -> None:
    with Beton(path) as data:
        pickled = pickle.dumps(data)
        os.replace(write(path.with_name("new"), photo_samples(NUM, seed=1)), path)  # of as many samples
        with pytest.raises(ValueError, match="a.beton: is another dataset file than the one that was copied"):
            pickle.loads(pickled)
        assert len(data.read(0))  # the file that was replaced is still open


def test_another_process_that_unpickles_closes_nothing_but_its_own(path: Path) -> None:
    with Beton(path) as data:
        pickled, shards = pickle.dumps(data), data.shards

        def unpickled() -> bytes:
            fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)] + [shard.fd for shard in shards]
            with pickle.loads(pickled) as copied:
                read: bytes = copied.read(3)
            for fd in fds:
                os.fstat(fd)
            return read

        assert in_a_forked_process(unpickled) == data.read(3)


class Sizes(torch_data.Dataset[int]):
    """A data set as users write it: an item is read from the dataset file."""

    def __init__(self, data: Beton) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    @override
    def __getitem__(self, index: int) -> int:
        return len(self.data.read(index))


@pytest.mark.parametrize("context", [multiprocessing.get_context("fork"), slow(CONTEXT)])
def test_workers_of_a_dataloader_read_a_dataset_file(path: Path, context: BaseContext) -> None:
    with Beton(path) as data:
        sizes = torch_data.DataLoader(Sizes(data), None, num_workers=2, multiprocessing_context=context)
        assert list(sizes) == [len(data.read(i)) for i in range(NUM)]


def test_a_loader_that_was_made_before_a_fork_refuses_at_once(path: Path) -> None:
    with loader_of(path, VIEWS, 4, prefetch_batches=1) as loader:
        epoch = loader.epoch(0)
        first = next(epoch).indices.tolist()
        for use in (lambda: next(loader.epoch(1)), lambda: next(epoch)):
            assert "ValueError: the loader is closed, or was made before" in in_a_forked_process(use)

        def anew() -> list[list[int]]:
            loader.close()
            loader.data.close()
            with loader_of(path, VIEWS, 4) as other:
                return [batch.indices.tolist() for batch in other.epoch(0)]

        others = in_a_forked_process(anew)
        assert others == [first, *(batch.indices.tolist() for batch in epoch)]


MISSING = {"Handle": libturbo.why_missing, "Handle of ffcv": libffcv.why_missing}
HELD: dict[str, Callable[[Beton, Path], Any]] = {
    "Shard": lambda data, _: data.shards[0],
    "Loader": lambda data, _: Loader(data, VIEWS, batch_size_per_rank=4),
    "EpochLoader": lambda data, _: fastpsl.loader(data, VIEWS, batch_size=4, device="cpu"),
    "AnnotatedLoader": lambda _, __: AnnotatedLoader(
        lambda *_: (torch.zeros(3, 2, 2), {}), 4, batch_size_per_rank=2
    ),
    "Workers": lambda _, __: Workers(1, "copied"),
    "PillowDecoder": lambda _, __: PillowDecoder(),
    "Arena": lambda _, __: Arenas().take(100),
    "PartialFile": lambda _, folder: PartialFile(folder / "file"),
    "PartialFeatures": lambda _, folder: PartialFeatures(
        folder / "x.npy", "", {"dtype": "float32", "shape": [2, 3]}, World(0, 1, 0, 1, torch.device("cpu"))
    ),
    "CachedFile": lambda data, folder: Cache(folder, 0.1).open(
        RemoteObject("memory://a", "a", 10, "1", None), np.array([[0, 10]], np.int64)
    ),
    "Handle": lambda _, __: libturbo.Handle(),
    "Handle of ffcv": lambda _, __: libffcv.Handle(),
}


@pytest.mark.parametrize("kind", HELD)
def test_what_holds_files_threads_or_memory_refuses_a_copy(path: Path, kind: str) -> None:
    if why := MISSING.get(kind, str)():
        pytest.skip(why)
    with Beton(path) as data:
        held = HELD[kind](data, path.parent)
        before = sorted(open_below(path.parent))  # other threads of this process have files, too
        for way in COPIES.values():
            for what in (held, {"data": data, "held": held}):
                if way is copy.copy and what is not held:
                    continue  # it copies the outermost object alone
                with pytest.raises(TypeError, match=f"^{type(held).__name__} cannot be copied or pickled"):
                    way(what)
        gc.collect()
        assert sorted(open_below(path.parent)) == before
        if isinstance(held, Loader):
            assert len(list(held.epoch(0))) == NUM // 4
        getattr(held, "close", int)(*[1.0] * isinstance(held, Workers))


def open_below(folder: Path) -> list[str]:
    """Return the files below a folder that this process has open or mapped."""
    names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    mapped = [
        line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line
    ]
    return [name for name in names + mapped if name.startswith(str(folder))]


@contextlib.contextmanager
def unclosed() -> Iterator[list[warnings.WarningMessage]]:
    """Catch the ResourceWarnings of a block, but not those for data of earlier tests."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ResourceWarning)
        yield caught


def beton(tmp_path: Path) -> Dataset:
    for i in range(2):
        write(tmp_path / f"{i}.beton", photo_samples(3, i))
    return Beton(tmp_path / "*.beton")


def folder(tmp_path: Path) -> Dataset:
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg(photo(0, 30, 40)))
    return Folder(tmp_path / "images")


@pytest.mark.parametrize("opened", [beton, folder])
def test_data_left_open_is_released_with_a_warning_and_data_that_is_closed_without(
    opened: Callable[[Path], Dataset], tmp_path: Path, cache: Path
) -> None:
    held = [opened(tmp_path)]
    assert open_below(tmp_path)
    with pytest.warns(ResourceWarning, match=f"unclosed .* {tmp_path}"):
        held.clear()
    assert not open_below(tmp_path)
    data = opened(tmp_path)
    data.close()
    data.close()
    assert not open_below(tmp_path)
    with unclosed() as caught:
        del data
    assert not caught


@pytest.mark.slow
def test_a_loader_left_open_to_the_end_of_the_process_says_nothing() -> None:
    """It is released when the names of its module are gone already."""
    done = interpreted("import fastpsl; loader = fastpsl.loader(batch_size=8, device='cpu')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_refused_leaves_nothing_open(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "0.beton", photo_samples(3))
    (tmp_path / "1.beton").write_bytes(b"none")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"none")
    with unclosed() as caught:
        with pytest.raises(ValueError, match="is no dataset file"):
            Beton(tmp_path / "*.beton")
        with pytest.raises(ValueError, match="none of 1 images can be read"):
            Folder(tmp_path / "images")
        gc.collect()
    assert not caught
    assert not open_below(tmp_path)


def test_a_loader_left_open_is_named(tmp_path: Path) -> None:
    with Beton(write(tmp_path / "a.beton", photo_samples(4))) as data:
        views = [ViewSpec(RandomResizedCrop(24))]
        with pytest.warns(ResourceWarning, match="unclosed loader of 4 samples"):
            Loader(data, views, batch_size_per_rank=2, num_threads=1)
        with unclosed() as caught:
            with Loader(data, views, batch_size_per_rank=2, num_threads=1) as loader:
                assert sorted(np.concatenate([batch.indices for batch in loader.epoch(0)])) == [0, 1, 2, 3]
            del loader
            with pytest.raises(ValueError, match="batch_size_per_rank is 0"):
                Loader(data, views, batch_size_per_rank=0)
            gc.collect()
        assert not caught
