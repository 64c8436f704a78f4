"""Reading betons, by ffcv and by fastpsl: tables, fields, checksums, and what is no beton or damaged."""

import gc
import os
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.cli import main
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.beton import shard
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.pages import pages_of
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import (
    ALLOCATION,
    FIELD,
    HEADER,
    IMAGE_TYPE,
    INT_TYPE,
    Shard,
    Table,
    TruncatedError,
    row_dtype,
)
from fastpsl.pipelines.beton.sidecar import MARK, MARK_START, has_checksums, read_checksums
from fastpsl.pipelines.beton.verify import info, unchecked, verify
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.interface.dataset import require_labels
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.beton_stock import image_of
from tests.pipelines.decoding import batches_of
from tests.pipelines.photos import (
    DECODERS,
    FAR_BYTES,
    JPG,
    RAW,
    ffcv_decode,
    jpeg,
    needs_ffcv,
    photo,
    photo_samples,
    pil_decode,
    write,
)

STOCK = Path(__file__).with_name("beton_stock.py")
TABLE_START = HEADER.itemsize + 2 * FIELD.itemsize
ROW = row_dtype((IMAGE_TYPE, INT_TYPE))
NUM_STOCK = 40
FIVE = photo_samples(5)
OURS = ("jpg", "raw", "shard", "far")
EQUAL = [photo(i, 40, 50) for i in range(8)]
OVERWRITTEN = "a.beton: was overwritten while it was in use"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write betons by ffcv, and by us some that ffcv reads (in `OURS`), and return their folder."""
    folder = tmp_path_factory.mktemp("stock")
    samples = [Sample(str(i), image, 7 - i) for i, image in enumerate(EQUAL[:8])]
    outs = {name: folder / f"ours {name}.beton" for name in OURS}
    for name in ("jpg", "raw"):  # fewer come than announced
        write_beton(samples, outs[name], num_samples=10, target=Target(mode=name))
    write_beton(samples, folder / "a.beton", num_samples=10, target=Target(mode="raw"), shard_mb=16)
    (folder / "a-00000-of-00001.beton").rename(outs["shard"])
    (folder / "a-00000-of-00001.beton.json").rename(f"{outs['shard']}.json")
    write(outs["far"], [(image.tobytes(), 40, 50, RAW) for image in EQUAL[7::-1]], hole_bytes=FAR_BYTES)
    command = [sys.executable, STOCK, folder, NUM_STOCK, *outs.values()]
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=240)
    return folder


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """Write five photos as a.beton."""
    return write(tmp_path / "a.beton", FIVE)


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def header_of(data: bytes, **values: int) -> np.ndarray:
    """Return the header of a beton, HEADER [1], with some values replaced."""
    header = np.frombuffer(data, HEADER, 1).copy()
    for name, value in values.items():
        header[name] = value
    return header


def alloc_of(data: bytes) -> int:
    return int(header_of(data)["alloc_table_ptr"][0])


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Beton(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text and all(word in text for word in words), text


@pytest.mark.slow
@needs_ffcv("its own DatasetWriter writes the file")
@pytest.mark.parametrize("mode", ["jpg", "raw", "proportion"])
def test_reads_what_ffcv_writes(mode: str, stock: Path) -> None:
    num, path = NUM_STOCK, stock / f"{mode}.beton"
    with Beton(path) as beton:
        rows = beton.rows(np.arange(num))
        assert beton.num_samples == num and beton.num_classes == 7 and beton.class_names is None
        assert set(rows.mode) == {"jpg": {JPG}, "raw": {RAW}, "proportion": {JPG, RAW}}[mode]
        for i in range(num):
            pixels, label = image_of(i)
            data = beton.read(i)
            assert (rows.height[i], rows.width[i], rows.label[i]) == (*pixels.shape[:2], label)
            assert len(data) == rows.num_bytes[i]
            if rows.mode[i] == RAW:
                assert data == pixels.tobytes()
            else:
                assert pil_decode(data).shape == pixels.shape
        assert list(beton.labels()) == [i % 7 for i in range(num)]
        heights, widths = zip(*(image_of(i)[0].shape[:2] for i in range(num)), strict=True)
        assert beton.image_sizes() == (min(heights), min(widths), max(heights), max(widths))
        assert beton.max_bytes == rows.num_bytes.max()
    assert list(verify(path)) == []


@pytest.mark.slow
@needs_ffcv("its own Reader and Loader read")
@pytest.mark.parametrize("name", OURS)
def test_ffcv_reads_ours(name: str, stock: Path) -> None:
    path = stock / f"ours {name}.beton"
    labels = list(range(8) if name == "far" else range(7, -1, -1))
    with np.load(f"{path}.npz") as arrays, Beton(path) as beton:
        assert has_checksums(beton.shards[0])  # which ffcv ignores
        assert list(arrays["names"]) == ["image", "label"] and arrays["num_samples"] == 8
        for i, label in enumerate(labels):
            expected = ffcv_decode(beton.read(i), 40, 50) if name == "jpg" else EQUAL[7 - label]
            for os_cache in (True, False):
                assert list(arrays[f"labels_{os_cache}"]) == labels
                assert (arrays[f"images_{os_cache}"][i] == expected).all()


def test_allocations_out_of_order_are_joined(tmp_path: Path) -> None:
    samples = photo_samples(9)
    path = write(tmp_path / "a.beton", samples)
    data = path.read_bytes()
    table = np.frombuffer(data[alloc_of(data) :], ALLOCATION)
    path.write_bytes(data[: alloc_of(data)] + table[np.random.default_rng(0).permutation(9)].tobytes())
    with Beton(path) as beton:
        assert beton.shards[0]._sizes is not None  # so the slow path was used
        assert [beton.read(i) for i in range(9)] == [sample[0] for sample in samples]


def test_shards_are_one_list(tmp_path: Path) -> None:
    parts = [photo_samples(4, 0), photo_samples(3, 50), photo_samples(5, 90)]
    paths = [write(tmp_path / f"train-{i}.beton", part) for i, part in enumerate(parts)]
    whole = [sample[0] for part in parts for sample in part]
    pattern = tmp_path / "train-*.beton"
    for source in (pattern, str(pattern), paths[::-1]):
        with Beton(source) as beton:
            assert beton.num_samples == 12 and beton.paths == paths
            assert [beton.read(i) for i in range(12)] == whole
            rows = beton.rows(np.array([11, 0, 4, 3, 6, 7, 7]))
            assert list(rows.label) == [4, 0, 0, 3, 2, 0, 0] and len(set(rows.fd)) == 3
            assert beton.name(6) == f"{tmp_path}/train-1.beton sample 2"
    with Beton(paths[0]) as first, Beton(paths[1]) as second, Beton(paths[0]) as again:
        assert first.digest() != second.digest() and first.digest() == again.digest()
        assert len(first.rows(np.zeros(0, np.int64)).fd) == 0


def test_what_is_no_beton_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.beton", "no such file or folder")
    refused(tmp_path / "*.beton", "no file matches")
    refused(tmp_path, "directory")
    for name, data, word in (
        ("empty", b"", "empty"),
        ("short", b"\x02\x00\x02", "shorter than a header"),
        ("zip", b"PK\x03\x04" + bytes(5000), "is no dataset file"),
        ("zeros", bytes(100_000), "is no dataset file"),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, word)


def test_unfinished_and_absurd_headers(five: Path) -> None:
    good = five.read_bytes()
    alloc = alloc_of(good)
    for values, word in (
        ({"alloc_table_ptr": 0}, "never finished"),
        ({"num_samples": 0}, "no samples"),
        # It overlaps the other table.
        ({"alloc_table_ptr": alloc - (alloc - TABLE_START) // 24 * 24}, "truncated or damaged"),
        ({"version": 1}, "format 2"),
    ):
        five.write_bytes(replaced(good, 0, header_of(good, **values).tobytes()))
        refused(five, word)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("data_ptr", 0, "allocation table"),
        ("height", 0, "side of 0 px"),
        ("sides", 23_171, "more than 536,870,912 pixels"),
        ("mode", RAW, "height * width * 3"),
        ("label", -2, "below -1"),
    ],
)
def test_bad_rows_are_named(field: str, value: int, word: str, five: Path) -> None:
    data = five.read_bytes()
    table = np.frombuffer(data, ROW, 5, TABLE_START).copy()
    if field == "label":
        table["f1"][3] = value
    for name in ("height", "width") if field == "sides" else (field,) if field != "label" else ():
        table["f0"][name][3] = value
    five.write_bytes(replaced(data, TABLE_START, table.tobytes()))
    refused(five, "sample 3", word)


def test_a_file_that_shrinks_is_an_error_not_a_crash(five: Path) -> None:
    with Beton(five) as beton:
        os.truncate(five, 100)
        with pytest.raises(ValueError, match="was truncated while it was in use"):
            beton.read(3)


def test_a_beton_cut_short_after_the_check_is_refused(five: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shard, "check_unchanged", lambda self: None)
    with Beton(five) as data:
        os.truncate(five, TABLE_START + 2 * ROW.itemsize)
        with pytest.raises(ValueError, match=r"a\.beton: was truncated while it was in use"):
            data.rows(np.arange(5))


def test_a_beton_that_is_overwritten_in_place_is_named(five: Path) -> None:
    """Even by a sound one of the same size, because its table would be read with the new images."""
    same, changed = five.read_bytes(), bytearray(five.read_bytes())
    changed[alloc_of(same) - 9] ^= 1  # a byte of the last sample's checksum, as for other images
    with Beton(five) as beton:
        before = beton.read(3)
        os.utime(five, ns=(0, five.stat().st_mtime_ns))  # the access time does not matter
        assert beton.read(3) == before
        five.write_bytes(same)
        os.utime(five, ns=(0, 7))  # set by hand, because clocks are coarse
        assert beton.read(3) == before  # only the time has changed
        time.sleep(0.05)  # more than a tick of the file system's clock
        with open(five, "r+b") as file:
            file.write(changed)
        os.utime(five, ns=(0, 7))  # as tools do that keep the time: that of the last change tells
        for read in (lambda: beton.read(3), lambda: pages_of(beton)):
            with pytest.raises(ValueError, match=f"{OVERWRITTEN}; put the old file back"):
                read()


def test_a_beton_that_is_replaced_by_renaming_is_read_on(five: Path, tmp_path: Path) -> None:
    with Beton(five) as beton:
        os.replace(write(tmp_path / "b.beton", photo_samples(5, 50)), five)
        assert [beton.read(i) for i in range(5)] == [sample[0] for sample in FIVE]


def place(field: str) -> int:
    """Return the position of a field's first byte in a row."""
    row = np.zeros(1, ROW)
    (row["f1"] if field == "label" else row["f0"][field])[:] = 1
    return row.tobytes().index(1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("height", 0), ("width", 0), ("height", 65535), ("width", 65535)]
    + [("label", -2), ("label", 2**40), ("size", 2**50)],
)
def test_rows_beyond_what_was_opened_are_refused(
    field: str, value: int, five: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table may be overwritten between the check of the file's time and the reading of its rows."""
    monkeypatch.setattr(Shard, "check_unchanged", lambda shard: None)
    with Beton(five) as beton:
        at, kind = TABLE_START + 3 * ROW.itemsize, {"label": "<i8", "size": "<u8"}.get(field, "<u2")
        is_size = field == "size"
        at = beton.shards[0].alloc + 3 * ALLOCATION.itemsize + 16 if is_size else at + place(field)
        with open(five, "r+b") as file:
            file.seek(at)
            file.write(np.array(value, kind).tobytes())
        assert beton.rows(np.array([0, 4])).height.all()
        with pytest.raises(ValueError, match=OVERWRITTEN):
            beton.rows(np.array([0, 3]))


def test_no_file_stays_open(five: Path, tmp_path: Path) -> None:
    gc.collect()  # garbage of other tests
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Beton(five) as beton:
            beton.read(0)
        (tmp_path / "bad.beton").write_bytes(five.read_bytes()[:-1])
        refused(tmp_path / "bad.beton")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


NUM_RAW, PAGE = 6, 1 << 21  # where the data begin


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write raw images, for which all bytes are valid."""
    samples = [(photo(i, 5 + i, 9).tobytes(), 5 + i, 9, RAW) for i in range(NUM_RAW)]
    return write(tmp_path / "a.beton", samples)


def contents(path: Path) -> "list[tuple[bytes, int, int, int]] | None":
    """Return the bytes, height, width and label of each sample, or None if the beton is refused."""
    try:
        with Beton(path) as beton:
            rows = beton.rows(np.arange(beton.num_samples))
            sides = zip(rows.height.tolist(), rows.width.tolist(), rows.label.tolist(), strict=True)
            return [(beton.read(i), *of) for i, of in enumerate(sides)]
    except ValueError:
        return None


def test_the_checksums_are_those_of_rows_and_data(raw: Path) -> None:
    with Beton(raw) as beton:
        rows = np.frombuffer(raw.read_bytes(), ROW, NUM_RAW, TABLE_START)
        expected = [zlib.crc32(rows[i].tobytes() + beton.read(i)) for i in range(NUM_RAW)]
        assert has_checksums(beton.shards[0]) and read_checksums(beton.shards[0]).tolist() == expected
        assert unchecked(beton) == "" and "checksum of each sample    CRC-32" in info(beton)


def test_no_change_of_what_is_read_goes_unseen(raw: Path) -> None:
    """Bits of header, table, data, checksums and allocation table change, without a JSON."""
    original, random = raw.read_bytes(), np.random.default_rng(0)
    expected, end = contents(raw), len(original)
    assert alloc_of(original) + NUM_RAW * ALLOCATION.itemsize == end
    ranges = [(HEADER.itemsize, TABLE_START, 40), (TABLE_START, TABLE_START + NUM_RAW * ROW.itemsize, 150)]
    places = [random.integers(*each) for each in [*ranges, (PAGE, end, 150)]]
    num_changed = 0
    for at in np.concatenate([np.arange(HEADER.itemsize), *places]).tolist():
        with open(raw, "r+b") as file:
            file.seek(at)
            file.write(bytes([original[at] ^ 1 << int(random.integers(8))]))
        samples = contents(raw)
        if samples is not None and samples != expected:
            num_changed += 1
            assert list(verify(raw)), at
        with open(raw, "r+b") as file:
            file.seek(at)
            file.write(original[at : at + 1])
    assert raw.read_bytes() == original and list(verify(raw)) == []
    assert num_changed > 50


def test_the_sample_is_named(raw: Path) -> None:
    original = raw.read_bytes()
    rows = np.frombuffer(original, ROW, NUM_RAW, TABLE_START).copy()
    rows["f1"][[2, 4]] = rows["f1"][[4, 2]]
    raw.write_bytes(replaced(original, TABLE_START, rows.tobytes()))
    wrong = "its bytes, size or label are not those that were written"
    assert list(verify(raw)) == [f"{raw} sample 2: {wrong}", f"{raw} sample 4: {wrong}"]


def test_damaged_checksums_are_said_and_keep_nobody_from_reading(raw: Path) -> None:
    original, expected = raw.read_bytes(), contents(raw)
    checksum, descriptor = alloc_of(original) - 5, HEADER.itemsize + 900
    for at, what in ((checksum, "checksums are damaged"), (descriptor, "header is not as it was")):
        raw.write_bytes(replaced(original, at, bytes([original[at] ^ 1])))
        assert contents(raw) == expected
        (problem,) = verify(raw)
        assert what in problem
    # A header with fewer samples than there are.
    raw.write_bytes(replaced(original, 0, header_of(original, num_samples=NUM_RAW - 1).tobytes()))
    (problem,) = verify(raw)
    assert "checksums are damaged" in problem


def test_betons_without_are_read_and_said_to_be_checked_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write(tmp_path / "a.beton", [(jpeg(photo(0, 40, 50)), 40, 50, JPG)])
    out.write_bytes(out.read_bytes().replace(MARK, bytes(len(MARK)), 1))
    with Beton(out) as beton:
        assert not has_checksums(beton.shards[0]) and "checksum of each sample    none" in info(beton)
        assert unchecked(beton).startswith("no checksums in it and no JSON beside it")
    main(["data", "verify", str(out)])
    assert capsys.readouterr().out.startswith(f"{out}: 1 samples, all sound (no checksums in it")


FLOAT, ARRAY = 0, 4
# Fields other than an integer label, with the names of those that are not read.
FIELDS = {
    "images": ([(IMAGE_TYPE, "image")], None),
    "fractions": ([(IMAGE_TYPE, "image"), (FLOAT, "label")], "label"),
    "several labels": ([(ARRAY, "labels"), (IMAGE_TYPE, "image"), (FLOAT, "weight")], "labels, weight"),
}


def with_fields(path: Path, fields: list[tuple[int, str]]) -> Path:
    """Write five photos with these fields, types and names, in place of image and label."""
    data = write(path, FIVE).read_bytes()
    old = np.frombuffer(data, ROW, 5, TABLE_START)
    descriptors, rows = np.zeros(len(fields), FIELD), np.zeros(5, row_dtype([kind for kind, _ in fields]))
    for i, (type_id, name) in enumerate(fields):
        descriptors[i]["type_id"] = type_id
        descriptors[i]["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        if type_id in (IMAGE_TYPE, INT_TYPE):
            rows[f"f{i}"] = old["f0" if type_id == IMAGE_TYPE else "f1"]
    head = header_of(data, num_fields=len(fields)).tobytes() + descriptors.tobytes() + rows.tobytes()
    data = replaced(data, 0, head)
    assert MARK not in data[MARK_START : MARK_START + len(MARK)]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", FIELDS)
def test_images_without_a_class_number_have_the_label_none(kind: str, tmp_path: Path) -> None:
    fields, unread = FIELDS[kind]
    path = with_fields(tmp_path / "a.beton", fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = open_data(path)
    assert isinstance(data, Beton)
    told = f"{path}: has no IntField, and {unread} is not read: no labels; "
    told += "for class labels, write it again with an IntField"
    assert [str(warning.message) for warning in caught] == ([told] if unread else [])
    with data:
        assert data.labels().tolist() == data.rows(np.arange(5)).label.tolist() == [-1] * 5
        assert (data.num_samples, data.num_classes, data.class_names) == (5, 0, None)
        assert [data.read(i) for i in range(5)] == [sample[0] for sample in FIVE]
        assert "without a label            5" in info(data) and "no checksums" in unchecked(data)
        with pytest.raises(ValueError, match="this needs labels, and 5 of 5 samples have none"):
            require_labels(data, "this")
    assert list(verify(path)) == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_reads_them(decoder: str, five: Path, tmp_path: Path) -> None:
    views = [ViewSpec(ShorterSideCrop(24, 24, where="center"))]
    batches = list[Batch]()
    for path in (five, with_fields(tmp_path / "images.beton", FIELDS["images"][0])):
        with Beton(path) as data:
            batches += batches_of(data, views, 5, train=False, decoder=decoder, num_threads=1)
    labelled, images = batches
    assert images.labels.tolist() == [-1] * 5 != labelled.labels.tolist()
    assert torch.equal(images.images[0], labelled.images[0])


@pytest.mark.slow
@needs_ffcv("its own DatasetWriter writes the files")
@pytest.mark.parametrize("kind", FIELDS)
def test_what_ffcv_writes_without_an_integer(kind: str, stock: Path) -> None:
    path = stock / f"{kind}.beton"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Beton(path) as data:
            assert data.labels().tolist() == [-1] * 5
            assert [data.read(i) for i in range(5)] == [image_of(i)[0].tobytes() for i in range(5)]
    told = ["and label is not read" in str(warning.message) for warning in caught]
    assert told == [True] * (kind != "images")
    assert list(verify(path)) == []


TABLE_ROW = np.dtype([("a", "u1"), ("b", "<u8"), ("c", "<u2")], align=True)
START, NUM_ROWS = 13, 1000


@pytest.fixture(params=["C", "Python"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test by the C library, where it was built, and without it."""
    if request.param == "Python":
        monkeypatch.setattr(shard, "library", lambda: None)
    elif shard.library() is None:
        pytest.skip("the C library was not built")
    return str(request.param)


def test_rows_are_those_of_the_file(by: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(START + NUM_ROWS * TABLE_ROW.itemsize)
    (tmp_path / "file").write_bytes(data)
    expected = np.frombuffer(data, TABLE_ROW, offset=START)
    indices = np.random.default_rng(1).integers(0, NUM_ROWS, 300)
    slices = slice(None), slice(3, 90), slice(NUM_ROWS - 1, NUM_ROWS + 5), slice(7, 7)
    with open(tmp_path / "file", "rb") as file:
        rows = Table(file.fileno(), START, TABLE_ROW, NUM_ROWS)
        assert len(rows) == NUM_ROWS
        for which in (*slices, indices, indices[:0]):
            got = rows[which]
            assert got.dtype == TABLE_ROW and got.tolist() == expected[which].tolist()


def test_a_file_cut_short_is_an_error(by: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(START + NUM_ROWS * TABLE_ROW.itemsize))
    with open(tmp_path / "file", "r+b") as file:
        rows = Table(file.fileno(), START, TABLE_ROW, NUM_ROWS)
        file.truncate(START + 500 * TABLE_ROW.itemsize - 1)
        assert len(rows[:499]) == len(rows[np.arange(499)]) == 499
        for which in (slice(None), np.array([0, 499])):
            with pytest.raises(TruncatedError):
                rows[which]


def test_an_error_of_the_disk_is_told_apart(by: str, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        Table(folder, 0, TABLE_ROW, NUM_ROWS)[np.array([0])]
    os.close(folder)
