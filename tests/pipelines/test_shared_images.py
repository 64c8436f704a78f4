"""Validation images that are training images, against a plain double loop over their stored bytes."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets import shared_images as module
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.shared_images import SharedImages, shared_images
from fastpsl.pipelines.datasets.subset import Subset, Synthetic
from fastpsl.pipelines.interface.dataset import Dataset, read_bytes
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree, write_folder, write_raw

PHOTOS = [jpeg(photo(i, 40 + i % 2, 50)) for i in range(9)]
NOISE = np.random.default_rng(0).integers(0, 256, (12, 40, 50, 3), np.uint8)  # more than `_LAST_BYTES`


def folder(path: Path, *images: bytes) -> Path:
    return tree(path, {f"{i:02}.jpg": data for i, data in enumerate(images)})


def raw(path: Path, images: np.ndarray) -> Path:
    return write_raw(path, images, [i % 2 for i in range(len(images))])


def stored(data: Dataset) -> list[bytes]:
    rows = data.rows(np.arange(data.num_samples))
    return [read_bytes(rows, i) for i in range(data.num_samples)]


def looked(val: Path | Dataset, train: Path | Dataset) -> SharedImages:
    """Compare two data sets, and check the result by a double loop."""
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(closing(open_data(each))) if isinstance(each, Path) else each
            for each in (val, train)
        )
        found, asked, there = shared_images(one, other), stored(one), stored(other)
    assert found.rows is not None and found.num_train == len(there)
    for row, data in zip(found.rows.tolist(), asked, strict=True):
        equal = [i for i, each in enumerate(there) if each == data]
        assert row in equal if equal else row == -1
    assert found.num == sum(data in there for data in asked)
    return found


def rows(found: SharedImages) -> list[int]:
    assert found.rows is not None
    return found.rows.tolist()


def test_a_set_a_copy_and_another_order(tmp_path: Path) -> None:
    one, copy = folder(tmp_path / "one", *PHOTOS), folder(tmp_path / "copy", *PHOTOS)
    turned = folder(tmp_path / "turned", *PHOTOS[::-1])
    for val in (one, copy):
        assert rows(looked(val, one)) == list(range(9)) and looked(val, one).are_all
    found = looked(turned, one)
    assert rows(found) == list(range(9))[::-1] and found.are_all and found.own is found.rows
    some = looked(folder(tmp_path / "some", *PHOTOS[2:6]), one)
    assert rows(some) == [2, 3, 4, 5] and some.own is None
    assert some.line().startswith("4 of 4 validation images are training images (the same stored bytes): ")


def test_three_images_of_others_and_none(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", *PHOTOS[:5])
    three = looked(folder(tmp_path / "val", PHOTOS[8], PHOTOS[4], PHOTOS[0], PHOTOS[7], PHOTOS[2]), train)
    assert rows(three) == [-1, 4, 0, -1, 2]
    assert three.line().startswith("3 of 5 validation images are training images ")
    one = looked(folder(tmp_path / "one", PHOTOS[3]), train)
    assert one.line().startswith("1 of 1 validation image is a training image ")
    none = looked(folder(tmp_path / "none", *PHOTOS[5:]), train)
    assert none.num == 0 and none.line() == ""


def test_equal_images_have_one_each_as_far_as_there_are_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    twice = (PHOTOS[0], PHOTOS[1], PHOTOS[0], PHOTOS[2], PHOTOS[0])
    train = folder(tmp_path / "train", *twice)
    again = looked(folder(tmp_path / "again", *twice), train)
    assert rows(again) == [0, 1, 2, 3, 4] and again.are_all
    more = looked(folder(tmp_path / "more", *[PHOTOS[0]] * 4, PHOTOS[5]), train)
    assert rows(more) == [0, 2, 4, 4, -1] and more.num == 4 and not more.are_all


def test_the_same_names_with_other_pixels(tmp_path: Path) -> None:
    """Names, labels and sizes agree, and so do the last bytes of all but one image."""
    other = NOISE.copy()
    other[:, 0, 0, 0] ^= 1
    other[4] = NOISE[4]
    found = looked(raw(tmp_path / "a.beton", other), raw(tmp_path / "b.beton", NOISE))
    assert rows(found) == [4 if i == 4 else -1 for i in range(12)]


def test_raw_and_small_images_of_dataset_files(tmp_path: Path) -> None:
    tiny = NOISE[:, :1, :1]
    assert len({image.tobytes() for image in tiny}) == 12
    for name, images in (("raw", NOISE), ("tiny", tiny)):
        train = raw(tmp_path / f"{name}.beton", images)
        assert rows(looked(raw(tmp_path / f"{name}-2.beton", np.roll(images, 1, 0)), train)) == [
            11,
            *range(11),
        ]
        assert rows(looked(raw(tmp_path / f"{name}-3.beton", images[:1]), train)) == [0]


def test_passed_jpegs_and_their_files(tmp_path: Path) -> None:
    images = tree(tmp_path / "all", {f"{'ab'[i % 2]}/{i}.jpg": data for i, data in enumerate(PHOTOS)})
    write_folder(images, tmp_path / "all.beton")
    assert looked(images, tmp_path / "all.beton").are_all and looked(tmp_path / "all.beton", images).are_all


def test_parts_of_one_data_set_and_generated_images(tmp_path: Path) -> None:
    with Beton(raw(tmp_path / "a.beton", NOISE)) as data:
        found = looked(Subset(data, np.array([7, 2, 9])), Subset(data, np.array([9, 1, 7, 3])))
        assert rows(found) == [2, -1, 0]
        assert shared_images(Synthetic(6), data).num == shared_images(data, Synthetic(6)).num == 0
    assert shared_images(Synthetic(6), Synthetic(6)).num == 0


def test_images_at_the_same_place_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[int]()
    monkeypatch.setattr(module, "_hash", lambda rows, most_bytes, i: read.append(i))
    paths = raw(tmp_path / "a.beton", NOISE), folder(tmp_path / "folder", *PHOTOS)
    for path, num in zip(paths, (12, 9), strict=True):
        with closing(open_data(path)) as one, closing(open_data(path)) as other:
            assert rows(shared_images(one, other)) == list(range(num)) and not read


def test_images_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    places = [folder(tmp_path / name, *PHOTOS) for name in ("one", "other")]
    with closing(open_data(places[0])) as one, closing(open_data(places[1])) as other:
        (places[0] / "03.jpg").unlink()
        (places[1] / "05.jpg").write_bytes(PHOTOS[5] + b"more")
        assert rows(shared_images(one, other)) == [i if i not in (3, 5) else -1 for i in range(9)]


def test_much_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = raw(tmp_path / "a.beton", NOISE), raw(tmp_path / "b.beton", NOISE[::-1])
    num_bytes = 2 * NOISE.nbytes
    for most_bytes, num in ((num_bytes, 12), (num_bytes - 1, None), (12 * 2 * 4096 - 1, None)):
        monkeypatch.setattr(module, "MAX_BYTES", most_bytes)
        with closing(open_data(paths[0])) as one, closing(open_data(paths[1])) as other:
            found = shared_images(one, other)
        assert found.num == num and found.are_all == bool(num) and bool(found.line()) == bool(num)
    copied = shutil.copy(paths[0], tmp_path / "copy.beton")  # its checksums are known
    assert rows(looked(Path(copied), paths[0])) == list(range(12))


def places(asked: Sequence[int], there: Sequence[int]) -> list[int]:
    return module._matched(np.array(asked, np.int64), np.array(there, np.int64)).tolist()


def test_places_of_keys() -> None:
    assert places([5, -3, 5, 7, 5], [9, 5, -3, 5]) == [1, 2, 3, -1, 3]
    assert places([], [1]) == [] and places([1, 1], []) == [-1, -1]
