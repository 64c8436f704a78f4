"""Folders as data sets: equal to the beton written from them, indexed once, with errors that name files."""

import os
import resource
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets import open_folder as folders
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.decoders import dali
from fastpsl.pipelines.decoders.choose import READS, choose_decoder
from fastpsl.pipelines.decoders.codes import CHANGED, CORRUPT, REASONS
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.image_file import decode_any
from fastpsl.pipelines.interface.dataset import MODE_FILE
from fastpsl.pipelines.loader.batch import BadSampleError, Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.readers.folder import image_folder
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import DECODERS, area_mean, exif, jpeg, photo, pil_decode
from tests.pipelines.readers import refused
from tests.pipelines.written import headers_read, tree, write_folder

# The decoders that read folders.
READERS = [decoder for decoder in DECODERS if decoder in READS["folder"]]
every_reader = pytest.mark.parametrize("decoder", READERS)
VIEWS = [ViewSpec(RandomResizedCrop(24)), ViewSpec(RandomResizedCrop(40))]
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write twelve JPEGs in three classes, one of them empty, with spaces and letters of all kinds."""
    files = {"readme.txt": b"not an image"}
    for i in range(12):
        place = ("zebra finch", "été")[i % 2] + ("", "/deeper")[i % 3 == 0]
        files[f"{place}/Ünï code {i:02}.JPG"] = jpeg(photo(i, 60 + i, 80 - i))
    root = tree(tmp_path / "images", files)
    (root / "nothing").mkdir()
    return root


def batches(data: Folder | Beton, decoder: str, **options: object) -> list[Batch]:
    options = {"batch_size_per_rank": 4, "num_threads": 2, **options}
    with Loader(data, VIEWS, decoder=decoder, **options) as loader:  # type: ignore[arg-type]
        return list(loader.epoch(3))


@every_reader
@pytest.mark.parametrize("train", [True, False])
def test_a_folder_is_the_beton_written_of_it(root: Path, tmp_path: Path, decoder: str, train: bool) -> None:
    source = image_folder(root)
    assert write_folder(root, tmp_path / "x.beton").num_passed == 12
    with open_data(root) as folder, Beton(tmp_path / "x.beton") as beton:  # type: ignore[attr-defined]
        assert isinstance(folder, Folder)
        assert folder.class_names == beton.class_names == ["nothing", "zebra finch", "été"]
        assert (folder.num_samples, folder.num_classes) == (beton.num_samples, beton.num_classes) == (12, 3)
        assert folder.image_sizes() == beton.image_sizes()
        assert folder.labels().dtype == np.int32 and (folder.labels() == beton.labels()).all()
        names = [str(root / sample.name) for sample in source.samples()]
        assert [folder.name(i) for i in range(12)] == names and "Ünï code" in names[0]
        rows, beton_rows = (data.rows(np.array([3, 0, 11])) for data in (folder, beton))
        assert rows.path.tolist() == [names[3], names[0], names[11]]
        for column in ("indices", "num_bytes", "height", "width", "mode", "label", "orientation"):
            assert (getattr(rows, column) == getattr(beton_rows, column)).all()
        results, expected = (batches(data, decoder, train=train) for data in (folder, beton))
    for batch, other in zip(results, expected, strict=True):
        assert torch.equal(batch.indices, other.indices) and torch.equal(batch.labels, other.labels)
        assert all(torch.equal(a, b) for a, b in zip(batch.images, other.images, strict=True))


def whole(data: Folder, decoder: str, size: int) -> tuple[np.ndarray, int]:
    """Return all images, resized to a square, and how many of them DALI did not decode."""

    class Whole:
        size_px = size

        def check(self, *sizes: int) -> None: ...

        def boxes(self, keys: object, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            zeros = np.zeros_like(heights)
            return np.column_stack([zeros, zeros, heights, widths])

    options = {"batch_size_per_rank": data.num_samples, "train": False, "decoder": decoder}
    with Loader(data, [ViewSpec(Whole())], **options) as loader:  # type: ignore[arg-type]
        (batch,) = loader.epoch(0)
        return batch.images[0].permute(0, 2, 3, 1).numpy(), getattr(loader.decoder, "num_fallbacks", 0)


def write_kinds(root: Path) -> int:
    """Write image files of many kinds, and return how many of them no fast decoder reads."""
    root.mkdir()
    image, turned = Image.fromarray(photo(5, 70, 90)), exif(6)
    clear = image.copy()
    clear.putalpha(Image.fromarray(photo(6, 70, 90)[..., 0]))
    image.convert("L").save(root / "grey.jpg")
    image.save(root / "progressive.jpg", progressive=True)
    image.save(root / "large head.jpg", icc_profile=bytes(100_000))
    image.convert("CMYK").save(root / "cmyk.jpg", exif=turned)
    image.save(root / "plain.png")
    clear.save(root / "clear.png", exif=turned)
    clear.save(root / "clear.webp", lossless=True, exif=turned)
    image.convert("P").save(root / "palette.png")
    image.save(root / "turned.tif", exif=turned)
    image.save(root / "png by another name.jpg", "PNG")
    image.save(root / "jpeg by another name.png", "JPEG")
    return 7


@every_reader
def test_image_files_of_all_kinds_are_read(tmp_path: Path, decoder: str) -> None:
    num_files = write_kinds(tmp_path / "flat")
    with Folder(tmp_path / "flat") as data:
        rows = data.rows(np.arange(data.num_samples))
        assert (rows.mode == MODE_FILE).sum() == num_files
        is_turned = [name.endswith((".webp", ".tif", "cmyk.jpg", "clear.png")) for name in rows.path]
        assert ((rows.height == 90) == is_turned).all()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* not by DALI")
            results, num_fallbacks = whole(data, decoder, 35)
        assert num_fallbacks == (num_files if decoder == "dali" else 0)
        for i in range(data.num_samples):
            image = decode_any(Path(data.name(i)).read_bytes())
            assert image.shape[:2] == (rows.height[i], rows.width[i])
            error = np.abs(results[i] - area_mean(image, (0, 0, *image.shape[:2]), 35)).mean()
            assert error < 2, data.name(i)


@every_reader
def test_what_cannot_be_read_is_a_bad_sample(root: Path, decoder: str) -> None:
    flat = root / "été"
    shutil.rmtree(flat / "deeper")
    (flat / "a.jpg").write_bytes(b"")
    (flat / "b.jpg").write_text("not an image")
    (flat / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (flat / "d.jpg").symlink_to("nowhere.jpg")
    words = r"4 of 8 images cannot be read, the first is a\.jpg: .*; each is a bad"
    with pytest.warns(UserWarning, match=words):
        data = Folder(flat)
    with data:
        assert data.image_sizes() == (61, 69, 71, 79)
        bad: dict[str, str] = {}
        for batch in batches(data, decoder, train=False, batch_size_per_rank=5, on_bad_sample="skip"):
            bad |= {os.path.basename(sample.name): str(sample) for sample in batch.bad}
        assert sorted(bad) == ["a.jpg", "b.jpg", "c.png", "d.jpg"]
        assert all(text.startswith(f"{flat}/{name}: ") and "\n" not in text for name, text in bad.items())
        assert "no image of a known format" in bad["b.jpg"]
        assert bad["d.jpg"].endswith("No such file or directory")
        with pytest.raises(BadSampleError, match="a.jpg: no image that can be read"):
            batches(data, decoder, train=False)
    for path in flat.glob("Ü*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of 4 images can be read, the first is a\.jpg: "):
        Folder(flat)


@every_reader
def test_what_changes_or_goes_is_named(root: Path, decoder: str) -> None:
    with Folder(root) as data:
        changed, longer, gone = (Path(data.name(i)) for i in (2, 5, 7))
        before = changed.stat().st_size
        smaller = jpeg(photo(2, 30, 30))
        changed.write_bytes(smaller + bytes(before - len(smaller)))  # the same number of bytes
        longer.write_bytes(longer.read_bytes() + b"more")
        gone.unlink()
        results = batches(data, decoder, train=False, on_bad_sample="skip")
        bad = {sample.index: sample.reason for batch in results for sample in batch.bad}
    assert bad.keys() == {2, 5, 7}
    assert bad[2].startswith("the header says 30x30 px, the table")
    assert bad[5].startswith("the file is not as it was when the folder was listed: it had ")
    assert bad[7] == "the file is not as it was when the folder was listed: No such file or directory"


@every_reader
def test_damaged_files_have_one_answer(root: Path, decoder: str) -> None:
    """A folder's JPEG that libjpeg only warns of is decoded, one without an end is not."""
    with Folder(root) as data:
        paths = [Path(data.name(i)) for i in range(4)]
    first, second, third, _ = (path.read_bytes() for path in paths)
    paths[0].write_bytes(first[:-2] + bytes(20) + first[-2:])
    paths[1].write_bytes(second[: len(second) // 2])
    paths[2].write_bytes(third[:-2])
    with Folder(root) as data, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* not by DALI")
        paths[3].unlink()
        os.mkfifo(paths[3])
        batch = batches(data, decoder, train=False, on_bad_sample="skip", batch_size_per_rank=12)[0]
        assert [(bad.index, bad.reason.partition(":")[0]) for bad in batch.bad] == [
            (1, REASONS[CORRUPT]), (2, REASONS[CORRUPT]), (3, REASONS[CHANGED]),
        ]  # fmt: skip
        for view, size in enumerate((24, 40)):
            keys = Keys(0, 3, np.arange(1), view)
            box = RandomResizedCrop(size).boxes(keys, *(np.array([px]) for px in pil_decode(first).shape[:2]))
            crop = batch.images[view][0].permute(1, 2, 0).numpy()
            assert np.abs(crop - area_mean(pil_decode(first), box[0], size)).mean() < 1.5


@every_reader
@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
def test_trouble_of_the_system_is_no_bad_sample(root: Path, decoder: str, on_bad_sample: str) -> None:
    first, second = (next(root.rglob(f"*{number}.JPG")) for number in ("00", "01"))
    Image.fromarray(photo(0, 60, 70)).save(second, "PNG")
    with Folder(root) as data, Loader(
        data, VIEWS, decoder=decoder, batch_size_per_rank=12, train=False, num_threads=1,
        on_bad_sample=on_bad_sample,
    ) as loader, warnings.catch_warnings():  # fmt: skip
        warnings.filterwarnings("ignore", message=".* not by DALI")
        list(loader.epoch(0))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
            with pytest.raises(OSError, match="Too many open files") as error:
                next(loader.epoch(0))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert str(root) in str(error.value) and not next(iter(loader.epoch(0))).bad
    assert first.exists()


def digest_of(root: Path) -> str:
    with Folder(root) as data:
        return data.digest()


def test_headers_are_read_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = headers_read(monkeypatch)
    digest = digest_of(root)
    assert len(read) == 12
    assert digest_of(root) == digest and len(read) == 12
    assert len(list(cache.iterdir())) == 2  # the index and the lock

    os.utime(next(root.rglob("*.JPG")))
    with Folder(root) as data:
        assert len(read) == 24 and data.digest() == digest  # which does not include the dates
    assert len(list(cache.iterdir())) == 2  # the old index is gone

    shutil.copytree(root, root.with_name("copy"))
    assert digest_of(root.with_name("copy")) == digest
    first = next(root.rglob("*.JPG"))
    first.write_bytes(first.read_bytes() + b"\0")
    assert digest_of(root) != digest


@pytest.mark.parametrize("name", ["names", "records.npy", "summary.json"])
@pytest.mark.parametrize("contents", [None, b"", b"\x93NUMPY"])
def test_an_index_that_is_not_whole_is_made_again(
    root: Path, cache: Path, name: str, contents: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = headers_read(monkeypatch)
    Folder(root).close()
    (path,) = cache.glob(f"*/{name}")
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    for num in (12, 0):
        read.clear()
        with Folder(root) as data:
            assert len(read) == num and "zebra finch" in data.name(0)


def test_of_many_that_open_a_folder_one_reads_the_headers(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, make, event = [], folders._make, threading.Event()

    class Watched(operation):
        @override
        def __enter__(self) -> operation:
            if self.what == f"{root}: another process reads the headers, waiting for it":
                event.set()
            return super().__enter__()

    def when_another_waits(*arguments: object) -> None:
        calls.append(1)
        assert event.wait(240)
        make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(folders, "_make", when_another_waits)
    monkeypatch.setattr("fastpsl.files.locks.operation", Watched)
    with ThreadPoolExecutor(4) as pool:
        for data in pool.map(Folder, [root] * 4):
            data.close()
    assert len(calls) == 1
    assert not capsys.readouterr().err  # every rank but one waits, and one line each says nothing


def test_a_folder_that_changes_while_it_is_read_is_refused(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = folders._scan

    def touching(path: object, *rest: Any) -> object:
        os.utime(str(path), (1, 1))
        return scan(path, *rest)

    monkeypatch.setattr(folders, "_scan", touching)
    with pytest.raises(ValueError, match="has changed while its headers were read; start again"):
        Folder(root)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_names_that_are_no_utf_8_are_read(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    name = os.fsencode(tmp_path / "flat") + b"/\xff \xfe.jpg"
    with open(name, "wb") as file:
        file.write(jpeg(photo(0, 50, 60)))
    with Folder(tmp_path / "flat") as data:
        assert os.fsencode(data.name(0)) == name
        for decoder in READERS:
            assert batches(data, decoder, batch_size_per_rank=1)[0].images[0].any()


@pytest.mark.parametrize("wrong", ["nothing", "readme.txt"])
def test_wrong_folders_are_one_line(root: Path, wrong: str) -> None:
    with refused("holds no images" if wrong == "nothing" else "no such folder"):
        Folder(root / wrong)


def test_a_cache_that_cannot_be_written_is_said(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with refused("cannot be kept there", "; set XDG_CACHE_HOME to a folder"):
        Folder(root)


def test_decoders_of_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Folder(root) as data:
        if "turbo" in READERS:
            assert choose_decoder("auto", data, CPU) == ("turbo", "it decodes what the crops need")
        monkeypatch.setattr(dali, "why_missing", lambda device: "DALI is not installed; pip install it")
        monkeypatch.setattr(libturbo, "why_missing", lambda: "it was not built")
        slow = f"decoding by pillow is slow: it was not built; {libturbo.remedy()}"
        for device in ("cpu", "cuda"):
            with pytest.warns(UserWarning) as caught:
                chosen = choose_decoder("auto", data, torch.device(device))
            assert chosen == ("pillow", "no faster one can read this here")
            assert [str(warning.message) for warning in caught] == [slow]
        with refused("'ffcv' cannot read a folder; ", " `fastpsl data write`"):
            choose_decoder("ffcv", data, CPU)


def test_a_relative_name_outlives_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "photos", {"a.jpg": jpeg(photo(0, 60, 70))})
    monkeypatch.chdir(tmp_path)
    with Folder("photos") as data:
        monkeypatch.chdir("/")
        assert len(batches(data, "pillow", train=False, batch_size_per_rank=1)) == 1
