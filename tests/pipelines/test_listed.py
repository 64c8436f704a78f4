"""Lists of images in every published layout: the right images and labels, and errors of one line."""

import codecs
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.cli import main
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import classes_of, open_data, open_source
from fastpsl.pipelines.datasets.open_folder import Folder, Listed
from fastpsl.pipelines.datasets.voc.dataset import class_names as voc_classes
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.readers.listed import ImageList, image_list, labelled_folder
from fastpsl.pipelines.readers.text_lists import read_classes
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import headers_read, tree

NAMES = [f"{kind}/{i}.jpg" for kind in ("ant", "bee", "cow") for i in range(3)]


pytestmark = pytest.mark.usefixtures("cache")


def write_images(root: Path, names: list[str] | None = None) -> Path:
    return tree(root, {name: jpeg(photo(i, 40 + i, 60 - i)) for i, name in enumerate(names or NAMES)})


def inaturalist(**changes: Any) -> dict[str, Any]:
    """Return a JSON of images in a mixed order, in categories 0, 1 and 2 of four."""
    order = [4, 0, 8, 2, 6, 1, 3, 7, 5]
    whole = {
        "info": {"year": 2018},
        "images": [{"id": 100 + i, "file_name": f"train_val2018/{NAMES[i]}", "height": 1} for i in order],
        "annotations": [{"id": i, "image_id": 100 + i, "category_id": i // 3} for i in range(9)],
        "categories": [{"id": i, "name": f"species {i}"} for i in (2, 0, 1, 3)],
    }
    return whole | changes


def dump(path: Path, record: Any) -> Path:
    return tree(path.parent, {path.name: json.dumps(record).encode()}) / path.name


@pytest.fixture
def same_as_its_beton(tmp_path: Path) -> Iterator[Callable[[Path], Listed]]:
    """Return a function that opens a list and compares it with the beton written from it."""
    with ExitStack() as stack:

        def check(path: Path) -> Listed:
            main(["data", "write", str(path), str(tmp_path / "x.beton"), "--overwrite"])
            data = stack.enter_context(closing(open_data(path)))
            assert isinstance(data, Listed)
            with Beton(tmp_path / "x.beton") as beton:
                compare(data, beton)
            return data

        yield check


def compare(data: Listed, beton: Beton) -> None:
    assert (data.num_samples, data.num_classes) == (beton.num_samples, beton.num_classes)
    assert data.class_names == beton.class_names and data.image_sizes() == beton.image_sizes()
    assert data.labels().dtype == np.int32 and data.labels().tolist() == beton.labels().tolist()
    for i in range(data.num_samples):
        assert Path(data.name(i)).read_bytes() == beton.read(i)
    views = [ViewSpec(RandomResizedCrop(24))]
    batches = []
    for each in (data, beton):
        num = min(4, data.num_samples)
        with Loader(each, views, batch_size_per_rank=num, num_threads=1, decoder="pillow") as loader:
            batches.append([(batch.indices, batch.labels, batch.images[0]) for batch in loader.epoch(1)])
    for actual, expected in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def digest_of(path: Path) -> str:
    with Listed(path) as data:
        return data.digest()


def test_inaturalists_json(same_as_its_beton: Callable[[Path], Listed], tmp_path: Path) -> None:
    """The order is that of its images, labels are category ids, and empty classes have names, too."""
    write_images(tmp_path / "inat" / "train_val2018")
    path = dump(tmp_path / "inat" / "train2018.json", inaturalist())
    data = same_as_its_beton(path)
    root = tmp_path / "inat" / "train_val2018"
    names = [Path(data.name(i)).relative_to(root).as_posix() for i in range(9)]
    assert names == [NAMES[i] for i in (4, 0, 8, 2, 6, 1, 3, 7, 5)]
    assert data.labels().tolist() == [1, 0, 2, 0, 2, 0, 1, 2, 1]
    assert data.class_names == ["species 0", "species 1", "species 2", "species 3"] and data.num_classes == 4
    annotations = [{"image_id": 104, "category_id": 1}, {"image_id": 100, "category_id": 0}]
    few = inaturalist(images=inaturalist()["images"][:2], annotations=annotations)
    with Listed(dump(tmp_path / "inat" / "val2018.json", few)) as val:
        assert val.class_names == data.class_names and val.labels().tolist() == [1, 0]


def test_categories_are_numbered_in_the_order_of_their_ids(tmp_path: Path) -> None:
    write_images(tmp_path / "train_val2018")
    annotations = [{"image_id": 100 + i, "category_id": (70, 7, 900)[i // 3]} for i in range(9)]
    categories = [{"id": 900, "name": "c"}, {"id": 7, "name": "a"}, {"id": 70, "name": "b"}]
    path = dump(tmp_path / "a.json", inaturalist(annotations=annotations, categories=categories))
    names = image_list(path).names
    assert names.class_names == ["a", "b", "c"] and names.labels == [0, 1, 2, 1, 2, 1, 0, 2, 0]


@pytest.mark.parametrize(
    "where", ["", "images256", "data/vision/torralba/deeplearning/images256", "../images256"]
)
def test_places205s_csv(same_as_its_beton: Callable[[Path], Listed], where: str, tmp_path: Path) -> None:
    """Lines like `a/abbey/gsun_0003.jpg 0`, with the lists beside the images or in a folder of their own."""
    root, lists = tmp_path / "places", tmp_path / "places" / "trainvalsplit_places205"
    write_images((lists / where).resolve() if where.startswith("..") else root / where)
    lists.mkdir(exist_ok=True)
    text = "".join(f"{NAMES[i]} {i // 3 * 2}\n" for i in (3, 0, 8, 1))
    (lists / "val_places205.csv").write_text(text)
    data = same_as_its_beton(lists / "val_places205.csv")
    assert data.labels().tolist() == [2, 0, 4, 0] and data.class_names is None and data.num_classes == 5
    assert data.name(2).endswith("cow/2.jpg")


def test_a_plain_list_of_paths(
    same_as_its_beton: Callable[[Path], Listed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces, empty lines, other line ends, absolute paths and names that are not UTF-8; no labels."""
    names = ["a/holiday 12.jpg", "b/Ünï.JPEG", "x.png"]
    write_images(tmp_path / "yfcc", names)
    absolute = write_images(tmp_path / "elsewhere", ["far.jpg"]) / "far.jpg"
    strange = os.fsencode(tmp_path / "yfcc") + b"/\xff.jpg"
    with open(strange, "wb") as file:
        file.write(jpeg(photo(9, 50, 50)))
    lines = "./a//holiday 12.jpg\r", "", "b/Ünï.JPEG", "x.png", str(absolute), "\udcff.jpg"
    path = tmp_path / "yfcc" / "tiny.txt"
    path.write_bytes(os.fsencode("\n".join(lines)))
    data = same_as_its_beton(path)
    expected = [str(tmp_path / "yfcc" / name) for name in names] + [str(absolute), os.fsdecode(strange)]
    assert [data.name(i) for i in range(5)] == expected
    assert data.labels().tolist() == [-1] * 5 and data.class_names is None and data.num_classes == 0
    # As `find photos` writes them, relative to the folder in which it was started.
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "found.txt").write_text("yfcc/x.png\n")
    monkeypatch.chdir(tmp_path)
    with Listed("lists/found.txt") as data:
        monkeypatch.chdir(tmp_path / "lists")
        assert data.rows(np.array([0])).path.tolist() == [str(tmp_path / "yfcc" / "x.png")]


def test_a_plain_list_with_labels(tmp_path: Path) -> None:
    write_images(tmp_path, ["a b.jpg", "c.jpg"])
    # No number is too long for its value.
    (tmp_path / "l.txt").write_text(f"a b.jpg\t{'7':0>5000}\nc.jpg   0\n")
    with Listed(tmp_path / "l.txt") as data:
        assert data.labels().tolist() == [7, 0] and data.num_classes == 8
        assert Path(data.name(0)).name == "a b.jpg"


def test_a_list_with_class_names(same_as_its_beton: Callable[[Path], Listed], tmp_path: Path) -> None:
    """Tiny-ImageNet's val has a box behind the class, and ImageNet's val has FILE WNID."""
    root = write_images(tmp_path / "val" / "images", ["a b.JPEG", "c.JPEG", "d.JPEG", "e.JPEG"]).parent
    rows = (("d.JPEG", "n03"), ("a b.JPEG", "n01"), ("c.JPEG", "n03"), ("e.JPEG", "n01"))
    (root / "boxes.txt").write_text("".join(f"{file}\t{name}\t0\t32\t44\t62\n" for file, name in rows))
    (root / "names.txt").write_text("".join(f"{file} {name}\n" for file, name in rows))
    for name in ("boxes.txt", "names.txt"):
        data = same_as_its_beton(root / name)
        assert data.class_names == ["n01", "n03"] and data.labels().tolist() == [1, 0, 1, 0]
        assert [Path(data.name(i)).name for i in range(4)] == [file for file, _ in rows]
    (root / "words.csv").write_text("c.JPEG\tgreat white shark\n")
    assert image_list(root / "words.csv").class_names == ["great white shark"]


def test_miniimagenets_csv(same_as_its_beton: Callable[[Path], Listed], tmp_path: Path) -> None:
    """`filename,label`, with the images in images/ beside it, and classes in the order of their names."""
    names = [f"n0{9 - i // 3}{i:04}.jpg" for i in range(9)]
    write_images(tmp_path / "mini" / "images", names)
    rows = "".join(f"{name},{name[:3]}\n" for name in names)
    (tmp_path / "mini" / "test.csv").write_text(f"filename,label\n{rows}")
    data = same_as_its_beton(tmp_path / "mini" / "test.csv")
    assert data.class_names == ["n07", "n08", "n09"] and data.labels().tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert Path(data.name(0)).name == names[0]


@pytest.mark.parametrize(
    ("text", "labels", "class_names"),
    [
        ('path,label\na.jpg,0\n"b, c.jpg",2\nd.jpg,1\n', [0, 2, 1], None),
        ('"a.jpg",7.0\r\n"b, c.jpg",0\r\n\r\n"d.jpg",07\r\n', [7, 0, 7], None),
        ("image;class\na.jpg;cat\nb, c.jpg;a bee\nd.jpg;cat\n", [1, 0, 1], ["a bee", "cat"]),
        ('\ufeffFile Name\tLabel\na.jpg\tcow\n"b, c.jpg"\tant\nd.jpg\tbee\n', [2, 0, 1],
         ["ant", "bee", "cow"]),
        (',label,split,image_path\n0,x,val,a.jpg\n1,y,val,"b, c.jpg"\n2,x,val,d.jpg\n', [0, 1, 0],
         ["x", "y"]),
        ('kind,photo\n10,a.jpg\n9,"b, c.jpg"\n10,d.jpg\n', [10, 9, 10], None),
        ('image\na.jpg\n"b, c.jpg"\nd.jpg\n', [-1, -1, -1], None),
        ('cat,a.jpg\nant,"b, c.jpg"\ncat,d.jpg\n', [1, 0, 1], ["ant", "cat"]),
        ("7;a.jpg\n0;b, c.jpg\n7;d.jpg\n", [7, 0, 7], None),
        ('a.jpg ,cat\n"b, c.jpg" , ant\nd.jpg ,cat\n', [1, 0, 1], ["ant", "cat"]),
        ('img.path,class.name\na.jpg,cat\n"b, c.jpg",ant\nd.jpg,cat\n', [1, 0, 1], ["ant", "cat"]),
        ("2024;image/path\ncat;a.jpg\nant;b, c.jpg\ncat;d.jpg\n", [1, 0, 1], ["ant", "cat"]),
        ("0;1\na.jpg;cat\nb, c.jpg;ant\nd.jpg;cat\n", [1, 0, 1], ["ant", "cat"]),
        ("path;label\na.jpg;\nb, c.jpg;2\nd.jpg;-1\n", [-1, 2, -1], None),
        ("path;label\na.jpg;-1\nb, c.jpg;1e5\nd.jpg;\n", [-1, 0, -1], ["1e5"]),
        ('a.jpg,"b, c"\n"b, c.jpg","say ""d"""\n__MACOSX/._a.jpg,e\nd.jpg,"b, c"\n', [0, 1, 0],
         ["b, c", 'say "d"']),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_tables(
    text: str, labels: list[int], class_names: list[str] | None, ending: str,
    same_as_its_beton: Callable[[Path], Listed], tmp_path: Path,
) -> None:  # fmt: skip
    """Commas, semicolons and tabs, quoted names, any header or none, labels as numbers or names."""
    write_images(tmp_path, ["a.jpg", "b, c.jpg", "d.jpg"])
    path = tmp_path / f"list.{ending}"
    path.write_text(text, encoding="utf-8", newline="")
    data = same_as_its_beton(path)
    assert [Path(data.name(i)).name for i in range(3)] == ["a.jpg", "b, c.jpg", "d.jpg"]
    assert data.labels().tolist() == labels and data.class_names == class_names
    assert classes_of(path).class_names == class_names
    given = labelled_folder(tmp_path, path)
    assert (given.names.labels, given.class_names) == (labels, class_names)


TABLE = "path,label\nim/0.jpg,cat\nim/ä1.jpg,dög\n"


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (TABLE.encode("utf-16"), "csv"),
        (codecs.BOM_UTF16_BE + TABLE.replace(",", "\t").replace("\n", "\r\n").encode("utf-16-be"), "txt"),
        (TABLE.replace(",", " ").partition("\n")[2].encode("utf-16"), "txt"),
        (b"\xef\xbb\xbfsep=;\r\n" + TABLE.replace(",", ";").encode(), "csv"),
        (("sep=\t\n" + TABLE.replace(",", "\t")).encode("utf-16"), "csv"),
        (('"sep=|"\n' + TABLE.replace(",", "|").partition("\n")[2]).encode(), "csv"),
        (b"sep=,\n" + TABLE.replace(",", " ").partition("\n")[2].encode(), "csv"),
    ],
)  # fmt: skip
def test_lists_as_spreadsheets_save_them(data: bytes, ending: str, tmp_path: Path) -> None:
    write_images(tmp_path, ["im/0.jpg", "im/ä1.jpg"])
    path = tmp_path / f"list.{ending}"
    path.write_bytes(data)
    source = image_list(path)
    assert source.names.paths == ["im/0.jpg", "im/ä1.jpg"]
    assert (source.names.labels, source.class_names) == ([0, 1], ["cat", "dög"])


def test_a_list_in_another_encoding_is_told_by_its_first_byte(tmp_path: Path) -> None:
    write_images(tmp_path, ["im/0.jpg", "im/ä1.jpg"])
    record = {"annotations": [], "categories": [], "images": [{"id": 0, "file_name": "ä.jpg"}]}
    lists = {
        "paths.csv": (TABLE.encode("latin-1"), 0xE4, 3),
        "labels.csv": (TABLE.replace("ä", "").encode("latin-1"), 0xF6, 3),
        "sep.csv": (b"sep=,\n" + TABLE.replace("im/ä1", "im/0").encode("latin-1"), 0xF6, 4),
        "l.txt": ("im/0.jpg\n\nim/ä1.jpg\n".encode("latin-1"), 0xE4, 3),
        "le.csv": (TABLE.encode("utf-16-le"), 0, 1),
        "be.txt": (TABLE.replace(",", " ").encode("utf-16-be"), 0, 1),
        "l.json": (json.dumps(record, ensure_ascii=False, indent=1).encode("latin-1"), 0xE4, 7),
    }
    for name, (data, byte, line) in lists.items():
        (tmp_path / name).write_bytes(data)
        told = f"{name}: is no UTF-8 (byte 0x{byte:02X} in line {line})"
        with pytest.raises(ValueError, match=re.escape(told)):
            image_list(tmp_path / name)
    classes = tmp_path / "classes.txt"
    for read in (read_classes, lambda path: voc_classes(path.parent)):
        classes.write_bytes("cat\ndög\n".encode("latin-1"))
        with pytest.raises(ValueError, match=re.escape("classes.txt: is no UTF-8 (byte 0xF6 in line 2)")):
            read(classes)
        classes.write_bytes("sep=,\ncat\ndög\n".encode("utf-16"))
        assert read(classes) == ["cat", "dög"]


def test_a_path_with_commas_is_no_table(tmp_path: Path) -> None:
    names = ["Smith, John/0.jpg", "Smith, John/1.jpg"]
    write_images(tmp_path / "images", names)
    (tmp_path / "l.txt").write_text("\n".join(names))
    assert image_list(tmp_path / "l.txt").names.paths == names


def test_the_labels_of_a_folder_are_a_class_a_line(tmp_path: Path) -> None:
    """Quotation marks and empty cells are no part of it; a table without whole names of images is refused."""
    write_images(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"])
    path = tmp_path / "l.csv"
    for text in ("cat, big\nant\ncat, big\n", '"cat, big"\n"ant",\n"cat, big"\n'):
        path.write_text(text)
        names = labelled_folder(tmp_path / "images", path).names
        assert (names.labels, names.class_names) == ([1, 0, 1], ["ant", "cat, big"])
    for text in ("a,cat\nb,dog\nc,cat\n", "id;label\na;cat\nb;dog\nc;cat\n", "a cat\nb dog\nc cat\n",
                 "0,cat\n1,dog\n2,cat\n"):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match="several cells"):
            labelled_folder(tmp_path / "images", path)


def test_a_list_of_all_files_on_a_disk_holds_leftovers(tmp_path: Path) -> None:
    """As `find` lists them; a hidden folder that leads to the images is none."""
    write_images(tmp_path / ".cache", NAMES)
    others = ["ant/._0.jpg", "__MACOSX/ant/._0.jpg", "bee/@eaDir/0.jpg/THUMB.jpg", "FOUND.001/x.jpg"]
    (tmp_path / "l.txt").write_text("".join(f".cache/{name} 0\n" for name in (*others, *NAMES)))
    source = image_list(tmp_path / "l.txt")
    assert source.names.paths == [f".cache/{name}" for name in NAMES]
    assert source.left_out.line() == ("4 leftovers of other programs (the first is .cache/ant/._0.jpg)")


def test_shards_are_runs_of_the_list(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "l.txt").write_text("\n".join(NAMES))
    parts = [open_source(str(tmp_path / "l.txt"), shard=(i, 2)) for i in range(2)]
    assert all(isinstance(part, ImageList) for part in parts)
    assert [part.num_samples for part in parts] == [4, 5] and {part.num_total for part in parts} == {9}
    assert [sample.name for part in parts for sample in part.samples()] == NAMES


def test_train_and_val_of_one_folder_keep_an_index_each(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    for name, lines in (("train", NAMES[:6]), ("val", NAMES[6:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    read = headers_read(monkeypatch)
    digests = []
    for _ in range(2):
        digests.append([digest_of(tmp_path / f"{name}.txt") for name in ("train", "val")])
    assert len(read) == 9 and digests[0] == digests[1] and len(set(digests[0])) == 2
    (tmp_path / "train.txt").write_text("\n".join(f"{name} 3" for name in NAMES[:6]))
    assert digest_of(tmp_path / "train.txt") != digests[0][0]  # because the labels differ
    with Folder(tmp_path / "ant") as folder:  # with the same cache
        assert folder.num_samples == 3 and len(list(cache.glob("*.lock"))) == 3


def test_an_image_that_cannot_be_read_is_a_bad_sample(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / NAMES[1]).write_text("no picture")
    (tmp_path / "l.txt").write_text("\n".join(NAMES))
    with pytest.warns(UserWarning, match=r"l\.txt: 1 of 9 images cannot be read, the first is ant/1\.jpg: "):
        data = Listed(tmp_path / "l.txt")
    options: dict[str, Any] = {"train": False, "decoder": "pillow", "on_bad_sample": "skip"}
    with data, Loader(data, [ViewSpec(RandomResizedCrop(9))], batch_size_per_rank=9, **options) as loader:
        (batch,) = loader.epoch(0)
    assert [bad.index for bad in batch.bad] == [1]


TWICE = inaturalist()["annotations"] + [{"image_id": 103, "category_id": 2}]
BAD: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "empty": ("l.txt", "\n \n", ("names no image",)),
    "no images": ("l.json", inaturalist(images=[], annotations=[]), ("names no image",)),
    "header alone": ("l.csv", "filename,label\n", ("names no image",)),
    "absent": ("l.txt", "ant/0.jpg\nant/7.jpg\ncow/8.jpg\n",
               ("2 of the 3 images that it names are absent", "ant/7.jpg")),
    "all absent": ("l.txt", "yak/0.jpg\n", ("1 of the 1 images", "yak/0.jpg", "looked below")),
    "a folder": ("l.txt", "ant/0.jpg\nfolder.jpg\n", ("1 of the 2", "folder.jpg")),
    "twice": ("l.txt", "cow/1.jpg\nant/0.jpg\n./ant//0.jpg\ncow/1.jpg",
              ("2 of 2 images more than once", "cow/1.jpg")),
    "no label": ("l.csv", "ant/0.jpg 0\nant/1.jpg\n",
                 ("line 2, 'ant/1.jpg', has no label beside the path, and an image before has a number",)),
    "a label": ("l.txt", "ant/0.jpg\nant/1.jpg 3\n",
                ("line 2, 'ant/1.jpg 3', has a number beside the path, and an image before has no label",)),
    "a number and a word": ("l.csv", "ant/0.jpg 0\nant/1.jpg ant\n",
                            ("has a name beside the path, and an image before has a number",)),
    "nan among numbers": ("l.csv", "path,label\nant/0.jpg,-1\nant/1.jpg,0\nant/2.jpg,nan\n",
                          ("line 4", "has a name beside the path, and an image before has a number")),
    "words": ("l.txt", "ant/0.jpg red ant\n", ("line 1, 'ant/0.jpg red ant', has several words",)),
    "numbers": ("l.txt", "ant/0.jpg 1 0 1\n", ("several words after the path; give one word",)),
    "columns": ("l.txt", "ant/0.jpg\tant\t0\t1\n", ("has more after the path than a class and a box",)),
    "classes alone": ("l.txt", "n01\nn02\n",
                      ("classes alone goes with the folder of its images: `fastpsl data",)),
    "a fraction": ("l.csv", "ant/0.jpg 1.5\n", ("no integer from -1",)),
    "below -1": ("l.csv", "ant/0.jpg -2\n", ("no integer from -1",)),
    "digits of others": ("l.csv", "ant/0.jpg ٣\n", ("no integer from -1",)),
    "a large number": ("l.csv", "ant/0.jpg 2147483648\n", ("no integer from -1",)),
    "thousands of digits": ("l.csv", f"ant/0.jpg {'9' * 5000}\n", ("no integer from -1",)),
    "a cell without an end": ("l.csv", 'filename,label\n"' + "x" * 200_000,
                              ("is no table (field larger than",)),
    "an unknown kind": ("l.csv", "ant/0.psd,ant\nant/0.jpg,ant\n",
                        ("line 1, 'ant/0.psd,ant', is neither an image's PATH nor PATH LABEL",)),
    "columns without names": ("l.csv", '"ant/0.jpg",ant,1\n', ("has 3 columns ('ant/0.jpg, ant, 1')",)),
    "columns of other names": ("l.csv", "image,kind,colour\nant/0.jpg,ant,red\n",
                               ("has 3 columns", "name them path and label there, or keep these two alone")),
    "two columns of labels": ("l.csv", "image,label,class\nant/0.jpg,1,ant\n", ("has 3 columns",)),
    "numbers and names": ("l.csv", "path,label\nant/0.jpg,0\nant/1.jpg,ant\n",
                          ("line 3", "has a name beside the path, and an image before has a number")),
    "a fraction in a table": ("l.csv", "path,label\nant/0.jpg,0.5\n", ("line 2", "no integer from -1")),
    "hidden alone": ("l.csv", "path,label\nant/._0.jpg,0\n", ("names no image",)),
    "a long line": ("l.txt", "x" * 9999, ("line 1, 'xxxx", "...', is neither")),
    "a third cell": ("l.csv", "filename,label\nant/0.jpg,ant,1\n",
                     ("line 2, 'ant/0.jpg,ant,1', lacks a path, or has another number of cells",)),
    "an empty cell": ("l.csv", "filename,label\n,ant\n", ("line 2",)),
    "a label first, and a third cell": ("l.csv", "0,ant,ant/0.jpg\n1,ant,ant/1.jpg\n", ("has 3 columns",)),
    "no json": ("l.json", "{", ("is no JSON",)),
    "a beton's": ("l.json", {"format": 1, "num_samples": 3},
                  ("no list of images as iNaturalist's (images, annotations, categories",)),
    "a list": ("l.json", [1, 2], ("no list of images as iNaturalist's",)),
    "tests": ("l.json", {"images": inaturalist()["images"]}, ("no list of images as iNaturalist's",)),
    "no name": ("l.json", inaturalist(images=[{"id": 3}]), ("an entry lacks", "'file_name'")),
    "no id": ("l.json", inaturalist(categories=[{"id": "x", "name": "y"}]), ("an entry lacks", "ValueError")),
    "an infinite id": ("l.json", inaturalist(images=[{"id": 1e999, "file_name": "a.jpg"}]),
                       ("an entry lacks", "OverflowError")),
    "one id": ("l.json",
               inaturalist(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]),
               ("share an id",)),
    "category": ("l.json", inaturalist(categories=[{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]),
                 ("cow/0.jpg is of category 2, which is not among its 2 categories",)),
    "image": ("l.json", inaturalist(annotations=[{"image_id": 5, "category_id": 0}]),
              ("an annotation is of image 5",)),
    "unlabelled": ("l.json", inaturalist(annotations=inaturalist()["annotations"][1:-1]),
                   ("2 of 9 images have no annotation, the first is train_val2018/ant/0.jpg",)),
    "two": ("l.json", inaturalist(annotations=TWICE), ("train_val2018/bee/0.jpg has two annotations",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_naming_the_list(
    case: str, cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(cwd)
    (cwd / "folder.jpg").mkdir()
    shutil.copytree(cwd / "ant", cwd / "train_val2018" / "ant")
    name, contents, words = BAD[case]
    path = cwd / name
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        open_data(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 1000, line
    assert all(word in line for word in words), line
    with pytest.raises(SystemExit) as error:
        main(["data", "write", str(path), str(cwd / "out.beton")])
    assert error.value.code == 2 and not (cwd / "out.beton").exists()
    assert words[0] in " ".join(capsys.readouterr().err.split())


def test_what_is_no_file_or_has_no_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt: no such file or folder; give"):
        open_data(tmp_path / "none.txt")
    write_images(tmp_path)
    (tmp_path / "l.txt").write_text("\n".join(NAMES))
    with pytest.raises(ValueError, match="--split val: a list has no splits"):
        open_source(str(tmp_path / "l.txt"), split="val")
    assert open_source(str(tmp_path / "l.txt"), "list").num_total == 9
    with warnings.catch_warnings(), pytest.raises(ValueError, match="2 files match"):
        (tmp_path / "m.txt").write_text("\n".join(NAMES))
        open_source(str(tmp_path / "?.txt"))
