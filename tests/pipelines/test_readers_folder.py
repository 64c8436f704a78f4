"""Folders as sources: trees, flat folders, and errors for anything else."""

import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import info
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import check_form, open_data
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.interface.source import is_image
from fastpsl.pipelines.readers.folder import folder_classes, image_folder
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.readers import refused
from tests.pipelines.written import tree, write_folder


def test_flat_folders_and_folders_of_nothing(tmp_path: Path) -> None:
    photos = {name: jpeg(photo(i, 30, 30)) for i, name in enumerate(("b.jpg", "a.JPEG"))}
    flat = tree(tmp_path / "flat", photos | {"notes.txt": b"x"})
    source = image_folder(flat)
    assert (source.num_samples, source.class_names) == (2, None)
    assert source.left_out.line() == "1 file of another kind (1 .txt)"
    assert [(sample.name, sample.label) for sample in source.samples()] == [("a.JPEG", -1), ("b.jpg", -1)]
    write_folder(flat, tmp_path / "flat.beton")
    with Beton(tmp_path / "flat.beton") as beton:
        assert list(beton.labels()) == [-1, -1] and beton.class_names is None and beton.num_classes == 0
        assert "without a label            2" in info(beton)
    tree(tmp_path, dict.fromkeys(("text/a/notes.txt", "mixed/a.jpg", "mixed/cat/b.jpg"), b"x"))
    beside = "a.jpg lies beside the class folders cat"
    for name, word in (("none", "no such folder"), ("text", "holds no images"), ("mixed", beside)):
        with refused(word):
            image_folder(tmp_path / name)
    tree(tmp_path / "gap", {"cat/a.jpg": b"x", "dog/a.jpg": b"x", ".git/a.jpg": b"x"})
    (tmp_path / "gap" / "cow").mkdir()
    (tmp_path / "gap" / "dog" / "circle").symlink_to(tmp_path / "gap" / "dog")
    source = image_folder(tmp_path / "gap")
    assert source.class_names == ["cat", "cow", "dog"] and source.num_samples == 2
    assert source.left_out.line() == (
        "1 leftover of another program (.git), 1 class without an image, which keeps its label (cow)"
    )


def test_each_ending_of_a_jpeg_is_an_images() -> None:
    jpegs = [ending for ending, kind in Image.registered_extensions().items() if kind == "JPEG"]
    assert ".jpg" in jpegs and all(is_image(f"a{ending}") for ending in jpegs)


def test_a_runs_folder_is_no_source(tmp_path: Path) -> None:
    root = tree(tmp_path / "run", {"curve.png": b"x", "metrics.jsonl": b""})
    for opening in (image_folder, folder_classes, check_form):
        with refused(f"{root}: is a run's folder"):
            opening(root)


@pytest.mark.parametrize(
    ("folders", "words", "training"),
    [
        ("train val", "train, val", ("train", "val")),
        ("test train", "test, train", ("train", "test")),
        ("Train Valid test .git", "Train, Valid, test", ("Train", "Valid")),
        ("train validation", "train, validation", ("train", "validation")),
        ("train", "train", ("train", None)),
        ("test val", "test, val", ("test", "val")),
        ("plane train val", None, ("", None)),
    ],
)
def test_the_parts_of_a_data_set_are_no_classes(
    tmp_path: Path, folders: str, words: str | None, training: tuple[str, str | None]
) -> None:
    root = tree(tmp_path / "my photos", {f"{name}/cat/a.jpg": b"x" for name in folders.split()})
    tree(root, {"annotations/a.xml": b"x"})  # holds no image, and so it is no class beside them
    classes = sorted(name for name in ("annotations", *folders.split()) if name != ".git")
    assert image_folder(root, are_classes=True).class_names == classes
    if words is None:
        assert image_folder(root).class_names == folder_classes(root) == classes
        return
    train, val = training
    val_option = f" --val '{root}/{val}'" if val else ""
    for opening in (image_folder, folder_classes, check_form):
        told = f"`fastpsl data write '{root}/{train}' {train}.beton`", f"--data '{root}/{train}'{val_option};"
        with refused(
            f"{root}: holds parts of a data set ({words})", *told, f"'{root}' OUT --classes folders"
        ):
            opening(root)


