"""VOC's folders, annotations and masks, also those in MATLAB's files, and damaged ones."""

import io
import re
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.datasets.voc import annotations
from fastpsl.pipelines.datasets.voc.annotations import _inflated, mask_png, palette, read_mat
from fastpsl.pipelines.datasets.voc.dataset import CLASSES, VOC, open_train_and_test
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.annotated import read_image
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import exif, jpeg, photo, pil_decode
from tests.pipelines.voc_folders import CAT, DOG, mask_of, save_mask, sbd, voc_2007, voc_2012, write_sbd_mask

TRAINVAL = ("2007_trainval",)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return voc_2012(voc_2007(tmp_path / "VOCdevkit"))


def test_boxes_classes_and_difficult_ones(root: Path) -> None:
    data = VOC(root, TRAINVAL, "boxes")
    assert [data.image_id(i) for i in range(2)] == ["000007", "000005"]  # in the list's order
    assert len(CLASSES) == 20 and list(CLASSES) == sorted(CLASSES) == data.class_names
    dog, cat = data.objects(0), data.objects(1)
    # Computed by hand: xmin - 1, ymin - 1, xmax, ymax. A part is no object.
    np.testing.assert_allclose(dog.boxes, [[0, 10, 20, 48], [44.7, 1, 64, 30.5]], rtol=1e-6)  # type: ignore[arg-type]
    assert dog.labels.tolist() == [11, 14] and dog.difficult.tolist() == [False, True]
    np.testing.assert_allclose(cat.boxes, [[4, 5, 5, 6], [0, 0, 40, 60], [1, 1, 3, 4]])
    assert cat.labels.tolist() == [0, 19, 19] and cat.difficult.tolist() == [False, True, False]
    assert dog.boxes.dtype == np.float32 and dog.labels.dtype == np.int64 and dog.difficult.dtype == bool
    targets = np.zeros((2, 20))
    targets[0, 11], targets[0, 14], targets[1, 0], targets[1, 19] = 1, -1, 1, 1
    assert (data.targets() == targets).all() and data.targets().dtype == np.int8


def test_several_sets_follow_one_another(root: Path) -> None:
    both = VOC(root.parent, ("2007_test", "2007_trainval"), "boxes")  # the folder that holds VOCdevkit
    assert [both.image_id(i) for i in range(3)] == ["000009", "000007", "000005"]
    assert both.split == "2007_test+2007_trainval" and both.num_samples == 3
    assert both.image_sizes() == (48, 40, 60, 64)
    assert (both.objects(0).boxes == both.objects(1).boxes).all() and len(both.objects(2).labels) == 3


def test_masks(root: Path) -> None:
    data = VOC(root, ("2012_train",), "masks")
    assert [data.image_id(i) for i in range(2)] == ["2007_000032", "2007_000039"]
    for i, (seed, width) in enumerate(((0, 70), (2, 72))):
        assert (data.mask(i) == mask_of(seed, 50, width)).all() and data.mask(i).dtype == np.uint8
    assert set(np.unique(data.mask(0))) == {0, 1, 20, 255}


def test_masks_are_written_in_vocs_palette(tmp_path: Path) -> None:
    colours = palette()
    # The first and the last colours of the devkit's list.
    first = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert colours[:6].tolist() == first
    assert colours[20].tolist() == [0, 64, 128] and colours[255].tolist() == [224, 224, 192]
    mask = mask_of(0, 50, 70)
    (tmp_path / "mask.png").write_bytes(mask_png(mask))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P" and (np.array(image) == mask).all()
        assert (np.array(image.convert("RGB")) == colours[mask]).all()


def test_sbd_adds_what_is_in_neither_of_vocs_lists(root: Path, tmp_path: Path) -> None:
    place = sbd(tmp_path, root / "VOC2012" / "JPEGImages")
    for path in (place, place / "dataset", tmp_path):
        data = VOC(root, ("2012_train",), "masks", sbd=path)
        names = [data.image_id(i) for i in range(data.num_samples)]
        assert names == ["2007_000032", "2007_000039", "2008_000001", "2008_000002"]
    assert data.split == "2012_train+sbd"
    expected = mask_of(2, 44, 60)
    assert (data.mask(2) == np.where(expected == 255, 0, expected)).all()
    assert (data.mask(0) == mask_of(0, 50, 70)).all()  # VOC's own mask, with its border
    assert data.name(2).endswith("dataset/img/2008_000001.jpg")
    assert data.digest() != VOC(root, ("2012_train",), "masks").digest()
    for sets, needs in ((("2012_val",), "masks"), (TRAINVAL, "boxes")):
        with pytest.raises(ValueError, match="SBD adds masks to 2012_train"):
            VOC(root, sets, needs, sbd=place)  # type: ignore[arg-type]


