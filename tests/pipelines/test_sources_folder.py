"""Folders as sources: trees, flat folders, and errors for anything else."""

import os
import subprocess
from pathlib import Path

import pytest

from fastpsl.pipelines.beton.left_out import quarantine_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import info
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.sources.folder import image_folder
from tests.pipelines.folders import tree, write_folder
from tests.pipelines.photos import jpeg, photo


def test_flat_folders_and_folders_of_nothing(tmp_path: Path) -> None:
    flat = tree(
        tmp_path / "flat",
        {"b.jpg": jpeg(photo(0, 30, 30)), "a.JPEG": jpeg(photo(1, 30, 30)), "notes.txt": b"x"},
    )
    source = image_folder(flat)
    assert (source.num_samples, source.class_names, source.num_ignored) == (2, None, 1)
    assert [(sample.name, sample.label) for sample in source.samples()] == [("a.JPEG", -1), ("b.jpg", -1)]
    write_folder(flat, tmp_path / "flat.beton")
    with Beton(tmp_path / "flat.beton") as beton:
        assert list(beton.labels()) == [-1, -1] and beton.class_names is None and beton.num_classes == 0
        assert "without a label            2" in info(beton)
    for folder, word in (
        (tmp_path / "none", "no such folder"),
        (tree(tmp_path / "text", {"a/notes.txt": b"x"}), "holds no images"),
        (
            tree(tmp_path / "mixed", {"a.jpg": b"x", "cat/b.jpg": b"x"}),
            "a.jpg lies beside the class folders cat",
        ),
    ):
        with pytest.raises(ValueError, match=word):
            image_folder(folder)
    tree(tmp_path / "gap", {"cat/a.jpg": b"x", "dog/a.jpg": b"x", ".git/a.jpg": b"x"})
    (tmp_path / "gap" / "cow").mkdir()
    (tmp_path / "gap" / "dog" / "circle").symlink_to(tmp_path / "gap" / "dog")
    source = image_folder(tmp_path / "gap")
    assert (
        source.class_names == ["cat", "cow", "dog"]
        and source.empty_classes == ["cow"]
        and source.num_samples == 2
    )


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        ("train val", ("train", "val")),
        ("test train", ("train", "test")),
        ("Train Valid test .git", ("Train", "Valid")),
        ("train validation", ("train", "validation")),
        ("train", None),
        ("test val", None),
        ("plane train val", None),
    ],
)
def test_training_and_validation_parts_are_no_classes(
    tmp_path: Path, folders: str, parts: tuple[str, str] | None
) -> None:
    root = tree(tmp_path / "photos", {f"{name}/cat/a.jpg": b"x" for name in folders.split()})
    if parts is None:
        assert image_folder(root).class_names == folders.split()
        return
    train, val = parts
    with pytest.raises(ValueError) as caught:
        image_folder(root)
    assert str(caught.value) == (
        f"{root}: holds the folders {train} and {val}, which are no classes: give one of them, or for "
        f"training --data {root}/{train} --val {root}/{val}"
    )


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
        assert [sample.name for sample in source.samples()] == [f"{folder}a.jpg"] and source.class_names == [
            "d"
        ]
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
    assert source.num_ignored == 1
    out = tmp_path / "out.beton"
    assert write_beton(source.samples(), out, num_samples=3, max_bad="2").num_samples == 1
    rows = quarantine_path(out).read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ['"a/3.jpg"', '"a/4.jpg"']
