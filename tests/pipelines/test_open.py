"""The kind of a source: by its name and content or by --format, with errors for anything else."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastpsl
from fastpsl.cli import main
from fastpsl.console.installed import install
from fastpsl.files.paths import FORMS, named_files, require_existing
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import read_sidecar, shard_paths
from fastpsl.pipelines.beton.verify import betons_to_verify
from fastpsl.pipelines.datasets.open import open_data, open_source
from fastpsl.pipelines.readers import arrays, folder, listed, published, tar
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.published_files import cifar10, publish, random_images
from tests.pipelines.readers import refused
from tests.pipelines.written import make_tar, tree

PHOTO = jpeg(photo(0, 40, 50))


def test_auto_tells_sources_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tree(tmp_path / "photos", {"cat/a.jpg": PHOTO})
    shard = make_tar(tmp_path / "x 0.tar", {"cat/a.jpg": PHOTO})
    make_tar(tmp_path / "x 1.tar.gz", {"dog/a.jpg": PHOTO})
    np.savez(tmp_path / "a.NPZ.npz", images=random_images(2))
    names = tree(tmp_path, {"names.TXT": b"photos/cat/a.jpg"}) / "names.TXT"
    files = cifar10(random_images(6), np.zeros(6, int), [str(i) for i in range(10)], is_python=False)
    archive, where = publish(tmp_path, "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files, monkeypatch)
    for src, kind in (
        (photos, folder.ImageFolder),
        (shard, tar.TarSource),
        (tmp_path / "x *", tar.TarSource),
        (tmp_path / "a.NPZ.npz", arrays.Arrays),
        (names, listed.ImageList),
        (archive, published.Published),
        (where, published.Published),
    ):
        assert type(open_source(str(src))) is kind, src
    assert open_source(str(tmp_path / "x *")).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("src", "options", "words"),
    [
        ("none", {}, "no such file or folder"),
        ("none-*.tar", {}, "no file matches"),
        ("notes.md", {}, "neither a folder nor a file of a known kind (.tar, .tar.gz"),
        ("notes.txt", {}, "line 1, 'x', is neither an image's PATH nor PATH LABEL"),
        ("a.*", {}, "files of several kinds (npz, tar)"),
        ("a.npz", {"format": "cifar10"},
         "is not cifar-10-python.tar.gz or cifar-10-binary.tar.gz as published (MD5 "),
        ("photos", {"format": "stl10"},
         "no stl10 there (stl10_binary.tar.gz or its stl10_binary/, for train: train_X.bin"),
        ("photos", {"format": "parquet"}, "no .parquet file in it"),
        ("photos", {"format": "npz"}, "cannot be read (Is a directory)"),
        ("photos", {"format": "tar"}, "cannot be read (Is a directory)"),
        ("a.tar", {"format": "folder"}, "no such folder"),
        ("a.tar", {"split": "train"}, "a tar has no splits"),
        ("a.tar", {"image_column": "x"}, "--image-column and --label-column are for parquet"),
        ("photos", {"label_column": "x"}, "--image-column and --label-column are for parquet"),
        ("?.tar", {"format": "npz"}, "2 files match, and one is wanted; write them one by one"),
    ],
)  # fmt: skip
def test_what_is_no_source(src: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    tree(tmp_path, {"photos/cat/a.jpg": PHOTO, "notes.txt": b"x", "notes.md": b"x"})
    make_tar(tmp_path / "a.tar", {"cat/a.jpg": PHOTO})
    np.savez(tmp_path / "a.npz", images=random_images(2))
    if src.startswith("?"):
        make_tar(tmp_path / "b.tar", {"cat/a.jpg": PHOTO})
    with refused(words):
        open_source(str(tmp_path / src), **options)


@pytest.mark.parametrize("src", ["a.parquet", "hf:me/pets"])
def test_without_datasets_the_line_tells_what_to_install(
    src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with refused(install("datasets")):
        open_source(src if src.startswith("hf:") else str(tmp_path / src))


@pytest.mark.parametrize(
    ("mode", "src", "expected"),
    [
        ("auto", "photos", "1 JPEG, 0 raw"),
        ("raw", "photos", "0 JPEG, 1 raw"),
        ("auto", "a.npz", "0 JPEG, 2 raw"),
        ("jpg", "a.npz", "2 JPEG, 0 raw"),
    ],
)
def test_modes(
    mode: str, src: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path, {"photos/cat/a.jpg": PHOTO})
    images = np.stack([photo(i, 40, 50) for i in range(2)])
    np.savez(tmp_path / "a.npz", images=images)
    out = tmp_path / "a.beton"
    main(["data", "write", str(tmp_path / src), str(out), "--mode", mode])
    main(["data", "info", str(out)])
    assert expected in capsys.readouterr().out
    with Beton(out) as beton:
        if expected.startswith("0") and src == "a.npz":
            assert beton.read(1) == images[1].tobytes()
        assert beton.is_raw is expected.startswith("0")


VAL = {"val_2.JPEG": "n03", "val_0.JPEG": "n01", "val_1.JPEG": "n03"}


def labelled(out: Path) -> tuple[list[str] | None, dict[str, int]]:
    """Return the class names of a beton and the label of each image."""
    sidecar = read_sidecar(out)
    assert sidecar is not None
    with Beton(out) as beton:
        names = [name.rpartition("/")[2] for name in sidecar.source_paths()]
        return beton.class_names, dict(zip(names, beton.labels().tolist(), strict=True))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write train/ of three classes and val/images with lists of the classes, of which n02 has no image."""
    tree(tmp_path, {f"train/{name}/images/0.JPEG": PHOTO for name in ("n03", "n01", "n02")})
    tree(tmp_path, {f"val/images/{name}": PHOTO for name in VAL})
    lists = {
        "val/val_annotations.txt": [f"{file}\t{name}\t0\t0\t9\t9" for file, name in VAL.items()],
        "files.txt": [f"val/images/{file} {name}" for file, name in VAL.items()],
        "synsets.txt": [VAL[file] for file in sorted(VAL)],
        "devkit.txt": ["490", "361", "171"],
        "wnids.txt": ["n03", "n02", "n01"],
        "few.txt": ["n01", "n02"],
        "twice.txt": ["n01", "n03", "n01", "n02"],
    }
    tree(tmp_path, {name: "\n".join(lines).encode() for name, lines in lists.items()})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        "val/val_annotations.txt",
        "val/images --labels val/val_annotations.txt",
        "val --labels val/val_annotations.txt",
        "val/images --labels files.txt",
        "val/images --labels synsets.txt",
    ],
)
def test_val_has_the_classes_of_train(tiny: Path, source: str) -> None:
    main(["data", "write", "train", "train.beton"])
    src, *options = source.split()
    assert labelled_as(src, options) == (["n01", "n03"], {"n01": 0, "n03": 1})
    for classes in ("train", "train.beton"):
        names, labels = labelled_as(src, [*options, "--classes", classes])
        assert (names, labels) == (["n01", "n02", "n03"], {"n01": 0, "n03": 2})
    names, labels = labelled_as(src, [*options, "--classes", "wnids.txt"])
    assert (names, labels) == (["n03", "n02", "n01"], {"n01": 2, "n03": 0})
    assert labelled_as(src, [*options, "--classes", "none"]) == (None, {"n01": -1, "n03": -1})