def test_own_classes(root: Path) -> None:
    lines = "tvmonitor\naeroplane\n\nperson\ndog\n"
    (root / "classes.txt").write_text(lines, encoding="utf-8-sig")  # as editors of Windows write it
    data = VOC(root, TRAINVAL, "boxes")
    assert data.class_names == ["tvmonitor", "aeroplane", "person", "dog"] and data.num_classes == 4
    assert data.objects(0).labels.tolist() == [3, 2] and data.targets().shape == (2, 4)
    assert data.digest() != VOC(voc_2007(root.parent / "other"), TRAINVAL, "boxes").digest()


def test_the_loader_reads_it(root: Path) -> None:
    data: Dataset = VOC(root, TRAINVAL, "boxes")
    views = [ViewSpec(ShorterSideCrop(40, 40, where="center"))]
    with Loader(data, views, batch_size_per_rank=2, train=False, decoder="pillow", num_threads=1) as loader:
        (batch,) = loader.epoch(0)
    assert batch.indices.tolist() == [0, 1] and batch.labels.tolist() == [-1, -1]
    assert (data.labels() == -1).all() and data.labels().dtype == np.int32
    rows = data.rows(np.array([1, 0, 1]))
    assert rows.indices.tolist() == [1, 0, 1] and rows.height.tolist() == [60, 48, 60]
    for i, size in enumerate(((48, 64), (60, 40))):
        image = read_image(data, i)
        assert tuple(image.shape) == (3, *size)
        exact = pil_decode(Path(data.name(i)).read_bytes()).astype(int)
        assert abs(image.permute(1, 2, 0).numpy() - exact).mean() < 1
    assert abs(batch.images[0][1].permute(1, 2, 0).float() - torch.from_numpy(exact[10:50])).mean() < 1
    with pytest.raises(IndexError):
        data.rows(np.array([2]))


def test_sizes_are_those_of_the_upright_image(root: Path) -> None:
    path = root / "VOC2007" / "JPEGImages" / "000005.jpg"
    path.write_bytes(jpeg(photo(5, 40, 60), exif=exif(6)))  # 60 x 40 px when upright
    data = VOC(root, TRAINVAL, "boxes")
    assert data.objects(1).boxes[1].tolist() == [0, 0, 40, 60]
    assert read_image(data, 1).shape == (3, 60, 40)
    mask = root / "VOC2012" / "JPEGImages" / "2007_000033.jpg"
    mask.write_bytes(jpeg(photo(5, 71, 50), exif=exif(6)))
    assert VOC(root, ("2012_val",), "masks").mask(0).shape == (50, 71)
    path.write_bytes(jpeg(photo(5, 60, 40), exif=exif(6)))
    with pytest.raises(ValueError, match="000005.xml: the box 1 1 40 60 .* outside"):
        VOC(root, TRAINVAL, "boxes")


def test_the_digest_is_of_the_contents(root: Path, tmp_path: Path) -> None:
    def digests(place: Path) -> tuple[str, str]:
        return VOC(place, TRAINVAL, "boxes").digest(), VOC(place, ("2012_train",), "masks").digest()

    boxes, masks = digests(root)
    shutil.copytree(root, tmp_path / "moved")
    assert digests(tmp_path / "moved") == (boxes, masks)
    # Files that the sets do not name do not count.
    (root / "VOC2007" / "JPEGImages" / "000001.jpg").write_bytes(jpeg(photo(3, 40, 40)))
    (root / "VOC2012" / "SegmentationClass" / "2007_000033.png").unlink()
    assert digests(root) == (boxes, masks)
    (root / "VOC2007" / "Annotations" / "000007.xml").write_text(DOG.replace("<xmax>20", "<xmax>21"))
    assert digests(root)[0] != boxes
    (root / "VOC2007" / "Annotations" / "000007.xml").write_text(DOG)
    image = root / "VOC2007" / "JPEGImages" / "000007.jpg"
    image.write_bytes(jpeg(photo(8, 48, 64)))
    assert digests(root)[0] != boxes
    path = root / "VOC2012" / "SegmentationClass" / "2007_000032.png"
    mask = mask_of(0, 50, 70)
    mask[49, 69] = 1
    save_mask(path, mask)
    assert digests(root)[1] != masks
    assert len({boxes, masks, VOC(root, ("2007_test",), "boxes").digest()}) == 3


