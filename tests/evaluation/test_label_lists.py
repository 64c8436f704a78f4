"""Test lists of labelled images: balanced, drawn by the seed alone, read in the published formats."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fastpsl.evaluation.few_labels import draw_label_list, read_label_list, source_names, write_label_list
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree, write_folder


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(labels)
    return labels


def test_counts_are_those_of_simclrs_published_lists() -> None:
    """SimCLR's lists of ImageNet have 811 x 13 + 189 x 12 and 116 x 129 + 884 x 128 lines."""
    sizes = [1300] * 895 + [732] * 2 + [1130] * 103
    sizes[0] += 1_281_167 - sum(sizes)
    labels = labels_of(sizes)
    for percent, counts in ((1, {13: 811, 12: 189}), (10, {129: 116, 128: 884})):
        chosen = draw_label_list(labels, 1000, percent, 0)
        assert len(chosen) == 1_281_167 * percent // 100
        assert Counter(Counter(labels[chosen].tolist()).values()) == counts
        assert (np.diff(chosen) > 0).all() and chosen.dtype == np.int64


def test_a_share_that_is_a_whole_number_of_images_loses_none_to_rounding() -> None:
    """32.3 % of 1,000 in floating point is a little less than 323."""
    assert len(draw_label_list(np.arange(1000) % 10, 10, 32.3, 0)) == 323


def test_the_choice_is_the_seeds_and_even() -> None:
    labels = labels_of([40] * 10)
    first = draw_label_list(labels, 10, 10, 0)
    assert np.array_equal(first, draw_label_list(labels, 10, 10, 0))
    assert not np.array_equal(first, draw_label_list(labels, 10, 10, 1))
    counts = np.zeros(len(labels))
    for seed in range(400):
        counts[draw_label_list(labels, 10, 10, seed)] += 1
    # an image has a chance of 1 in 10: 40 ± 6 of 400
    assert counts.sum() == 400 * 40 and 15 < counts.min() and counts.max() < 70
    # 41 of 410 in ten classes leave one image over, and its class is drawn, too
    labels = labels_of([41] * 10)
    extra = {np.bincount(labels[draw_label_list(labels, 10, 10, seed)]).argmax() for seed in range(100)}
    assert len(extra) == 10


def test_a_list_stays_as_it_was_drawn_first() -> None:
    """The draw is frozen, because a run that is resumed with a later version needs the same images."""
    assert draw_label_list(np.arange(60) % 3, 3, 10, 7).tolist() == [0, 1, 43, 45, 50, 59]


def test_classes_with_too_few_are_named() -> None:
    names = ["ant", "cat", "dog"]
    for sizes, percent, message in (
        ([500, 3, 500], 1, "percent 1 of cat, which has 3 images, .* 33.3 or more, or .* --label-list"),
        ([1000, 1000, 20], 15, "takes 101 images of each class, and dog has 20: lower --percent"),
        *(([50, 50, 50], percent, "above 0 and at most 100") for percent in (0, -1, 101, float("nan"))),
    ):
        with pytest.raises(ValueError, match=message):
            draw_label_list(labels_of(sizes), 3, percent, 0, names)
    with pytest.raises(ValueError, match="class 2, which has 0 images, .* empty classes"):
        draw_label_list(labels_of([50, 30]), 3, 10, 0)
    assert np.array_equal(draw_label_list(labels_of([5, 5]), 2, 100, 0), np.arange(10))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three classes with ImageNet's kind of names, four files each; one file name is in two classes."""
    root = tmp_path_factory.mktemp("data") / "train"
    image = jpeg(photo(0, 40, 40))
    names = [f"n0{c}/n0{c}_{10 * i}.JPEG" for c in range(3) for i in range(4)]
    tree(root, dict.fromkeys([*names, "n01/same.JPEG", "n02/same.JPEG"], image))
    write_folder(root, root.parent / "train.beton")
    return root


@pytest.fixture(params=["beton", "folder"])
def data(
    request: pytest.FixtureRequest, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Beton | Folder]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Beton(imagenet.parent / "train.beton") if request.param == "beton" else Folder(imagenet) as data:
        yield data


def names_of(data: Beton | Folder, places: np.ndarray) -> list[str]:
    names = list(source_names(data))
    return ["/".join(names[i].split("/")[-2:]) for i in places]


WANTED = ["n02/n02_30.JPEG", "n00/n00_0.JPEG", "n01/n01_20.JPEG"]