@pytest.mark.parametrize("name", ["images", "IMG", "Photos"])
def test_one_folder_of_all_images_is_no_class(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path / "photos", {f"{name}/{i}.jpg": jpeg(photo(i, 30, 30)) for i in range(2)})
    tree(root, {"readme.txt": b"All my photos", f"{name}/deep/2.jpg": jpeg(photo(2, 30, 30))})
    (root / "labels").mkdir()
    source = image_folder(root)
    assert source.class_names is None is folder_classes(root) and source.num_samples == 3
    samples = [(sample.name, sample.label) for sample in source.samples()]
    assert samples == [(f"{name}/{rest}.jpg", -1) for rest in ("0", "1", "deep/2")]
    assert source.warnings[0].startswith(f"the only folder, {name}, is taken as no class: images without")
    with pytest.warns(UserWarning, match=f"photos: the only folder, {name}, is taken"), Folder(root) as data:
        assert data.labels().tolist() == [-1] * 3 and data.class_names is None
    assert image_folder(root, are_classes=True).class_names == [name, "labels"]
    tree(root, {"cat/0.jpg": jpeg(photo(3, 30, 30))})
    assert image_folder(root).class_names == folder_classes(root) == sorted([name, "cat", "labels"])


LEFTOVERS = (
    "__MACOSX", ".DS_Store", "._cat", ".AppleDouble", "Icon\r", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN",
    "System Volume Information", "lost+found", "@eaDir", "#recycle", "@Recycle", ".@__thumb", ".Trash-1000",
    ".thumbnails", ".git", ".dvc", ".ipynb_checkpoints", "__pycache__", ".cache",
    "PaxHeaders.1234", "PaxHeader", "@PaxHeader", "RECYCLED", "FOUND.017", "_gsdata_", "resource.frk",
    "Desktop DB", "iPod Photo Cache", "TheVolumeSettingsFolder", "@appstore", "@sharesnap", "@SynoFinder-log",
    "Previews.lrdata", "[Originals]", "CaptureOne", "0.jpg:Zone.Identifier",
)  # fmt: skip


def test_names_like_those_of_leftovers_are_classes(tmp_path: Path) -> None:
    names = ["@natgeo", "found.1", "paxton", "recycle", "thumbs"]
    assert folder_classes(tree(tmp_path, {f"{name}/0.jpg": b"x" for name in names})) == names


@pytest.mark.parametrize("where", ["", "cat"])
@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_other_programs_leave_is_neither_a_class_nor_an_image(
    where: str, name: str, tmp_path: Path
) -> None:
    """As a folder with images, and as a file; beside classes, within one, and beside the images."""
    root = tree(tmp_path / "photos", {f"{kind}/{i}.jpg": b"x" for kind in ("cat", "dog") for i in range(2)})
    expected = [("cat/0.jpg", 0), ("cat/1.jpg", 0), ("dog/0.jpg", 1), ("dog/1.jpg", 1)]
    for make in (
        lambda: tree(root / where, {f"{name}/cat/a.jpg": b"x", f"{name}/b.jpg": b"x"}),
        lambda: (root / where / name).write_bytes(b"x"),
    ):
        make()
        source = image_folder(root)
        assert [(sample.name, sample.label) for sample in source.samples()] == expected
        assert source.class_names == folder_classes(root) == ["cat", "dog"]
        told = " ".join(name.split())
        assert source.left_out.line() == f"1 leftover of another program ({told})"
        flat = image_folder(root / "cat")
        assert [(sample.name, sample.label) for sample in flat.samples()] == [("0.jpg", -1), ("1.jpg", -1)]
        assert flat.left_out.counts == ({"leftovers": 1} if where else {})
        if (root / where / name).is_dir():
            shutil.rmtree(root / where / name)