def test_masks_are_checked_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    VOC(root, ("2012_train",), "masks")
    assert "checking 2 masks" in capsys.readouterr().err
    monkeypatch.setattr(VOC, "mask", lambda *_: pytest.fail("checked again"))
    VOC(root, ("2012_train",), "masks")
    assert not capsys.readouterr().err


def test_other_bad_images_are_nobodys_business(root: Path) -> None:
    (root / "VOC2007" / "JPEGImages" / "000001.jpg").write_bytes(b"no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert VOC(root, TRAINVAL, "boxes").num_samples == 2


Spoil = Callable[[Path], object]


def text(name: str, old: str, new: str) -> Spoil:
    """Return a function that replaces a part of an annotation."""

    def spoil(year: Path) -> None:
        whole = {"000007": DOG, "000005": CAT}[name]
        assert old in whole
        (year / "Annotations" / f"{name}.xml").write_text(whole.replace(old, new))

    return spoil


def put(name: str, content: str) -> Spoil:
    return lambda year: (year / name).write_text(content)


def lists(content: str) -> Spoil:
    return put("ImageSets/Main/trainval.txt", content)


def remove(name: str) -> Spoil:
    return lambda year: shutil.rmtree(year / name) if (year / name).is_dir() else (year / name).unlink()


BOXES: dict[str, tuple[Spoil, str]] = {
    "no object": (put("Annotations/000007.xml", "<annotation/>"), "000007.xml: holds no object with a box"),
    "no box": (
        text("000005", "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>", ""),
        "000005.xml: a tvmonitor has no <bndbox>",
    ),
    "right of it": (text("000007", "<xmax>64", "<xmax>65"), "the box 45.7 2 65 30.5 .* of a person is out"),
    "below": (text("000007", "<ymax>48", "<ymax>48.5"), "outside of .* its pixels are 1 to 64 and 1 to 48"),
    "left, from 0": (text("000007", "<xmin>1<", "<xmin>0<"), "000007.xml: .* outside .* counted from 1"),
    "above": (text("000007", "<ymin>2.0", "<ymin>-3"), "000007.xml: .* outside"),
    "no width": (text("000007", "<xmax>20", "<xmax>0"), "the box 1 11 0 48 .* of a dog has no area"),
    "no height": (text("000005", "<ymax>4", "<ymax>1"), "000005.xml: .* has no area"),
    "no number": (text("000005", "<ymax>4", "<ymax>four"), "000005.xml: <ymax> of <bndbox> is 'four'"),
    "no coordinate": (text("000005", "<ymax>4</ymax>", ""), "000005.xml: <ymax> of <bndbox> is None"),
    "infinite": (text("000005", "<ymax>4", "<ymax>inf"), "000005.xml: <ymax> of <bndbox> is 'inf'"),
    "strange class": (text("000007", "<name>dog", "<name>wolf"), "'wolf' is none of the 20 .*/classes.txt"),
    "another size": (text("000007", "<width>64", "<width>65"), "says 65 x 48 px, and the image has 64 x 48"),
    "broken XML": (text("000007", "</annotation>", ""), "000007.xml: broken XML .* extract it again"),
    "an absent picture": (lists("000007\n000008\n000005\n000011\n"),
                          "2 of the 4 images .* missing, the first is 000008.jpg; .*06-Nov-2007.tar"),
    "an absent annotation": (remove("Annotations/000005.xml"),
                             "1 of the 2 annotations .* missing, the first is 000005.xml"),
    "twice": (lists("000007\n000005\n000007\n"), "trainval.txt: names 000007 twice"),
    "nothing": (lists("\n"), "trainval.txt: names no image"),
    "a list of a class": (lists("000007  1\n"), "trainval.txt: the line '000007  1' is no id"),
    "no list": (remove("ImageSets/Main/trainval.txt"), r"trainval.txt: no such list \(those of Main: test\)"),
    "no lists": (remove("ImageSets"), "VOC2007: holds no ImageSets, which 2007_trainval needs"),
    "no pictures": (remove("JPEGImages"), "VOC2007: holds no JPEGImages"),
    "no annotations": (remove("Annotations"), "VOC2007: holds no Annotations"),
    "an empty picture": (put("JPEGImages/000007.jpg", ""), "000007.jpg: cannot be read as an image"),
    "no such year": (lambda year: year.rename(year.with_name("VOC2008")), "VOC2012 and no VOC2007"),
    "no VOC": (
        lambda year: [
            year.rename(year.with_name("voc")), year.with_name("VOC2012").rename(year.with_name("x")),
        ],
        "VOCdevkit: no folder of PASCAL VOC",
    ),
    "no classes": (put("../classes.txt", "\n"), "classes.txt: names 0 classes"),
    "a class twice": (put("../classes.txt", "dog\ncat\ndog\n"), "classes.txt: names 'dog' twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", BOXES)
def test_what_is_wrong_with_boxes_is_said(root: Path, what: str) -> None:
    VOC(root, TRAINVAL, "boxes")
    spoil, message = BOXES[what]
    spoil(root / "VOC2007")
    refuse(root, message, TRAINVAL, "boxes")


def refuse(root: Path, message: str, *options: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        VOC(root, *options)
    assert "\n" not in str(error.value) and str(root) in str(error.value)


def wrong_mask(change: Callable[[np.ndarray], np.ndarray | None]) -> Spoil:
    def spoil(year: Path) -> None:
        mask = mask_of(0, 50, 70)
        changed = change(mask)
        save_mask(year / "SegmentationClass" / "2007_000032.png", mask if changed is None else changed)

    return spoil


MASKS: dict[str, tuple[Spoil, str]] = {
    "another size": (wrong_mask(lambda mask: mask[:, 1:]), "has 69 x 50 px, and the image 70 x 50"),
    "turned": (wrong_mask(lambda mask: mask.T), "2007_000032.png: has 50 x 70 px, and the image 70 x 50"),
    "no such class": (wrong_mask(lambda mask: mask.put(99, 21)), "holds the number 21, .* 1 to 20 and 255"),
    "almost void": (wrong_mask(lambda mask: mask.put(99, 254)), "holds the number 254"),
    "colours": (
        lambda year: Image.new("RGB", (70, 50)).save(year / "SegmentationClass" / "2007_000032.png"),
        "2007_000032.png: is a PNG of kind RGB; give one with a palette",
    ),
    "cut": (
        lambda year: (year / "SegmentationClass" / "2007_000032.png").write_bytes(
            (year / "SegmentationClass" / "2007_000032.png").read_bytes()[:-60]
        ),
        "2007_000032.png: cannot be read as a PNG",
    ),
    "absent": (remove("SegmentationClass/2007_000039.png"), "1 of the 2 .* the first is 2007_000039.png"),
    "no masks": (remove("SegmentationClass"), "VOC2012: holds no SegmentationClass"),
}  # fmt: skip


@pytest.mark.parametrize("what", MASKS)
def test_what_is_wrong_with_masks_is_said(root: Path, what: str) -> None:
    VOC(root, ("2012_train",), "masks")
    spoil, message = MASKS[what]
    spoil(root / "VOC2012")
    for _ in range(2):  # because a failed check is not remembered
        refuse(root, message, ("2012_train",), "masks")


def test_what_is_wrong_with_sbd_is_said(root: Path, tmp_path: Path) -> None:
    from scipy.io import savemat

    place = sbd(tmp_path, root / "VOC2012" / "JPEGImages")

    def refuse(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            VOC(root, ("2012_train",), "masks", sbd=place)

    file = place / "dataset" / "cls" / "2008_000001.mat"
    write_sbd_mask(file, mask_of(2, 44, 61), savemat)
    refuse("2008_000001.mat: has 61 x 44 px, and the image 60 x 44")
    write_sbd_mask(file, np.full((44, 60), 21, np.uint8), savemat)
    refuse("2008_000001.mat: holds the number 21")
    savemat(file, {"GTinst": {"Segmentation": np.zeros((44, 60), np.uint8)}})
    refuse("2008_000001.mat: no GTcls.Segmentation is in it")
    savemat(file, {"GTcls": np.zeros((44, 60), np.uint8)})
    refuse("2008_000001.mat: no GTcls.Segmentation is in it")
    file.write_bytes(b"nonsense")
    refuse("2008_000001.mat: cannot be read as a MATLAB file")
    file.unlink()
    refuse("cls: 1 of the 2 annotations .* the first is 2008_000001.mat; .* benchmark.tgz")
    (place / "dataset" / "val.txt").unlink()
    refuse("dataset: holds no val.txt of SBD; extract the whole of benchmark.tgz")
    shutil.rmtree(place)
    refuse("benchmark_RELEASE: no SBD")


@pytest.mark.parametrize("name", ["trainval", "2007", "2007_", "07_trainval", "2007_../x"])
def test_names_that_are_no_sets(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is no set of PASCAL VOC")):
        VOC(root, (name,), "boxes")


def test_what_is_learned_from_is_not_scored(root: Path) -> None:
    learned, scored = open_train_and_test(root, TRAINVAL, ("2007_test",), "boxes")
    assert (learned.num_samples, scored.image_id(0)) == (2, "000009")
    (root / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("000009\n000007\n")
    with pytest.raises(ValueError, match=r"1 images are learned from .* and scored .*, the first is 000007"):
        open_train_and_test(root, TRAINVAL, ("2007_test",), "boxes")


def test_sets_that_share_images_and_a_year_alone(root: Path) -> None:
    (root / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_text("000005\n")
    with pytest.raises(ValueError, match="train.txt: names 000005, as .*trainval.txt does"):
        VOC(root, ("2007_trainval", "2007_train"), "boxes")
    with pytest.raises(ValueError, match="VOC2007: is one year of PASCAL VOC; give the folder that holds it"):
        VOC(root / "VOC2007", TRAINVAL, "boxes")


def cells(*items: object) -> np.ndarray:
    row = np.empty((1, len(items)), object)
    row[0, :] = items
    return row


ARRAYS: dict[str, Any] = {
    "boxes": cells(np.arange(8.0, dtype=np.float32).reshape(2, 4), np.zeros((0, 4)), cells("a name", "")),
    "mask": np.arange(35, dtype=np.uint8).reshape(5, 7),
    "whole": np.array([[-(2**40), 2**62]]),
    "complex": np.array([[1 + 2j, 3]]),
    "true": np.array([[True, False]]),
    "text": np.array(["one row", "another"]),
    "parts": {"Segmentation": np.ones((3, 3, 2), np.uint16), "deep": {"deeper": cells(1.5)}},
    "rows": np.array([(1, "x"), (2, "yy")], [("first", object), ("second", object)]),
    "few": csc_array(([1.0, 2.0], ([0, 3], [1, 2])), shape=(4, 5)),
}


def written(arrays: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and a.dtype.names:
        return a.dtype == b.dtype and all(same(a[name], b[name]) for name in a.dtype.names)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return a.shape == b.shape and all(map(same, a.flat, b.flat))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and ((a != b).nnz == 0 if hasattr(a, "nnz") else bool(a == b))


def turned(data: bytes) -> bytes:
    """Convert a file of numbers to the other byte order: tags, sizes and values."""
    row = bytearray(data[:124] + b"\1\0MI")
    at = 128
    kind, num_bytes = struct.unpack_from("<II", data, at)
    row += struct.pack(">II", kind, num_bytes)
    at += 8
    while at < len(data):
        kind, num_bytes = struct.unpack_from("<II", data, at)
        if kind >> 16:  # the tag holds a short name
            row += struct.pack(">I", kind) + data[at + 4 : at + 8]
            at += 8
            continue
        body, width = data[at + 8 : at + 8 + num_bytes], {1: 1, 5: 4, 6: 4, 9: 8}[kind]
        row += struct.pack(">II", kind, num_bytes)
        row += b"".join(body[i : i + width][::-1] for i in range(0, num_bytes, width)) + bytes(-num_bytes % 8)
        at += 8 + num_bytes + -num_bytes % 8
    return bytes(row)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read_as_scipy_reads_it(compressed: bool) -> None:
    data = written(ARRAYS, compressed)
    expected = loadmat(io.BytesIO(data))
    arrays = read_mat(data, ARRAYS)
    assert set(ARRAYS) <= set(arrays)
    for name in ARRAYS:
        assert same(arrays[name], expected[name]), name
    assert arrays["boxes"][0, 2][0, 0].item() == "a name"
    only = read_mat(data, ("mask", "none"))
    assert "boxes" not in only and "none" not in only and np.array_equal(only["mask"], ARRAYS["mask"])


def test_the_other_order_of_bytes() -> None:
    values = np.arange(6.0).reshape(2, 3)
    data = turned(written({"a": values}))
    assert np.array_equal(read_mat(data, ("a",))["a"], values)
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file"):
        read_mat(data[:-20], ("a",))


def part(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def array(which: int, sizes: tuple[int, ...], rest: bytes) -> bytes:
    head = part(6, struct.pack("<II", which, 0)) + part(5, struct.pack(f"<{len(sizes)}i", *sizes))
    return part(14, head + part(1, b"a") + rest)


NUMBER = array(6, (1, 1), part(9, bytes(8)))
DEEP = NUMBER
for _ in range(40):
    DEEP = array(1, (1, 1), DEEP)
REFUSED = {
    "numbers in an array's place": part(9, bytes(8)),
    "an array in the numbers' place": array(6, (1, 1), NUMBER),
    "no numbers": array(6, (1, 1), b"") + NUMBER,
    "more than a cell has": array(1, (1, 1), NUMBER * 2),
    "cells that are not there": array(1, (1 << 30, 1 << 30), NUMBER),
    "a negative size": array(1, (-1, 1), b""),
    "one dimension": array(6, (1,), part(9, bytes(8))),
    "a hundred dimensions": array(6, (1,) * 100, part(9, bytes(8))),
    "cells within cells, more than 32 deep": DEEP,
    "an object": array(3, (1, 1), NUMBER),
    "a function": array(16, (1, 1), NUMBER),
    "a structure with names of 0 bytes": array(2, (1, 1), part(5, bytes(4)) + part(1, b"ab") + NUMBER),
    "a structure without fields": array(2, (1 << 20, 1 << 20), part(5, b"\1\0\0\0") + part(1, b"")),
    "half of a compressed part": part(15, zlib.compress(NUMBER)[:20]),
    "no compressed part": part(15, b"nonsense"),
    "compressed twice": part(15, zlib.compress(part(15, zlib.compress(NUMBER)))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_sound_file_holds(what: str) -> None:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    assert read_mat(head + NUMBER, ("a",))["a"].item() == 0
    with pytest.raises(ValueError, match="download it again|are read here"):
        read_mat(head + REFUSED[what], ("a",))


def test_other_versions() -> None:
    for head, words in (
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", "7.3 .* with -v7"),
        (b"no such thing" * 20, "download it again"),
        (bytes(200), "download it again"),
    ):
        with pytest.raises(ValueError, match=words):
            read_mat(head + bytes(64), ("a",))


def test_compressed_parts_inflate_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """131 kB from some hundreds of bytes, in one part or in two."""
    monkeypatch.setattr(annotations, "_SPARE_BYTES", annotations._SPARE_BYTES >> 10)
    for arrays in ({"a": np.zeros(1 << 14)}, {"a": np.zeros(1 << 13), "b": np.zeros(1 << 13)}):
        data = written(arrays, compressed=True)
        with pytest.raises(ValueError, match="inflates to more than 64 times its size"):
            read_mat(data, ("b",))


@pytest.mark.parametrize("left", [0, 1, 999, 1000])
def test_what_is_left_of_the_limit_is_a_limit(left: int) -> None:
    """Also if nothing is left, although 0 means no limit to zlib."""
    packed = memoryview(zlib.compress(bytes(1000)))
    if left == 1000:
        assert _inflated(packed, left) == bytes(1000)
        return
    with pytest.raises(ValueError, match="inflates to more"):
        _inflated(packed, left)