@pytest.mark.parametrize(
    "text",
    [
        "n02_30.JPEG\nn00_0.JPEG\nn01_20.JPEG\n",  # in SimCLR's format
        "n02/n02_30.JPEG\n\nn00/n00_0.JPEG\r\n n01/n01_20.JPEG",
        "/somewhere/train/n02/n02_30.JPEG\ntrain/n00/n00_0.JPEG\nn01_20\n",
        "n02_30.jpg\nelsewhere/n00_0.png\nn01/n01_20.webp\n",
        'filename,label\n"n02/n02_30.JPEG",n02\nn00_0.JPEG,n00\nn01/n01_20.JPEG,n01\n',
    ],
)
def test_names_of_all_kinds_are_found(data: Beton | Folder, tmp_path: Path, text: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_text(text, encoding=encoding)
        assert names_of(data, read_label_list(tmp_path / "list.txt", data)) == WANTED


def test_arrays_of_paths_and_of_places_are_read(data: Beton | Folder, tmp_path: Path) -> None:
    path = tmp_path / "train_images.npy"  # in VISSL's format, absolute paths of another machine
    for array in (np.array([f"/datasets/imagenet/train/{name}" for name in WANTED]), np.array(WANTED, "S")):
        np.save(path, array)
        assert names_of(data, read_label_list(path, data)) == WANTED
    np.save(path, np.array([5, 0, 13]))
    assert read_label_list(path, data).tolist() == [5, 0, 13]
    for array, why in (
        (np.array([0.5]), "no strings and no integers"),
        (np.array(["a", 1], object), "cannot be read"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ValueError, match=why):
            read_label_list(path, data)
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match="cannot be read"):
        read_label_list(path, data)


def test_what_is_written_is_read(data: Beton | Folder, tmp_path: Path) -> None:
    chosen = np.array([3, 7, 11])
    path = write_label_list(tmp_path / "label-list.txt", chosen)
    assert path.read_text() == "3\n7\n11\n"
    assert np.array_equal(read_label_list(path, data), chosen)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("n00_0.JPEG\nn09_1.JPEG\nn09_2.JPEG\n", r"n09_1.JPEG, which is not in the data \(2 of 3 names"),
        ("same.JPEG\n", r"names same.JPEG, and 2 samples have that name .*class/name"),
        ("n00_0.JPEG\nn00/n00_0.JPEG\n", r"names .*n00/n00_0.JPEG.* 2 times"),
        ("3\n14\n", "names sample 14, and the data has 0 to 13"),
        ("3\n3\n", "2 times"),
        ("\n\n", "names no image"),
    ],
)
def test_lists_that_do_not_fit_are_refused(data: Beton | Folder, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=why):
        read_label_list(tmp_path / "list.txt", data)


def test_the_same_name_in_two_classes_is_told_by_its_folder(data: Beton | Folder, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("n02/same.JPEG\n")
    assert names_of(data, read_label_list(tmp_path / "list.txt", data)) == ["n02/same.JPEG"]


def test_a_beton_without_its_json_says_what_is_missing(imagenet: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.beton").write_bytes((imagenet.parent / "train.beton").read_bytes())
    (tmp_path / "list.txt").write_text("n00_0.JPEG\n")
    with Beton(tmp_path / "bare.beton") as bare:
        with pytest.raises(ValueError, match=r"bare.beton does not know .*bare.beton.json"):
            read_label_list(tmp_path / "list.txt", bare)
        (tmp_path / "list.txt").write_text("1\n2\n")
        assert read_label_list(tmp_path / "list.txt", bare).tolist() == [1, 2]


def test_other_data_has_names_too(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("synthetic sample 3\n")
    assert read_label_list(tmp_path / "list.txt", Synthetic(5)).tolist() == [3]


def test_a_file_of_another_class_is_not_taken(tmp_path: Path) -> None:
    """Files are numbered: cat/1.jpg is missing, and dog/1.jpg is no cat."""
    image, path = jpeg(photo(0, 8, 8)), tmp_path / "list.txt"
    names = ("cat/2.jpg", "dog/1.jpg", "dog/3.jpg")
    with Folder(tree(tmp_path / "photos", dict.fromkeys(names, image))) as data:
        path.write_text("cat/1.jpg\ncat/2.jpg\n")
        with pytest.raises(ValueError, match="cat/1.jpg, which is not in the data"):
            read_label_list(path, data)
        path.write_text("1.jpg\ncat/2.jpg\n")
        assert read_label_list(path, data).tolist() == [1, 0]


def test_a_number_of_any_length_is_a_place_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with closing(open_data(str(sample_paths().test_32))) as data:
        path.write_text("000\n0000000000000000000000000007\n")
        assert read_label_list(path, data).tolist() == [0, 7]
        for digits in ("9" * 5000, "9" * 30, str(data.num_samples)):
            path.write_text(f"1\n{digits}\n")
            with pytest.raises(ValueError, match=rf"list\.txt names sample {digits[:20]}") as refused:
                read_label_list(path, data)
            assert len(str(refused.value)) < 300


def test_names_of_any_bytes_are_found_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"cat/{os.fsdecode(name)}" for name in (b"a.jpg", b"caf\xe9.jpg")]
    path = tmp_path / "list.txt"
    with Folder(tree(tmp_path / "photos", dict.fromkeys(names, jpeg(photo(0, 8, 8))))) as data:
        path.write_bytes(b"caf\xe9.jpg\n")
        assert read_label_list(path, data).tolist() == [1]
        path.write_bytes(b"\xff\xfe\n")
        with pytest.raises(ValueError, match=r"list\.txt names .*, which is not in the data"):
            read_label_list(path, data)


def test_the_classes_that_give_one_more_are_drawn_by_words_of_their_own() -> None:
    """Six images of four classes: those two classes give two whose 64 random bits in epoch 1 are smallest."""
    labels = np.arange(60) % 4
    for seed in range(20):
        high, low = words(Keys(seed, 1, np.arange(4)), Slot.TASK, 2).astype(object).T
        more = sorted(range(4), key=lambda label: (high[label] << 32) | low[label])[:2]
        chosen = draw_label_list(labels, 4, 10, seed)
        counts = np.bincount(labels[chosen], minlength=4).tolist()
        assert counts == [2 if label in more else 1 for label in range(4)]


def test_a_percentage_may_be_exactly_one_image_of_the_smallest_class() -> None:
    labels = labels_of([10, 30, 20])
    chosen = draw_label_list(labels, 3, 10, 0)
    assert np.bincount(labels[chosen]).tolist() == [2, 2, 2]
    labels = labels_of([10] * 5)
    assert np.bincount(labels[draw_label_list(labels, 5, 10, 0)]).tolist() == [1] * 5
    with pytest.raises(ValueError, match="class 0, which has 10 images, is not one image"):
        draw_label_list(labels, 5, 9.9, 0)