def test_a_leftover_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lost+found belongs to root, and nobody else may list it."""
    root = tree(tmp_path, {"cat/0.jpg": b"x", "lost+found/x.jpg": b"x"})
    listed, scandir = [], os.scandir

    def noted(path: str) -> object:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    assert image_folder(root).num_samples == 1
    assert set(listed) == {str(root), str(root / "cat")}


def test_open_data_tells_what_is_left_out(tmp_path: Path) -> None:
    """One line, the same for a folder and for the dataset file written from it."""
    photos = {f"{kind}/{i}.jpg": jpeg(photo(i, 30, 30)) for kind in ("cat", "dog") for i in range(2)}
    others = {"cat/a.txt": b"x", "cat/b.MOV": b"x", "dog/c.mov": b"x", "d.md": b"x", "dog/README": b"x"}
    root = tree(tmp_path / "photos", photos | others | {"__MACOSX/cat/._0.jpg": b"x", "dog/._1.jpg": b"x"})
    (root / "cow").mkdir()
    line = "5 files of other kinds (2 .mov, 1 .md, 1 .txt, ...), 2 leftovers of other programs (the first is "
    line += "__MACOSX), 1 class without an image, which keeps its label (cow)"
    assert image_folder(root).left_out.line() == line
    with pytest.warns(UserWarning) as caught, closing(open_data(root)):
        pass
    assert [str(warning.message) for warning in caught] == [f"{root}: left out: {line}"]


def test_a_list_beside_the_images_has_their_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "val", {"images/val_0.JPEG": b"x", "a.txt": b"no list", "b.txt": b""})
    tree(root, {"val_annotations.txt": b"val_0.JPEG\tn03444034\t0\t32\t44\t62\n"})
    for opening in (image_folder, folder_classes, check_form):
        told = f"`fastpsl data write {root}/val_annotations.txt OUT`", f"without labels give {root}/images"
        with refused(f"{root}: its only folder, images, is not a class", *told):
            opening(root)
    flat = tree(tmp_path / "flat", {"0.jpg": b"x"})
    assert image_folder(flat).notes == ["no class folders: images without labels"]
    tree(
        flat,
        dict.fromkeys(("._labels.csv", "labels.md"), b"0.jpg 7\n") | {"other.csv": b"id,size\n0.jpg,7,8\n"},
    )
    assert image_folder(flat).notes == ["no class folders: images without labels"]
    for text in ("0.jpg 7\n", "path,label\n0.jpg,cat\n"):
        (flat / "labels.csv").write_text(text)
        (note,) = image_folder(flat).notes
        assert note.endswith("; labels.csv names their classes, and may be given instead")


def test_folders_within_folders_have_no_limit_of_ours(tmp_path: Path) -> None:
    folder = "d/" * 1200
    root = tmp_path / "photos"
    place = os.getcwd()
    try:
        root.mkdir()
        os.chdir(root)
        for name in folder.split("/")[:-1]:  # one by one, because os.makedirs has a limit of depth
            os.mkdir(name)
            os.chdir(name)
        Path("a.jpg").write_bytes(b"x")
        source = image_folder(root)
        assert [sample.name for sample in source.samples()] == [f"{folder}a.jpg"]
        assert source.class_names == ["d"]
    finally:
        os.chdir(place)
        subprocess.run(["rm", "-r", root], check=True)  # because shutil.rmtree has a limit of depth


def test_pipes_are_left_alone_and_links_in_circles_are_named(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.jpg").write_bytes(jpeg(photo(0, 40, 50)))
    os.mkfifo(root / "a" / "2.jpg")
    (root / "a" / "3.jpg").symlink_to("3.jpg")
    (root / "a" / "4.jpg").symlink_to("nowhere.jpg")
    source = image_folder(root)
    assert [sample.name for sample in source.samples()] == ["a/1.jpg", "a/3.jpg", "a/4.jpg"]
    assert source.left_out.counts == {"other files": 1}
    out = tmp_path / "out.beton"
    assert write_beton(source.samples(), out, num_samples=3, max_bad="2").num_samples == 1
    rows = bad_path(out).read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ['"a/3.jpg"', '"a/4.jpg"']