def labelled_as(src: str, options: list[str]) -> tuple[list[str] | None, dict[str, int]]:
    """Write val and return its class names, and the label of the images of each class."""
    main(["data", "write", src, "val.beton", "--overwrite", *options])
    names, labels = labelled(Path("val.beton"))
    by_class = {VAL[file]: label for file, label in labels.items()}
    assert len(labels) == 3 and {file: by_class[VAL[file]] for file in labels} == labels
    return names, by_class


def test_folders_and_tars_take_given_classes(tiny: Path) -> None:
    tree(tiny, {"few/n03/1.jpg": PHOTO, "few/n01/0.jpg": PHOTO})
    make_tar(tiny / "few.tar", {"n03/1.jpg": PHOTO, "n01/0.jpg": PHOTO})
    make_tar(tiny / "parts.tar", {"train/a/1.jpg": PHOTO, "val/b/0.jpg": PHOTO})
    for src in ("few", "few.tar"):
        main(["data", "write", src, "few.beton", "--classes", "train", "--overwrite"])
        names, labels = labelled(tiny / "few.beton")
        assert names == ["n01", "n02", "n03"] and sorted(labels.values()) == [0, 2]
        assert [label for name, label in labels.items() if "1.jpg" in name] == [2]
    main(["data", "write", "few", "none.beton", "--classes", "none"])
    assert labelled(tiny / "none.beton") == (None, {"0.jpg": -1, "1.jpg": -1})
    for src, classes in ((".", ["few", "train", "val"]), ("parts.tar", ["train", "val"])):
        assert open_source(src, classes="folders").class_names == classes
    with pytest.raises(ValueError, match=r"holds parts of a data set \(train, val\), not classes"):
        open_source("parts.tar")


