"""CIFAR-10, CIFAR-100 and STL-10 as published: every layout, checksums and hostile pickles."""

import hashlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from fastpsl.files.untrusted import load_plain
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.sources import published
from tests.pipelines import published_files as made
from tests.pipelines.published_files import publish
from tests.pipelines.sources import refused, samples

NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES_100 = [f"class {i}" for i in range(100)]
PICKLE = made.old_pickle({b"data": np.zeros((2, 3), np.uint8)})


def content(source: Any) -> tuple[np.ndarray, list[int], list[str]]:
    results = list(source.samples())
    assert len(results) == source.num_samples
    images, labels, names = zip(*((s.image, s.label, s.name) for s in results), strict=True)
    return np.stack(images), list(labels), list(names)


@pytest.fixture(params=["cifar-10-python", "cifar-10-binary", "cifar-100-python", "cifar-100-binary"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    name = request.param
    is_ten, is_python = "10-" in name, name.endswith("python")
    names = NAMES_10 if is_ten else NAMES_100
    images, labels = made.random_images(30), np.random.default_rng(1).integers(0, len(names), 30)
    files = (made.cifar10 if is_ten else made.cifar100)(images, labels, names, is_python)
    folder = {"cifar-10-python": "cifar-10-batches-py", "cifar-10-binary": "cifar-10-batches-bin"}
    archive, where = publish(tmp_path, f"{name}.tar.gz", folder.get(name, name), files, monkeypatch)
    return {
        "archive": archive, "folder": where, "images": images, "labels": list(labels), "names": names,
        "format": "cifar10" if is_ten else "cifar100", "num_train": 25 if is_ten else 20,
    }  # fmt: skip


@pytest.mark.parametrize("where", ["archive", "folder"])
def test_cifar(cifar: dict[str, Any], where: str) -> None:
    num = cifar["num_train"]
    for split, which in ((None, slice(0, num)), ("train", slice(0, num)), ("test", slice(num, None))):
        source = open_source(str(cifar[where]), split=split)
        assert source.class_names == cifar["names"] and source.mode == "raw"
        assert source.notes == ([] if split else ["--split train of train, test"])
        images, labels, names = content(source)
        assert (images == cifar["images"][which]).all() and labels == cifar["labels"][which]
        assert names[0].endswith("[0]")
    for num_shards in (3, 50):
        parts = [open_source(str(cifar[where]), shard=(i, num_shards)) for i in range(num_shards)]
        results = [sample for part in parts for sample in part.samples()]
        assert (np.stack([np.asarray(sample.image) for sample in results]) == cifar["images"][:num]).all()


@pytest.mark.parametrize("cifar", ["cifar-10-python", "cifar-100-python"], indirect=True)
def test_cifar_equals_torchvisions(cifar: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[cifar["format"]]
    monkeypatch.setattr(dataset, "_check_integrity", lambda _: True)
    monkeypatch.setitem(dataset.meta, "md5", None)
    for is_train in (True, False):
        expected_set = dataset(str(cifar["folder"].parent), train=is_train)
        split = "train" if is_train else "test"
        source = open_source(str(cifar["folder"].parent), cifar["format"], split=split)
        images, labels, _ = content(source)
        assert (images == expected_set.data).all()
        assert labels == expected_set.targets and source.class_names == expected_set.classes


def test_stl10_equals_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    monkeypatch.setattr(STL10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(published, "_BLOCK_BYTES", 60_000)  # two images
    names = NAMES_10[:9] + ["truck"]
    images, labels = made.random_images(15, 96), np.random.default_rng(1).integers(0, 10, 15)
    archive, folder = publish(
        tmp_path, "stl10_binary.tar.gz", "stl10_binary", made.stl10(images, labels, names), monkeypatch
    )
    for split, thirds in (("train", [0]), ("test", [1]), ("unlabeled", [2]), ("train+unlabeled", [0, 2])):
        expected = np.concatenate([np.arange(5) + 5 * third for third in thirds])
        expected_set = STL10(str(tmp_path), split=split)
        for where in (archive, folder, tmp_path):
            source = open_source(str(where), "stl10", split=split)
            source_images, source_labels, _ = content(source)
            assert (source_images == images[expected]).all()
            assert (source_images == expected_set.data.transpose(0, 2, 3, 1)).all()
            wanted = [-1 if i >= 10 else labels[i] for i in expected]
            assert source_labels == wanted == list(expected_set.labels)
            assert source.class_names == names == expected_set.classes
    assert open_source(str(archive)).notes == ["--split train of train, test, unlabeled, train+unlabeled"]


def test_it_becomes_a_beton(cifar: dict[str, Any], tmp_path: Path) -> None:
    source = open_source(str(cifar["archive"]), split="test")
    out = tmp_path / "test.beton"
    write_beton(
        source.samples(), out, num_samples=source.num_samples, class_names=source.class_names,
        target=Target(mode=source.mode),
    )  # fmt: skip
    with Beton(out) as beton:
        assert beton.class_names == cifar["names"]
        assert beton.read(0) == cifar["images"][cifar["num_train"]].tobytes()


def test_what_is_not_as_published(cifar: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    archive, folder, format = cifar["archive"], cifar["folder"], cifar["format"]

    def refuse(src: Path, *words: str, **options: Any) -> None:
        with refused(src, *words):
            samples(src, format=format, **options)

    with pytest.raises(ValueError, match="--split val: cifar100? has no such split; give one of train, test"):
        open_source(str(archive), split="val")
    for checked in folder.iterdir():
        if f"{folder.name}/{checked.name}" in published.MD5:
            data = checked.read_bytes()
            checked.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            split = "test" if checked.name.startswith("test") else "train"
            words = "is not the published file (MD5 ", "download it again from"
            refuse(folder, checked.name, *words, split=split)
            checked.write_bytes(data)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1])
    refuse(archive, "as published (MD5 ", "download it again from https://")
    monkeypatch.setitem(published.MD5, archive.name, hashlib.md5(whole[:-9999]).hexdigest())
    archive.write_bytes(whole[:-9999])
    refuse(archive, "download it again")  # the checksum fits, but the archive is damaged
    next(folder.glob("*train*" if format == "cifar100" else "data_batch_3*")).unlink()
    archive.unlink()
    refuse(folder, f"no {format} there")
    refuse(folder / "none", "no such file")


class Evil:
    def __init__(self, *reduced: Any):
        self.reduced = reduced

    @override
    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ("numpy.load is not let in", b"cnumpy\nload\n(U\x04/tmptR."),
        ("numpy.frombuffer is not let in", PICKLE.replace(b"numpy\ndtype", b"numpy\nfrombuffer")),
        ("an array of another kind", PICKLE.replace(b"U\x02u1", b"U\x02O8")),
        ("is no dictionary", pickle.dumps([1], 2)),
        ("callable", b"cnumpy\nndarray\n)R."),
        *[("", data) for data in (b"P1\n.", PICKLE[:-20], b"", b"\x80\x02}U\x01a.")],
        *[
            ("an array of another kind", PICKLE.replace(b"(J\2\0\0\0J\3\0\0\0t", b"(" + shape + b"t"))
            for shape in (b"K\x03K\x03", b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff", b"K\x02")
        ],
    ],
)  # fmt: skip
def test_a_pickle_that_tries_more_is_refused(words: str, data: bytes) -> None:
    assert data != PICKLE
    with refused(words):
        load_plain(data)
    results = load_plain(PICKLE)[b"data"]
    assert results.shape == (2, 3) and results.dtype == np.uint8


ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_lists_of_them(protocol: int) -> None:
    read_only = ARRAY.copy()
    read_only.flags.writeable = False
    by_columns = ARRAY[:, (1, 0, 3, 2)]
    assert by_columns.flags.f_contiguous and not by_columns.flags.c_contiguous
    arrays: list[np.ndarray] = [ARRAY, by_columns, ARRAY[::2], read_only, np.zeros((0, 4), np.float32)]
    arrays += [ARRAY.astype(kind) for kind in (np.float64, np.int64, np.uint8, np.uint16, np.int32)]
    whole: dict[str, Any] = {
        "boxes": arrays,
        "ids": [7, np.int64(9), "000005", np.float64(0.5)],
        "one": ARRAY,
        "text": "A: b",
    }
    loaded = load_plain(pickle.dumps(whole, protocol))
    assert loaded.keys() == whole.keys() and loaded["text"] == "A: b"
    assert loaded["ids"] == [7, 9, "000005", 0.5] and type(loaded["ids"][1]) is int
    for expected, array in zip([*arrays, ARRAY], [*loaded["boxes"], loaded["one"]], strict=True):
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert np.array_equal(array, expected)


def of_python_2(array: np.ndarray, kind: bytes, order: bytes = b"<") -> bytes:
    """Pickle {"boxes": [array]} like cPickle's second protocol, with strings as bytes."""
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R(K\x03U\x01" + order
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(b"K" + bytes([side]) for side in array.shape) + b"t"
    data = b"T" + struct.pack("<i", array.nbytes) + array.tobytes()
    return b"\x80\x02}U\x05boxes](" + head + b"(K\x01" + shape + dtype + b"\x89" + data + b"tbes."


def test_python_2s() -> None:
    loaded = load_plain(of_python_2(ARRAY, b"f4"))
    assert list(loaded) == [b"boxes"] and np.array_equal(loaded[b"boxes"][0], ARRAY)
    assert loaded[b"boxes"][0].dtype == np.float32


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_refused(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    arrays: list[np.ndarray] = [
        np.array([[1], "x"], object), np.array(["text"]), np.zeros(3, np.complex64), np.zeros(3, ">f4"),
        np.zeros(3, [("a", "f4")]), np.array(["2020"], "M8[Y]"),
    ]  # fmt: skip
    for array in arrays:
        with refused("an array of another kind"):
            load_plain(pickle.dumps({"boxes": [array]}, protocol))
    writes = f"open({str(mark)!r}, 'w')"
    hostile = (Evil(os.mkdir, (str(mark),)), Evil(eval, (writes,)), Evil(bytes.fromhex, ("00",)))
    for value in (*hostile, {1}.__class__, os.getcwd):
        for record in ({"boxes": [value]}, value):
            with refused("is not let in"):
                load_plain(pickle.dumps(record, protocol))
    with refused("posix.mkdir is not let in"):
        load_plain(pickle.dumps(hostile[0], protocol))
    assert not mark.exists()


def test_damaged_arrays_are_refused() -> None:
    whole = of_python_2(ARRAY, b"f4")
    shape = b"(K\x03K\x04t"
    for damaged in (
        of_python_2(ARRAY, b"f8"),
        of_python_2(ARRAY, b"f4", b">"),
        of_python_2(ARRAY, b"O8"),
        of_python_2(ARRAY, b"V4"),
        whole.replace(shape, b"(K\x03K\x05t"),
        whole.replace(shape, b"(J\xfd\xff\xff\xffJ\xfc\xff\xff\xfft"),
        whole.replace(shape, b"(NK\x04t"),
        whole.replace(b"\x89T", b"NT"),
    ):
        assert damaged != whole
        with pytest.raises(ValueError, match="an array of another kind"):
            load_plain(damaged)
    for end in range(len(whole)):
        with pytest.raises(ValueError, match="a pickle that is not of plain data"):
            load_plain(whole[:end])
