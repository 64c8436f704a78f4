"""Large files and images: refused by their size, or held in memory a few at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import numpy as np
import pytest
from PIL import Image

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.encode import BYTES_PER_PIXEL, LARGE_PIXELS, MemoryGate, Target, convert
from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.data.dataset import MAX_FILE_BYTES, MODE_FILE, MODE_JPEG
from fastpsl.pipelines.datasets.folder import Folder
from fastpsl.pipelines.image import image_file
from fastpsl.pipelines.image.image_file import decode_any, upright_size
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.folders import write_folder
from tests.pipelines.memory import own_memory
from tests.pipelines.photos import COMPILED, DECODERS, jpeg, photo
from tests.pipelines.test_beton_convert import KINDS, file_of


@final
class Peak:
    """A context that measures the growth of this process's memory, in MB."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._start_bytes = own_memory("VmHWM")
        return self

    def __exit__(self, *error: object) -> None:
        self.grown_mb = (own_memory("VmHWM") - self._start_bytes) / 1e6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two photos and, between them, a file above the size limit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    root.mkdir()
    for name in "ac":
        (root / f"{name}.jpg").write_bytes(jpeg(photo(0, 40, 50)))
    with open(root / "b.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(MAX_FILE_BYTES + 1)  # takes no disk
    return root


WHY = "268,435,457 bytes; at most 268,435,456 are taken"


def test_a_huge_file_is_refused_unread_by_the_writer(folder: Path, tmp_path: Path) -> None:
    with Peak() as peak:
        report = write_folder(folder, tmp_path / "a.beton", max_bad="1")
    assert report.num_samples == 2 and report.first_bad == f"b.jpg: {WHY}"
    assert WHY in bad_path(tmp_path / "a.beton").read_text()
    assert peak.grown_mb < 100


@pytest.mark.parametrize("decoder", [decoder for decoder in DECODERS if decoder not in COMPILED])
def test_a_huge_file_is_a_bad_sample_of_its_folder(folder: Path, decoder: str) -> None:
    views = [ViewSpec(RandomResizedCrop(24))]
    with pytest.warns(UserWarning, match=f"1 of 3 images cannot be read, the first is b.jpg: {WHY}"):
        data = Folder(folder)
    with (
        data,
        Loader(
            data, views, batch_size_per_rank=3, train=False, decoder=decoder, on_bad_sample="skip"
        ) as loader,
    ):
        next(loader.epoch(0))  # so that compiling and loading are not measured
        with Peak() as peak:
            (batch,) = loader.epoch(0)
    assert [str(sample.index) for sample in batch.bad] == ["1"] and WHY in batch.bad[0].reason
    assert peak.grown_mb < 100


def test_a_frame_header_far_back_is_found_without_reading_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 200 kB, and beyond the searched part, where Pillow finds the size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, segment = jpeg(photo(0, 40, 50)), b"\xff\xe3\xff\xff" + bytes(65533)
    root = tmp_path / "photos"
    root.mkdir()
    for name, num in (("a", 3), ("b", 300)):
        (root / f"{name}.jpg").write_bytes(plain[:2] + num * segment + plain[2:])
    with Folder(root) as data:
        rows = data.rows(np.arange(2))
        assert rows.mode.tolist() == [MODE_JPEG, MODE_FILE]
        assert (rows.height == 40).all() and (rows.width == 50).all()


@pytest.mark.parametrize("kind", KINDS)
def test_images_in_bands_are_those_in_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = KINDS[kind]()
    whole = decode_any(data)
    monkeypatch.setattr(image_file, "_BAND_PIXELS", 1000)
    assert whole.shape == (90, 121, 3) and (decode_any(data) == whole).all()


def test_an_orientation_behind_the_pixels_is_found_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    data = file_of(Image.fromarray(photo(0, 30, 50)), "PNG", exif=exif)
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert decode_any(path.read_bytes()).shape == (50, 30, 3)
    for block_bytes in range(9, 40):
        monkeypatch.setattr(image_file, "_BLOCK_BYTES", block_bytes)
        assert upright_size(str(path)) == (50, 30)


@pytest.mark.parametrize(("mode", "bytes_per_pixel"), [("I;16", 6), ("RGBA", 8), ("1", 5)])
def test_memory_of_an_image_beyond_its_file(mode: str, bytes_per_pixel: int) -> None:
    """The decoded and the RGB image; 16-bit grey once took 20 bytes per pixel."""
    side = 4000
    data = file_of(Image.new(mode, (side, side)), "PNG", compress_level=1)
    convert(file_of(Image.new(mode, (50, 50)), "PNG"), Target(max_side=40))
    with Peak() as peak:
        assert convert(data, Target(max_side=200)).height == 200
    assert peak.grown_mb < side * side * bytes_per_pixel / 1e6 + 30


def test_large_images_wait_for_each_other_and_small_ones_do_not() -> None:
    large = LARGE_PIXELS + 1
    images = MemoryGate(limit_bytes=2 * large * BYTES_PER_PIXEL)
    go, inside, peak, lock = threading.Event(), [0], [0], threading.Lock()
    entered = threading.Semaphore(0)

    def decode_one(num_pixels: int) -> None:
        with images.room_for(num_pixels):
            with lock:
                inside[0] += 1
                peak[0] = max(peak[0], inside[0])
            entered.release()
            assert go.wait(60)
            with lock:
                inside[0] -= 1

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(decode_one, large) for _ in range(5)]
        assert entered.acquire(timeout=60)
        assert entered.acquire(timeout=60)
        with images.room_for(LARGE_PIXELS):  # without waiting
            assert not entered.acquire(timeout=0.1)
        go.set()
        for future in futures:
            future.result(60)
        assert peak[0] == 2
        with images.room_for(100 * large):  # a single image may exceed the limit
            assert not pool.submit(decode_one, 0).result(60)
