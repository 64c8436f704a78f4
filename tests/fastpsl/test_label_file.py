"""Files of pseudo-labels: what comes back, and one line for everything that is no such file or another data set's."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.label_file import Labels, read_labels, write_labels


class Pictures:
    """The part of a data set that labels are compared with."""

    def __init__(self, num_samples: int, digest: str = "0123456789abcdef"):
        self.num_samples, self._digest = num_samples, digest

    def digest(self) -> str:
        return self._digest


def read(path: Path, num_samples: int = 5, digest: str = "0123456789abcdef") -> Labels:
    return read_labels(path, Pictures(num_samples, digest))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_labels(
        tmp_path / "labels.npz",
        np.array([2, 0, 1, 2, 0]),
        3,
        "0123456789abcdef",
        "uic_alexnet, 500 epochs",
        1,
    )


def test_what_was_written_comes_back(path: Path) -> None:
    found = read(path)
    assert found.labels.dtype == np.int32 and found.labels.tolist() == [2, 0, 1, 2, 0]
    assert (found.num_classes, found.made_by, found.num_split) == (3, "uic_alexnet, 500 epochs", 1)
    assert [file.name for file in path.parent.iterdir()] == ["labels.npz"]


def test_as_many_as_imagenet_has(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 10_000, 1_281_167)
    path = write_labels(tmp_path / "labels.npz", labels, 10_000, "d", "test")
    assert np.array_equal(read(path, len(labels), "d").labels, labels)
    assert path.stat().st_size < 4 * len(labels) + 2_000


def test_the_old_file_stays_where_the_new_one_cannot_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(ValueError, match=r"labels\.npz: cannot be written \(No space left on device\)"):
            write_labels(path, np.zeros(5, np.int32), 3, "d", "test")
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def refused(path: Path, *arguments: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read(path, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_of_other_data_are_refused(path: Path) -> None:
    assert refused(path, 6).endswith(
        "labels 5 images, and the data has 6: give the data that was learned from"
    )
    assert "another data set (digest 01234567, the data's is 99)" in refused(path, 5, "99")


@pytest.mark.parametrize("wrong", [3, -1])
def test_labels_out_of_range_are_refused(path: Path, wrong: int) -> None:
    rewrite(path, labels=np.array([0, 1, wrong, 2, 0], np.int32))
    assert f"sample 2 has label {wrong}, and there are classes 0 to 2" in refused(path)
    with pytest.raises(AssertionError):
        write_labels(path, np.array([0, wrong]), 3, "d", "test")


def rewrite(path: Path, **changed: Any) -> None:
    """The same file with other arrays; None: without it."""
    arrays = {name: value for name, value in (dict(np.load(path)) | changed).items() if value is not None}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.zeros((5, 1), np.int32)}, r"labels of int32 \[5, 1\], not int32 \[N\]"),
        ({"labels": np.zeros(5)}, r"labels of float64 \[5\], not int32 \[N\]"),
        ({"labels": np.zeros(5, np.int32).astype(object)}, "no readable file of labels .*pickle"),
        ({"labels": None}, r"no readable file of labels \(labels is not a file in the archive\)"),
        ({"num_classes": np.array("three")}, "not int32"),
        ({"num_classes": np.arange(3)}, "no readable file of labels"),
        ({"format": np.array(99)}, "is of format 99, and this version reads 1"),
    ],
)  # fmt: skip
def test_foreign_files_are_refused(path: Path, changed: dict[str, Any], said: str) -> None:
    rewrite(path, **changed)
    with pytest.raises(ValueError, match=said):
        read(path)
    refused(path)


def test_damaged_files_are_refused(path: Path) -> None:
    """Cut anywhere, or with a byte flipped anywhere that matters: never other labels."""
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        assert "is no readable file of labels" in refused(path)
    for place in range(0, len(whole), 31):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = read(path)
        except ValueError:
            continue
        assert found.labels.tolist() == [2, 0, 1, 2, 0] and found.num_classes == 3
    shorter = whole.replace(b"'shape': (5,)", b"'shape': (4,)")  # numpy alone would read four
    assert shorter != whole
    path.write_bytes(shorter)
    assert "is no readable file of labels (labels.npy fails its checksum)" in refused(path, 4)
    assert refused(path.with_name("none.npz")).startswith(f"no labels {path.with_name('none.npz')}")
    assert "is no readable file of labels" in refused(path.parent)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    text, array = b"no file of numpy's", io.BytesIO()
    np.save(array, np.zeros(5, np.int32))
    for data in (b"", text, array.getvalue()):
        path.write_bytes(data)
        assert "is no readable file of labels" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.npy", text)
    assert "is no readable file of labels" in refused(path)
