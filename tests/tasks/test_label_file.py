"""Test files of pseudo-labels: what is read back, and one-line errors for other files and other data."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.engine.options import RunOptions
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.source import Sample
from fastpsl.tasks.pseudo_labels.file import Labels, labels_of, read_labels, write_labels
from tests.pipelines.photos import jpeg, photo


@dataclass
class PaperImages:
    """A stand-in for the part of a data set that labels are compared with."""

    num_samples: int = 5
    name: str = "0123456789abcdef"
    split: str = "train"

    def digest(self) -> str:
        return self.name


def write(path: Path, labels: Any, num_classes: int, data: Any = None, **told: Any) -> Path:
    source: Any = data or PaperImages(len(labels))
    return write_labels(path, np.array(labels), num_classes, source, "test", **told)


def read(path: Path, num_samples: int = 5, digest: str = "0123456789abcdef") -> Labels:
    return read_labels(path, PaperImages(num_samples, digest))  # type: ignore[arg-type]


CONFIGURATION = {"source": "iic", "num_clusters": 3, "epochs": [500], "dropout": None, "lr": 1e-4}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(
        tmp_path / "labels.npz", [2, 0, 1, 2, 0], 3, num_split=1,
        entropy=np.array([0, 0.5, 1.0, 0.25, np.log(3)]), configuration=CONFIGURATION,
    )  # fmt: skip


def test_what_was_written_comes_back(path: Path) -> None:
    labels = read(path)
    assert labels.labels.dtype == np.int32 and labels.labels.tolist() == [2, 0, 1, 2, 0]
    assert labels.entropy.dtype == np.float32
    assert labels.entropy.tolist() == pytest.approx([0, 0.5, 1, 0.25, np.log(3)])
    assert (labels.num_classes, labels.made_by, labels.num_split, labels.split) == (3, "test", 1, "train")
    assert labels.configuration == CONFIGURATION
    assert [file.name for file in path.parent.iterdir()] == ["labels.npz"]
    with np.load(path) as arrays:
        assert arrays["format"] == 2
        assert arrays["indices"].dtype == np.int64 and arrays["indices"].tolist() == [0, 1, 2, 3, 4]


def test_what_need_not_be_told(tmp_path: Path) -> None:
    labels = read(write(tmp_path / "labels.npz", [0, 1, 0, 1, 1], 2))
    assert np.isnan(labels.entropy).all() and (labels.num_split, labels.configuration) == (0, {})


def test_one_image(tmp_path: Path) -> None:
    assert read(write(tmp_path / "labels.npz", [0], 1), 1).labels.tolist() == [0]


def test_as_many_as_imagenet_has(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 10_000, 1_281_167)
    path = write(tmp_path / "labels.npz", labels, 10_000)
    assert np.array_equal(read(path, len(labels)).labels, labels)
    assert path.stat().st_size < 16 * len(labels) + 4_000


def test_rows_in_another_order_are_put_right(path: Path) -> None:
    order = np.array([3, 0, 4, 2, 1])
    with np.load(path) as arrays:
        rows = {name: arrays[name][order] for name in ("labels", "indices", "entropy")}
    whole = read(path)
    rewrite(path, **rows)
    labels = read(path)
    assert labels.labels.tolist() == whole.labels.tolist()
    assert labels.entropy.tolist() == whole.entropy.tolist()


def test_the_old_file_stays_where_the_new_one_cannot_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(ValueError, match=r"labels\.npz: cannot be written \(No space left on device\)"):
            write(path, [0] * 5, 3)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def one_line(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(path: Path, *arguments: Any) -> str:
    return one_line(read, path, *arguments)


def test_labels_of_other_data_are_refused(path: Path) -> None:
    message = refused(path, 6, "99")
    assert "labels 5 images of another data set (digest 01234567, the data's is 99, of 6 images)" in message
    assert message.endswith("give the data that was learned from")


@pytest.mark.parametrize("wrong", [3, -1])
def test_labels_out_of_range_are_refused(path: Path, wrong: int) -> None:
    rewrite(path, labels=np.array([0, 1, wrong, 2, 0], np.int32))
    assert f"sample 2 has label {wrong}, and there are classes 0 to 2" in refused(path)
    rewrite(path, indices=np.array([4, 3, 1, 2, 0]))
    assert f"sample 1 has label {wrong}" in refused(path)
    with pytest.raises(AssertionError):
        write(path, [0, wrong], 3)


def test_each_sample_needs_one_label(path: Path) -> None:
    rewrite(path, indices=np.array([0, 1, 2, 1, 4]))
    assert "labels sample 1 twice, and each needs one label" in refused(path)
    for outside in (5, -1):
        rewrite(path, indices=np.array([0, 1, 2, outside, 4]))
        assert f"labels sample {outside}, and the data has samples 0 to 4" in refused(path)
    rewrite(path, indices=np.arange(5))
    assert "labels sample 5 not at all" in refused(path, 6)
    with pytest.raises(AssertionError):
        write(path, [0, 1], 3, PaperImages(3))


def test_more_classes_than_images_are_refused(path: Path) -> None:
    for num in (0, 6):
        rewrite(path, num_classes=np.array(num), labels=np.zeros(5, np.int32))
        assert f"is of {num} classes for 5 images" in refused(path)


def rewrite(path: Path, **changed: Any) -> None:
    """Write the file again with other arrays, or without those that are None."""
    arrays = {name: value for name, value in (dict(np.load(path)) | changed).items() if value is not None}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.zeros((5, 1), np.int32)}, r"labels of int32 \[5, 1\], not int32 \[N\]"),
        ({"labels": None}, r"no readable file of labels \(labels is not a file in the archive\)"),
        ({"indices": np.arange(4)}, r"indices of int64 \[4\], not int64 \[N\]"),
        ({"configuration": np.array("[1]")}, "no readable file of labels"),
        ({"num_classes": np.array("three")}, "numbers of classes that are no integers"),
        ({"format": np.array(99)}, "is of format 99, and this version reads 2"),
        ({"format": np.array(1), "indices": None, "entropy": None, "split": None, "configuration": None},
         "is of format 1, and this version reads 2: write the labels anew"),
    ],
)  # fmt: skip
def test_foreign_and_older_files_are_refused(path: Path, changed: dict[str, Any], said: str) -> None:
    rewrite(path, **changed)
    with pytest.raises(ValueError, match=said):
        read(path)
    refused(path)


def test_a_cut_file_a_folder_and_none_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])
    assert "is no readable file of labels" in refused(path)
    assert refused(path.with_name("none.npz")).startswith(f"no labels {path.with_name('none.npz')}")
    assert "is a folder: give a file of labels" in refused(path.parent)


def test_labels_to_learn_from(tmp_path: Path) -> None:
    """They must be those of the run's training images, and are read once."""
    paths = sample_paths()
    own_file, other_file = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    for path, source in ((own_file, paths.train), (other_file, paths.test)):
        with Beton(source) as data:
            write(path, np.arange(data.num_samples) % 7, 7, data)
    labels = labels_of(own_file, RunOptions())
    assert labels.labels.tolist() == [i % 7 for i in range(480)]
    assert labels_of(own_file, RunOptions()) is labels
    for options in (RunOptions(), RunOptions(data=str(paths.train), val=str(paths.test))):
        message = one_line(labels_of, other_file, options)
        assert message.startswith(f"{other_file} labels the validation images: these are the test images")
    assert "another data set" in one_line(labels_of, other_file, RunOptions(data=str(paths.train)))
    assert "no labels" in one_line(labels_of, tmp_path / "none.npz", RunOptions())


