"""Data sets and loaders that are not closed are released with a ResourceWarning, like Python's own files."""

import contextlib
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.folder import Folder
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import jpeg, photo, photo_samples, write


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
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg(photo(0, 30, 40)))
    return Folder(tmp_path / "images")


@pytest.mark.parametrize("opened", [beton, folder])
def test_data_left_open_is_released_with_a_warning(
    opened: Callable[[Path], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    held = [opened(tmp_path)]
    assert open_below(tmp_path)
    with pytest.warns(ResourceWarning, match=f"unclosed .* {tmp_path}"):
        held.clear()
    assert not open_below(tmp_path)


@pytest.mark.parametrize("opened", [beton, folder])
def test_data_that_is_closed_warns_of_nothing(
    opened: Callable[[Path], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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
    command = [sys.executable, "-c", "import fastpsl; loader = fastpsl.loader(batch_size=8, device='cpu')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_refused_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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