@pytest.mark.parametrize(
    ("src", "options", "words"),
    [
        ("val", {}, "its only folder, images, is not a class, and val_annotations.txt has"),
        ("val/images", {"labels": "devkit.txt"}, "devkit.txt: has numbers alone, and does not tell which"),
        ("val/images", {"labels": "few.txt"}, "few.txt: has 2 classes, and val/images has 3 images"),
        ("val/images", {"labels": "no.txt"}, "no.txt: no such file"),
        ("train", {"labels": "synsets.txt"}, "train: has class folders (n01, ...), and synsets.txt has one"),
        ("val/val_annotations.txt", {"labels": "few.txt"}, "is for a folder, and val/val_annotations.txt is"),
        ("val/val_annotations.txt", {"classes": "few.txt"},
         "1 of 2 classes are not among the 2 of --classes few.txt, the first is 'n03' (there: 'n01', ...)"),
        ("train", {"classes": "twice.txt"}, "--classes twice.txt: 'n01' is there twice"),
        ("train", {"classes": "devkit.txt"}, "devkit.txt: has numbers alone"),
        ("train", {"classes": "val/images"}, "val/images: has no class names"),
        ("train", {"classes": "."}, "holds parts of a data set (train, val)"),
        ("val/images", {"classes": "train"}, "the classes of val/images have no names; leave --classes out"),
        ("files.txt", {"classes": "folders"}, "--classes folders: it is for folders and tars"),
    ],
)  # fmt: skip
def test_labels_and_classes_that_do_not_fit(
    tiny: Path, src: str, options: dict[str, Any], words: str
) -> None:
    with refused(words):
        open_source(src, **options)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    picture = jpeg(photo(0, 30, 30))
    names = ("train/cat/a.jpg", "val/cat/a.jpg")
    tree(tmp_path, {f"photos/{name}": picture for name in names} | {"notes.md": b"words", ".nothere": b""})
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothere", "nothere: no such file or folder; give"),
        ("phots", "phots: no such file or folder; did you mean photos? give"),
        ("phtos/train", "phtos/train: no such file or folder; did you mean photos/train? give"),
        ("phtos/nothere/cat", "phtos/nothere/cat: no such file or folder; give"),
        ("x-*.beton", "x-*.beton: no file matches; give"),
        ("dangling", "dangling: is a link to nothing; give"),
        ("", "the data's name is empty; give"),
    ],
)
def test_what_is_not_there_is_said_and_what_may_be_given(here: Path, source: str, words: str) -> None:
    a_kind = "a file of a known kind (https://fastpsl.github.io/fastpsl/how"
    shards = "a .beton file or a quoted glob of them; `fastpsl data write` makes one"
    for look, allowed in (
        (lambda: require_existing(source, "tea"), "tea"),
        (lambda: open_data(source), FORMS),
        (lambda: shard_paths(source), shards),
        (lambda: open_source(source), f"a folder of images, a quoted glob, or {a_kind}"),
        (lambda: fastpsl.loader(source, batch_size=1), FORMS),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(f'{words} {allowed}')}"):
            look()


def test_what_is_not_whole_is_said(here: Path) -> None:
    (here / ".train.beton.partial").touch()
    words = "train.beton: is not whole, only .train.beton.partial is there; wait until it is written, "
    for look in (lambda: require_existing("train.beton", "tea"), lambda: open_data("train.beton")):
        with pytest.raises(ValueError) as caught:
            look()
        assert str(caught.value) == f"{words}or give the command again that was interrupted"


def test_a_folders_name_is_taken_as_it_is_written_before_its_pattern(here: Path) -> None:
    for name in ("r[1]/a[1].beton", "r1/a1.beton", "r[1]/b.beton", "r[1]/.c[2].beton.partial"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).touch()
    assert named_files("r[1]/*.beton") == [Path("r[1]/a[1].beton"), Path("r[1]/b.beton")]
    assert named_files("r[1]/a[1].beton") == [Path("r[1]/a[1].beton")]
    assert named_files("r[12]/*.beton") == [Path("r1/a1.beton")]
    assert shard_paths("r[1]/?.beton") == [Path("r[1]/b.beton")]
    require_existing("r[1]/a*", "tea")
    paths, faults = betons_to_verify(["r[1]/c[2].beton"])
    assert not paths and "c[2].beton: is only there as .c[2].beton.partial" in faults[0]


@pytest.mark.parametrize("source", ["photos", "phot*", "photos/*/cat/a.jpg"])
def test_files_folders_and_globs_pass(here: Path, source: str) -> None:
    require_existing(source, "tea")


@pytest.mark.parametrize("look", [open_data, lambda source: fastpsl.loader(source, batch_size=1)])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("notes.md", f"notes.md: is no dataset file, and by its name no list of images; give {FORMS}"),
        (
            "photos/train/*/*.jpg",
            "photos/train/*/*.jpg: images are read by their folder, photos/train/cat",
        ),
        ("photos/*", "photos/*: images are read by their folder, photos; a glob is of packed files"),
        (
            "photos/train/cat/a.jpg",
            "photos/train/cat/a.jpg: images are read by their folder, ",
        ),
        ("empty", "empty: holds no images (.jpg, .jpeg, "),
        ("photos", "photos: holds parts of a data set (train, val), not classes: write each alone, as in"),
    ],
)
def test_other_files_and_folders_are_refused(
    here: Path, look: Callable[[str], object], source: str, words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        look(source)
