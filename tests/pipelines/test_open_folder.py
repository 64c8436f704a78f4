"""Folders as data sets: equal to the beton written from them, indexed once, with errors that name files."""

import io
import os
import resource
import shutil
import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, margin_px
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets import open_folder as folders
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.decoders import codes, dali
from fastpsl.pipelines.decoders.choose import READS, choose_decoder
from fastpsl.pipelines.decoders.codes import CHANGED, CORRUPT, REASONS
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.image_file import convert_pillow, decode_any, upright_size
from fastpsl.pipelines.interface.dataset import MODE_FILE, MODE_JPEG, SampleTable
from fastpsl.pipelines.loader.batch import BadSampleError, Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.readers.folder import image_folder
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.decoding import decode, make
from tests.pipelines.photos import DECODERS, area_mean, exif, jpeg, photo, pil_decode
from tests.pipelines.readers import refused
from tests.pipelines.test_image_files import file_of
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
    opened: list[Folder] = []
    threads = [threading.Thread(target=lambda: opened.append(Folder(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    for data in opened:
        data.close()
    assert len(opened) == 4 and len(calls) == 1
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


PHOTO = photo(7, 90, 130)
TRANSPOSES = (
    None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)  # fmt: skip
BYTE, ASCII, SHORT, LONG, RATIONAL, SIGNED = 1, 2, 3, 4, 5, 8
XMP = b'<x:xmpmeta tiff:Orientation="3"></x:xmpmeta>'


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    method = TRANSPOSES[orientation - 1]
    return image if method is None else np.asarray(Image.fromarray(image).transpose(method))


def entry(order: str, type: int, value: int, num_values: int = 1, tag: int = 0x112) -> bytes:
    """Return an entry of a TIFF's directory; bytes after a short value are not zero."""
    code = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SIGNED: "h"}[type]
    field = struct.pack(order + code, value).ljust(4, b"\x05")
    return struct.pack(f"{order}HHI", tag, type, num_values) + field


def exif_of(order: str, *entries: bytes, num: int | None = None) -> bytes:
    """Return EXIF data with a directory of these entries, or one that claims `num`."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", num or len(entries)) + b"".join(entries) + bytes(4)


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(data) + 2).to_bytes(2, "big") + data


def exif_segment(data: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + data)


def heads() -> dict[str, bytes]:
    """Return segments of JPEGs by the orientation; "?" marks those that DALI may read otherwise."""
    cases = {
        f"{orientation}{'' if type == SHORT else '?'} type {type} {order}": exif_segment(
            exif_of(order, entry(order, RATIONAL, 8, tag=0x11A), entry(order, type, orientation))
        )
        for orientation in range(1, 9)
        for type in (BYTE, SHORT, LONG)
        for order in "<>"
    }
    whole_exif = exif_of("<", entry("<", SHORT, 3))
    plain = exif_segment(whole_exif)
    silent = exif_segment(exif_of("<", entry("<", RATIONAL, 8, tag=0x11A)))
    xmp, large = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), segment(0xFE, bytes(65000))
    return cases | {
        "3 xmp, exif": xmp + plain,
        "3 long head": plain + large,
        "3 behind a long head": large + plain,
        "3 twice in a directory": exif_segment(exif_of("<", entry("<", SHORT, 3), entry("<", SHORT, 6))),
        "3? two segments": plain + exif_segment(exif_of(">", entry(">", SHORT, 6))),
        "3? an entry is missing": exif_segment(exif_of(">", entry(">", SHORT, 3), num=5)),
        "1 out of range": exif_segment(exif_of(">", entry(">", SHORT, 9))),
        "1? signed": exif_segment(exif_of("<", entry("<", SIGNED, 3))),
        "1? two values": exif_segment(exif_of(">", entry(">", SHORT, 3, num_values=2))),
        "1? text": exif_segment(exif_of("<", entry("<", ASCII, 3))),
        "1? only the second segment": silent + plain,
        "1? split over segments": exif_segment(whole_exif[:9]) + exif_segment(whole_exif[9:]),
        "1? no TIFF": exif_segment(b"no TIFF at all"),
        "1? cut": exif_segment(whole_exif[:14]),
        "1 xmp alone": xmp,
        "1 silent exif, xmp": silent + xmp,
    }


@every_reader
def test_what_exif_says_is_read_alike_wherever_it_stands(tmp_path: Path, decoder: str) -> None:
    plain = jpeg(PHOTO)
    cmyk = file_of(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=90)
    files = {f"{name}.jpg": plain[:2] + head + plain[2:] for name, head in heads().items()}
    about_xmp = {name: head for name, head in heads().items() if "xmp" in name}
    files |= {f"{name} CMYK.jpg": cmyk[:2] + head + cmyk[2:] for name, head in about_xmp.items()}
    tree(tmp_path / "flat", files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* not by DALI")
        warnings.filterwarnings("ignore", module="PIL")  # of EXIF data
        data = Folder(tmp_path / "flat")
        rows = data.rows(np.arange(data.num_samples))
        names = [os.path.basename(path) for path in rows.path]
        odd = ["?" in name or "CMYK" in name for name in names]
        assert rows.mode.tolist() == [MODE_FILE if is_odd else MODE_JPEG for is_odd in odd]
        images, num_fallbacks = whole(data, decoder, 45)
        assert num_fallbacks == (sum(odd) if decoder == "dali" else 0)
        for name, image, height in zip(names, images, rows.height, strict=True):
            upright = turned(pil_decode(cmyk if "CMYK" in name else plain), int(name[0]))
            assert height == upright.shape[0], name
            assert np.abs(image - area_mean(upright, (0, 0, *upright.shape[:2]), 45)).mean() < 1.5, name
            assert decode_any(files[name]).shape == upright.shape, name
            if odd[names.index(name)]:
                np.testing.assert_array_equal(decode_any(files[name]), upright, name)


@pytest.mark.skipif("turbo" not in DECODERS, reason="the C library was not built")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_images_are_cropped_from_their_windows(tmp_path: Path, orientation: int) -> None:
    random = np.random.default_rng(orientation)
    for height, width, kind, size, bound in (
        (131, 187, codes.AREA, 66, 0.52), (131, 187, ISOTROPIC, 30, 1), (131, 187, DIAGONAL, 31, 1),
        (1, 1, codes.AREA, 3, 0.52), (419, 643, codes.AREA, 25, 8),
    ):  # fmt: skip
        path = tmp_path / f"{height}.jpg"
        path.write_bytes(jpeg(photo(orientation, height, width), exif=exif(orientation)))
        image = decode_any(path.read_bytes())
        rows = SampleTable.empty(np.zeros(6, np.int64))
        rows.fd[:], rows.offset[:], rows.num_bytes[:], rows.mode[:] = -1, 0, path.stat().st_size, MODE_JPEG
        rows.height[:], rows.width[:] = image.shape[:2]
        rows.orientation[:], rows.path[:] = orientation, str(path)
        margin = 0 if kind == codes.AREA else int(margin_px(20, size))
        limits = np.array(image.shape[:2]) - 2 * margin
        boxes = []
        for _ in range(2):
            # The last images are large beside their crops, so libjpeg decodes them at 1/4 or 1/8.
            low = limits - limits // 5 if height == 419 else np.ones(2, int)
            sides = random.integers(low, limits + 1, (6, 2)) if kind == codes.AREA else np.full((6, 2), 20)
            starts = margin + random.integers(0, limits - sides + 1)
            boxes.append(np.column_stack([starts, sides, np.full(6, kind)]).astype(np.int32))
        status, outs = decode(make("turbo"), rows, boxes, [size, size])
        assert not status.any()
        for out, places in zip(outs, boxes, strict=True):
            for crop, (top, left, rows_px, columns_px, _) in zip(out, places.tolist(), strict=True):
                if kind == codes.AREA:
                    expected = area_mean(image, (top, left, rows_px, columns_px), size)
                else:
                    expected, is_diagonal = np.empty((size, size, 3), np.uint8), kind == DIAGONAL
                    isotropic_resize(
                        image.reshape(-1), *image.shape[:2], top, left, 20, is_diagonal, expected
                    )
                difference = np.abs(crop - expected.astype(float))
                assert difference.mean() < bound / 2 and np.percentile(difference, 99) < bound + 1e-9


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "old PNG", "WEBP", "AVIF"])
def test_other_formats_are_turned_by_their_exif_alone(tmp_path: Path, kind: str, orientation: int) -> None:
    variants = [(order, type) for order in "<>" for type in (BYTE, SHORT, LONG)]
    image, expected = Image.fromarray(PHOTO), turned(PHOTO, orientation)
    if kind == "AVIF":  # Pillow translates SHORT to the file's own boxes
        variants = [(">", SHORT)]
    for order, type in variants:
        told = exif_of(order, entry(order, type, orientation))
        if kind == "old PNG":
            info = PngInfo()
            info.add_text("Raw profile type exif", f"\nexif\n{len(told):8}\n{told.hex()}\n", zip=True)
            data = file_of(image, "PNG", pnginfo=info)
        else:
            options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"subsampling": "4:4:4"}
            data = file_of(image, kind, exif=told, **options)
        (tmp_path / "x").write_bytes(data)
        assert upright_size(str(tmp_path / "x")) == expected.shape[:2]
        difference = np.abs(decode_any(data).astype(int) - expected).mean()
        assert difference < (3 if kind == "AVIF" else 1e-9)  # a wrong turn would give more than 30


def test_exif_does_not_turn_an_avif_without_boxes() -> None:
    data = file_of(Image.fromarray(PHOTO), "AVIF", exif=exif_of(">", entry(">", SHORT, 6, tag=0x113)))
    told = data.replace(entry(">", SHORT, 6, tag=0x113)[:10], entry(">", SHORT, 6)[:10])
    assert told != data
    np.testing.assert_array_equal(decode_any(told), decode_any(data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "TIFF"])
def test_xmp_turns_nothing(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"tiffinfo": {700: XMP}} if kind == "TIFF" else {"xmp": XMP}
    if kind == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    plain, told = (file_of(Image.fromarray(PHOTO), kind, **extra) for extra in ({}, options))
    assert b"tiff:Orientation" in told
    np.testing.assert_array_equal(decode_any(told), decode_any(plain))


def tiff(order: str, type: int, orientation: int, num_values: int = 1) -> bytes:
    """Return PHOTO as an uncompressed TIFF with such a tag, and with XMP of another orientation."""
    height, width, _ = PHOTO.shape
    tags = [(256, LONG, width), (257, LONG, height), (258, SHORT, 8), (259, SHORT, 1), (262, SHORT, 2)]
    tags += [(273, LONG, 8), (0x112, type, orientation), (277, SHORT, 3), (278, LONG, height)]
    tags += [(279, LONG, PHOTO.size)]
    nums = {0x112: num_values}
    entries = [entry(order, kind, value, nums.get(tag, 1), tag=tag) for tag, kind, value in tags]
    entries.append(struct.pack(f"{order}HHII", 700, BYTE, len(XMP), 8 + PHOTO.size))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + PHOTO.size + len(XMP))
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return head + PHOTO.tobytes() + XMP + directory


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_tiffs_are_turned_by_their_tag_alone(tmp_path: Path, order: str, orientation: int) -> None:
    for type, num_values in ((BYTE, 1), (SHORT, 1), (LONG, 1), (SIGNED, 1), (SHORT, 2)):
        data = tiff(order, type, orientation, num_values)
        (tmp_path / "x").write_bytes(data)
        is_told = type != SIGNED and num_values == 1
        expected = turned(PHOTO, orientation if is_told else 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of the number of values
            np.testing.assert_array_equal(decode_any(data), expected, f"{type} {num_values}")
            assert upright_size(str(tmp_path / "x")) == expected.shape[:2]


def test_a_big_tiff_is_turned(tmp_path: Path) -> None:
    data = file_of(Image.fromarray(PHOTO), "TIFF", exif=exif(6), big_tiff=True)
    assert data[:4] == b"II+\0"
    (tmp_path / "x").write_bytes(data)
    np.testing.assert_array_equal(decode_any(data), turned(PHOTO, 6))
    assert upright_size(str(tmp_path / "x")) == (130, 90)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["", "JPEG", "PNG", "TIFF"])
def test_a_pil_image_is_turned_by_the_tag_that_is_set(kind: str, orientation: int) -> None:
    """Pillow's own `exif_transpose` does so, too."""
    for is_loaded in (False, True):
        image = Image.fromarray(PHOTO)
        if kind:
            image = Image.open(io.BytesIO(file_of(image, kind, exif=exif(6))))
        if is_loaded:
            image.load()
        image.getexif()[0x112] = orientation
        first = convert_pillow(image)
        np.testing.assert_array_equal(first, np.asarray(ImageOps.exif_transpose(image)))
        np.testing.assert_array_equal(convert_pillow(image), first)


def test_a_tag_that_is_deleted_turns_no_pil_image() -> None:
    image = Image.open(io.BytesIO(jpeg(PHOTO, exif=exif(6))))
    del image.getexif()[0x112]
    assert convert_pillow(image).shape == PHOTO.shape