def beton(path: Path, split: str | None, shard: str = "0/1") -> Path:
    """Write four images as `fastpsl data write --split` does."""
    images = [Sample(f"{i}.jpg", jpeg(photo(i, 20, 24)), i % 2) for i in range(4)]
    record: dict[str, object] = {
        "source": "photos.npz", "split": split, "shard": shard, "num_total": 4 * int(shard[-1]),
    }  # fmt: skip
    write_beton(images, path, num_samples=4, record=record)
    return path


def test_the_split_is_what_the_betons_json_tells(tmp_path: Path) -> None:
    for split in ("train", "test", None):
        with Beton(beton(tmp_path / f"{split}.beton", split)) as data:
            assert data.split == (split or "")
            assert Subset(data, np.array([2])).split == data.split
            path = write(tmp_path / f"{split}.npz", [0, 1, 0, 1], 2, data)
            assert read_labels(path, data).split == data.split
    shards = [beton(tmp_path / f"part-{i}.beton", "train", f"{i}/2") for i in range(2)]
    with Beton(shards) as data:
        assert data.split == "train"
    for other, split in (("None", "train"), ("test", "test+train")):
        with Beton([tmp_path / "train.beton", tmp_path / f"{other}.beton"]) as data:
            assert data.split == split
    (tmp_path / "train.beton.json").unlink()
    with Beton(tmp_path / "train.beton") as data:
        assert data.split == ""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(jpeg(photo(0, 20, 24)))
    with closing(open_data(tmp_path / "photos")) as photos:
        assert photos.split == ""


def test_the_command_writes_the_split(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {f"{name}_{split}": value for split in ("train", "test")
              for name, value in (("x", np.zeros((3, 8, 8, 3), np.uint8)), ("y", np.arange(3)))}  # fmt: skip
    np.savez(tmp_path / "digits.npz", **arrays)
    for split in ("train", "test"):
        out = tmp_path / f"{split}.beton"
        main(["data", "write", str(tmp_path / "digits.npz"), str(out), "--split", split])
        with Beton(out) as data:
            assert data.split == split


@pytest.mark.parametrize(
    "split", ["test", "val", "valid", "validation", "Test", "train+test", "validation_2"]
)
def test_nothing_is_learned_from_a_split_made_for_testing(tmp_path: Path, split: str) -> None:
    source = beton(tmp_path / "some.beton", split)
    with Beton(source) as data:
        path = write(tmp_path / "labels.npz", [0, 1, 0, 1], 2, data)
        assert read_labels(path, data).split == split  # reading them for a report is allowed
    message = one_line(labels_of, path, RunOptions(data=str(source)))
    assert message.startswith(f"{path} labels a split named {split}: these are the test images")
    (tmp_path / "some.beton.json").unlink()  # the file of labels still has the split
    assert "the test images" in one_line(labels_of, path, RunOptions(data=str(source), seed=1))


def test_a_file_that_knows_no_split_is_still_of_the_datas(tmp_path: Path) -> None:
    source, path = beton(tmp_path / "some.beton", "test"), tmp_path / "labels.npz"
    with Beton(source) as data:
        data.split = ""
        write(path, [0, 1, 0, 1], 2, data)
        assert read_labels(path, data).split == ""
    assert "labels a split named test" in one_line(labels_of, path, RunOptions(data=str(source)))


@pytest.mark.parametrize("split", ["train", "", "unlabeled", "train+unlabeled", "evaluated"])
def test_other_splits_are_learned_from(tmp_path: Path, split: str) -> None:
    source = beton(tmp_path / "some.beton", split)
    with Beton(source) as data:
        path = write(tmp_path / "labels.npz", [0, 1, 0, 1], 2, data)
    assert labels_of(path, RunOptions(data=str(source))).split == split
