"""Writing betons: their content and its order."""

import hashlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import fastpsl
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton import file as beton_file
from fastpsl.pipelines.beton.encode import Stored, Target
from fastpsl.pipelines.beton.file import BetonFile
from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import RAW
from fastpsl.pipelines.beton.sidecar import has_checksums, read_sidecar
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.folders import photo_tree, write_folder
from tests.pipelines.photos import DECODERS, ffcv_decode, needs_ffcv, photo, photo_samples, write
from tests.pipelines.test_beton import stock


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_tree(tmp_path / "photos")


def test_a_tree_in_imagefolders_order(photos: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    out = tmp_path / "a.beton"
    write_folder(photos, out)
    expected = ImageFolder(str(photos))
    with Beton(out) as beton:
        assert beton.class_names == expected.classes == ["ant", "cat", "dog"] and beton.num_classes == 3
        assert list(beton.labels()) == expected.targets
        for i, (path, _) in enumerate(expected.samples):
            assert beton.read(i) == Path(path).read_bytes()
            assert beton.name(i) == f"{out} sample {i} ({os.path.relpath(path, photos)})"
    assert list(verify(out)) == [] and not bad_path(out).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.beton", "a.beton.json", "photos"]
    sidecar = json.loads((tmp_path / "a.beton.json").read_text())
    assert sidecar["written"]["num_passed"] == 18 and sidecar["num_samples"] == 18
    data, start = out.read_bytes(), sidecar["data_start"]
    assert sidecar["sha256"] == hashlib.sha256(data[start:] + data[:start]).hexdigest()


def test_fastpsl_need_not_be_installed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run from its folder without being installed."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    write_folder(photos, tmp_path / "a.beton")
    sidecar = read_sidecar(tmp_path / "a.beton")
    assert sidecar is not None and sidecar.written["fastpsl"] == fastpsl.__version__


def far_beton(path: Path, samples: list[tuple[bytes, int, int, int]]) -> Path:
    """Write samples (data, height, width, mode), with a hole of 5 GiB after the first that takes no space."""
    file = BetonFile(path, len(samples), 1 << 21)
    for label, (data, height, width, mode) in enumerate(samples):
        file.add(Stored(data, height, width, mode, "passed"), label)
        if label == 0:
            file.flush()
            file._written = file._end = (5 << 30) + file.data_start
    file.finish()
    file.file.publish()
    return path


@pytest.mark.slow
@needs_ffcv("its own Reader and Loader read")
def test_ffcv_reads_ours(tmp_path: Path) -> None:
    images = [photo(i, 40, 50) for i in range(10)]
    samples = [Sample(str(i), image, 7 - i) for i, image in enumerate(images[:8])]
    outs = {mode: tmp_path / f"{mode}.beton" for mode in ("raw", "jpg")}
    for mode, out in outs.items():
        write_beton(samples, out, num_samples=10, target=Target(mode=mode))  # fewer come than announced
    write_beton(samples, tmp_path / "a.beton", num_samples=10, target=Target(mode="raw"), shard_mb=16)
    outs["raw shard"] = tmp_path / "a-00000-of-00001.beton"
    far_beton(tmp_path / "far.beton", [(image.tobytes(), 40, 50, RAW) for image in images[:8]])
    stock("read", *outs.values(), tmp_path / "far.beton")
    with np.load(tmp_path / "far.beton.npz") as arrays:
        assert (arrays["images_True"] == images[:8]).all() and (arrays["images_False"] == images[:8]).all()
    for mode, out in outs.items():
        with np.load(f"{out}.npz") as arrays, Beton(out) as beton:
            assert has_checksums(beton.shards[0])  # which ffcv ignores
            assert list(arrays["names"]) == ["image", "label"] and arrays["num_samples"] == 8
            for i in range(8):
                expected = ffcv_decode(beton.read(i), 40, 50) if mode == "jpg" else images[i]
                for os_cache in (True, False):
                    assert list(arrays[f"labels_{os_cache}"]) == list(range(7, -1, -1))
                    assert (arrays[f"images_{os_cache}"][i] == expected).all()


def test_pages_and_large_samples(tmp_path: Path) -> None:
    """No sample crosses a page, and a sample larger than a page makes all pages larger."""
    random = np.random.default_rng(0)
    sides = [
        (600, 700),
        (500, 300),
        (900, 1000),
        (10, 10),
        (1500, 1400),
        (900, 900),
        (20, 30),
    ]  # up to 6.3 MB, page 2 MiB
    images = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
    out = tmp_path / "a.beton"
    samples = [Sample(str(i), image, i) for i, image in enumerate(images)]
    write_beton(samples, out, num_samples=7, target=Target(mode="raw"), page_bytes=1 << 21)
    with Beton(out) as beton:
        page = beton.shards[0].page_size
        rows = beton.rows(np.arange(7))
        assert page == 1 << 23
        assert (rows.offset // page == (rows.offset + rows.num_bytes - 1) // page).all() and (
            np.diff(rows.offset) > 0
        ).all()
        assert [beton.read(i) for i in range(7)] == [image.tobytes() for image in images]
    assert list(verify(out)) == []


def test_samples_beyond_4_gib(tmp_path: Path) -> None:
    """Every decoder reads the same samples below and beyond 4 GiB."""
    samples = photo_samples(6)
    samples.append((photo(9, 70, 80).tobytes(), 70, 80, RAW))
    near, far = write(tmp_path / "near.beton", samples), far_beton(tmp_path / "far.beton", samples)
    views = [ViewSpec(RandomResizedCrop(32))]
    assert far.stat().st_size > 5 << 30 and list(verify(far)) == []
    with Beton(near) as near_beton, Beton(far) as distant:
        assert distant.rows(np.arange(7)).offset[6] > 5 << 30
        assert [distant.read(i) for i in range(7)] == [data for data, *_ in samples]
        for decoder in DECODERS:
            batches = []
            for data in (near_beton, distant):
                with Loader(data, views, batch_size_per_rank=7, decoder=decoder) as loader:
                    batches += list(loader.epoch(0))
            assert torch.equal(batches[0].images[0], batches[1].images[0]) and len(batches) == 2
            assert (batches[0].labels == batches[1].labels).all()


def test_the_file_does_not_depend_on_workers(photos: Path, tmp_path: Path) -> None:
    for num_workers in (1, 2, 7):
        write_folder(
            photos, tmp_path / f"{num_workers}.beton", target=Target(short_side=40), num_workers=num_workers
        )
    assert len({(tmp_path / f"{n}.beton").read_bytes() for n in (1, 2, 7)}) == 1


def test_many_samples_flush_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beton_file, "_ROWS_BUFFERED", 16)
    monkeypatch.setattr(beton_file, "_BUFFER_BYTES", 5000)
    for num in (15, 16, 17, 100):
        images = np.random.default_rng(num).integers(0, 256, (num, 5, 9, 3), dtype=np.uint8)
        samples = (Sample(f"é\n\\{i}", images[i], i % 4) for i in range(num))
        out = tmp_path / f"{num}.beton"
        write_beton(samples, out, num_samples=num, target=Target(mode="raw"))
        with Beton(out) as beton:
            assert [beton.read(i) for i in range(num)] == [image.tobytes() for image in images]
            assert list(beton.labels()) == [i % 4 for i in range(num)]
        assert list(verify(out)) == []
        sidecar = read_sidecar(out)
        assert sidecar and list(sidecar.source_paths()) == [f"é\n\\{i}" for i in range(num)]


def test_shards_together_are_the_whole(photos: Path, tmp_path: Path) -> None:
    write_folder(photos, tmp_path / "whole.beton")
    for i in range(4):
        write_folder(photos, tmp_path / f"part-{i}.beton", (i, 4))
    with Beton(tmp_path / "whole.beton") as whole, Beton(tmp_path / "part-*.beton") as parts:
        assert parts.class_names == whole.class_names and parts.num_samples == 18
        assert [parts.read(i) for i in range(18)] == [whole.read(i) for i in range(18)]
        assert list(parts.labels()) == list(whole.labels())


def test_writing_needs_no_torch() -> None:
    """torch would take half a GB and seconds at every start, and libffcv decodes without it."""
    code = (
        "import sys, fastpsl.cli, fastpsl.pipelines.beton.write, fastpsl.pipelines.sources;"
        "print([name for name in ('torch', 'kornia', 'datasets') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=240
    )
    assert process.stdout == "[]\n"
