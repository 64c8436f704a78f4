"""The kind of a source: by its name and content or by --format, with errors for anything else."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sources import arrays, folder, listed, published, tar
from fastpsl.pipelines.sources.choose import open_source
from tests.pipelines.folders import tree
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.published_files import cifar10, publish, random_images
from tests.pipelines.tars import make_tar

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
        ("notes.md", {}, "no folder and no file of a known kind (.tar, .tar.gz"),
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
        ("?.tar", {"format": "npz"}, "2 files match; write them one by one"),
    ],
)  # fmt: skip
def test_what_is_no_source(src: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    tree(tmp_path, {"photos/cat/a.jpg": PHOTO, "notes.txt": b"x", "notes.md": b"x"})
    make_tar(tmp_path / "a.tar", {"cat/a.jpg": PHOTO})
    np.savez(tmp_path / "a.npz", images=random_images(2))
    if src.startswith("?"):
        make_tar(tmp_path / "b.tar", {"cat/a.jpg": PHOTO})
    with pytest.raises(ValueError) as caught:
        open_source(str(tmp_path / src), **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("src", ["a.parquet", "hf:me/pets"])
def test_without_datasets_the_line_tells_what_to_install(
    src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install 'fastpsl-vision\[datasets\]'") as caught:
        open_source(src if src.startswith("hf:") else str(tmp_path / src))
    assert "\n" not in str(caught.value)


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
