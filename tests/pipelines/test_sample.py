"""The embedded sample: made once, equal each time, with classes that can be learned."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torchvision.ops import box_iou

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded import draw_sample
from fastpsl.pipelines.embedded.draw_sample import (
    NUM_TEST,
    NUM_TRAIN,
    VERSION,
    SamplePaths,
    draw_part,
    sample_paths,
)
from fastpsl.pipelines.embedded.draw_voc import draw_voc, drawn_voc
from fastpsl.pipelines.embedded.patterns import CLASS_NAMES, draw_image
from fastpsl.pipelines.embedded.shapes import CLASS_NAMES as SHAPE_NAMES
from fastpsl.pipelines.embedded.shapes import draw_scene
from fastpsl.pipelines.loader.annotated import read_image
from tests.pipelines.photos import pil_decode
from tests.programs import said_at_once

# Of few images, because to draw all takes seconds.
MAKE = """
from fastpsl.pipelines.embedded import draw_sample, draw_voc
draw_sample.NUM_TRAIN, draw_sample.NUM_TEST, draw = 16, 8, draw_voc.draw_voc
draw_voc.draw_voc = lambda folder, *nums, **more: draw(folder, 6, 3)
print(draw_sample.sample_paths())
print(draw_voc.drawn_voc())
"""


def small(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with Beton(path) as beton:
        images = [np.frombuffer(beton.read(i), np.uint8).reshape(32, 32, 3) for i in range(beton.num_samples)]
        return np.stack(images).astype(np.float32) / 255, beton.labels()


@pytest.mark.slow
def test_several_processes_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = said_at_once(MAKE, {"XDG_CACHE_HOME": str(tmp_path)}, num=2)
    for function in ("draw_sample.draw_part", "draw_voc.draw_voc"):
        fail = lambda *arguments, **more: pytest.fail("drawn again")
        monkeypatch.setattr(f"fastpsl.pipelines.embedded.{function}", fail)
    paths, root = sample_paths(tmp_path / "fastpsl"), drawn_voc(tmp_path / "fastpsl")
    assert outputs == {f"{paths}\n{root}\n"}
    assert sorted(path.name for path in root.parent.iterdir()) == ["VOCdevkit", "lock"]
    assert sorted(path.name for path in paths.train.parent.iterdir()) == sorted(
        ["lock", *(f"{name}.beton{end}" for name in SamplePaths._fields for end in ("", ".json"))]
    )


def test_a_part_that_was_damaged_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(sample_paths().train.parent, tmp_path / VERSION)
    drawn = list[Path]()
    monkeypatch.setattr(draw_sample, "draw_part", lambda part, *_: drawn.append(part))
    paths = sample_paths(tmp_path)
    with open(paths.test_32, "r+b") as file:
        file.truncate(1000)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="Too many open files"):
        patch.setattr(os, "open", fail)
        sample_paths(tmp_path)
    assert not drawn
    sample_paths(tmp_path)
    assert drawn == [paths.test]


def fail(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_its_betons_are_sound() -> None:
    for path, num, is_small in zip(sample_paths(), (NUM_TRAIN, NUM_TEST) * 2, (0, 0, 1, 1), strict=True):
        assert list(verify(path)) == []
        with Beton(path) as beton:
            assert beton.num_samples == num and beton.class_names == CLASS_NAMES
            assert list(beton.labels()) == [i % 8 for i in range(num)]
            sizes = beton.image_sizes()
            if is_small:
                assert sizes == (32, 32, 32, 32)
            else:
                assert sizes[0] >= 128 and sizes[1] < sizes[3] <= 200


def test_images_are_drawn_from_the_seed() -> None:
    again = [draw_image(5, index, 60, 81) for index in (3, 3, 11)]
    assert (again[0] == again[1]).all() and (again[0] != again[2]).mean() > 0.5
    assert (draw_image(6, 3, 60, 81) != again[0]).mean() > 0.5
    assert again[0].shape == (60, 81, 3) and again[0].dtype == np.uint8
    with Beton(sample_paths().train) as train, Beton(sample_paths().test) as test:
        images = {train.read(i) for i in range(NUM_TRAIN)} | {test.read(i) for i in range(NUM_TEST)}
        assert len(images) == NUM_TRAIN + NUM_TEST
        assert 30 < np.mean([pil_decode(train.read(i)).std() for i in range(16)]) < 90


@pytest.mark.usefixtures("own_seeds")
def test_what_is_there_is_what_is_drawn_now(tmp_path: Path) -> None:
    draw_part(tmp_path / "part.beton", tmp_path / "small.beton", NUM_TRAIN, 8, "sample")
    paths = sample_paths()
    for name, path in (("part.beton", paths.test), ("small.beton", paths.test_32)):
        with Beton(tmp_path / name) as few, Beton(path) as many:
            assert [few.read(i) for i in range(8)] == [many.read(i) for i in range(8)]


def fit(train: np.ndarray, targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray) -> float:
    """Return the accuracy of ridge regression to one-hot targets."""
    mean = train.mean(0)
    x, y = train - mean, np.eye(targets.max() + 1)[targets]
    ridge, few = 0.02 * (x**2).sum() / len(x), min(x.shape)
    if few < len(x):  # the same weights by the smaller matrix
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(few), x.T @ (y - y.mean(0)))
    else:
        weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(few), y - y.mean(0))
    return float((((test - mean) @ weights + y.mean(0)).argmax(1) == test_targets).mean())


def nearest(train: np.ndarray, targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray) -> float:
    """Return the accuracy of the nearest training image by cosine."""
    train, test = (x - train.mean(0) for x in (train, test))
    found = ((test @ train.T) / np.linalg.norm(train, axis=1)).argmax(1)
    return float((targets[found] == test_targets).mean())


def test_neither_pixels_nor_colours_tell_the_class() -> None:
    paths = sample_paths()
    (train, labels), (test, test_labels) = small(paths.train_32), small(paths.test_32)

    def colours(images: np.ndarray) -> np.ndarray:
        """Return each image's shares of the 64 colours that two bits a channel tell apart."""
        bits = (images * 255).astype(int) // 64 @ np.array([16, 4, 1])
        return np.stack([np.bincount(row.ravel(), minlength=64) for row in bits]) / (32.0 * 32)

    for near in (nearest, fit):
        assert near(train.reshape(len(train), -1), labels, test.reshape(len(test), -1), test_labels) < 0.35
        assert near(colours(train), labels, colours(test), test_labels) < 0.35  # chance 0.125


def test_images_are_alike_in_brightness_and_contrast_and_lit_from_above() -> None:
    images = np.stack([draw_image(5, index, 97, 131).astype(float).mean(2) for index in range(24)])
    assert images.mean((1, 2)).std() < 5 and images.std((1, 2)).std() < 3
    assert (images[:, :48].mean((1, 2)) > images[:, 49:].mean((1, 2)) + 5).all()


@pytest.mark.slow
def test_turn_and_place_can_be_learned() -> None:
    """A linear model on raw pixels predicts turn and place above chance and below certainty."""
    paths = sample_paths()
    (train, _), (test, _) = small(paths.train_32), small(paths.test_32)

    def turned(images: np.ndarray) -> np.ndarray:
        return np.concatenate([np.rot90(images, turn, (1, 2)).reshape(len(images), -1) for turn in range(4)])

    def turns(images: np.ndarray) -> np.ndarray:
        return np.repeat(np.arange(4), len(images))

    turn = fit(turned(train), turns(train), turned(test), turns(test))
    assert turn > 0.6, turn  # chance 0.25

    def tiles(images: np.ndarray) -> np.ndarray:
        cut = images[:, 1:31, 1:31].reshape(len(images), 3, 10, 3, 10, 3)
        return cut.transpose(1, 3, 0, 2, 4, 5).reshape(9 * len(images), -1)

    def places(images: np.ndarray) -> np.ndarray:
        return np.repeat(np.arange(9), len(images))

    place = fit(tiles(train), places(train), tiles(test), places(test))
    assert 0.2 < place < 0.9, place  # chance 0.11


@pytest.mark.parametrize("make", [sample_paths, drawn_voc])
def test_a_cache_that_cannot_be_written(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME"):
        make(tmp_path / "file")


@pytest.mark.usefixtures("own_seeds")
def test_the_voc_that_is_there_is_what_is_drawn_now(tmp_path: Path) -> None:
    few = draw_voc(tmp_path / "few", 6, 3)
    files = [path.relative_to(few) for path in few.rglob("0*.*")]
    assert len(files) == 2 * 9  # an image and an annotation each
    for file in files:
        assert (drawn_voc() / file).read_bytes() == (few / file).read_bytes()


def test_it_is_a_voc() -> None:
    root = drawn_voc()
    nums = {"2007_trainval": 240, "2007_train": 120, "2007_val": 120, "2007_test": 80, "2012_trainval": 220}
    for name, num in nums.items():
        assert VOC(root, (name,), "boxes").num_samples == num
    for name, num in {"2012_train": 160, "2012_val": 60}.items():
        assert VOC(root, (name,), "masks").num_samples == VOC(root, (name,), "boxes").num_samples == num
    train, test = VOC(root, ("2007_trainval",), "boxes"), VOC(root, ("2007_test",), "boxes")
    assert train.class_names == list(SHAPE_NAMES) and train.image_id(0) == "000001"
    for data in (train, test):
        low, high = data.image_sizes()[:2], data.image_sizes()[2:]
        assert min(low) >= 96 and max(high) <= 160
        presence = data.targets() == 1
        # Every class is present in some images and absent from others.
        assert (0.25 < presence.mean(0)).all() and (presence.mean(0) < 0.75).all()
        every = [data.objects(i) for i in range(data.num_samples)]
        assert {len(objects.labels) for objects in every} == {1, 2, 3}
        difficult = np.concatenate([objects.difficult for objects in every])
        assert 0.02 < difficult.mean() < 0.15
        sides = np.concatenate([objects.boxes[:, 2:] - objects.boxes[:, :2] for objects in every])
        assert sides.min() >= 5 and 15 < np.percentile(sides, 2) and sides.max() <= 72
    assert (train.targets() == -1).any() and (test.targets() == -1).any()


def test_masks_lie_in_the_boxes() -> None:
    """Each easy object fills a fair part of its box, and outside of all boxes there is only background."""
    boxes, masks = (VOC(drawn_voc(), ("2012_val",), needs) for needs in ("boxes", "masks"))  # type: ignore[arg-type]
    for i in range(boxes.num_samples):
        objects, mask = boxes.objects(i), masks.mask(i)
        free = np.ones(mask.shape, bool)
        for box, label, difficult in zip(*objects, strict=True):
            left, top, right, bottom = box.astype(int)
            inside = mask[top:bottom, left:right]
            # With the border's outer pixel.
            free[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = False
            if not difficult:
                assert (inside == label + 1).mean() > 0.15
        assert not mask[free].any()
        assert (mask == 255).any() and set(np.unique(mask)) <= {0, 1, 2, 3, 255}


def test_boxes_are_tight() -> None:
    """The mask of a single object with its border of one pixel exceeds the box by one pixel on each side."""
    boxes, masks = (VOC(drawn_voc(), ("2012_train",), needs) for needs in ("boxes", "masks"))  # type: ignore[arg-type]
    alone = [i for i in range(boxes.num_samples) if len(boxes.objects(i).labels) == 1]
    assert len(alone) > 30
    for i in alone:
        is_object = masks.mask(i) != 0
        rows, columns = np.flatnonzero(is_object.any(1)), np.flatnonzero(is_object.any(0))
        left, top, right, bottom = boxes.objects(i).boxes[0].astype(int)
        height, width = is_object.shape
        assert (rows[0], rows[-1]) == (max(top - 1, 0), min(bottom, height - 1))
        assert (columns[0], columns[-1]) == (max(left - 1, 0), min(right, width - 1))


def test_scenes() -> None:
    random = np.random.default_rng(3)
    hidden = truncated = 0
    for _ in range(60):
        height, width = (int(side) for side in random.integers(96, 161, 2))
        image, shapes = draw_scene(random, height, width, 128)
        assert image.shape == (height, width, 3) and image.dtype == np.uint8
        assert 1 <= len(shapes) <= 3 and all(shape.mask.any() for shape in shapes)
        assert sum(shape.mask.astype(int) for shape in shapes).max() == 1  # type: ignore[union-attr]  # each pixel is one object's
        hidden += sum(shape.difficult for shape in shapes)
        truncated += sum(shape.truncated for shape in shapes)
    assert hidden and truncated


def test_proposals() -> None:
    """Fast R-CNN's cells of boxes, from 1 and y first: several are near each object but none equal to it."""
    for split, num in (("trainval", 240), ("test", 80)):
        data = VOC(drawn_voc(), (f"2007_{split}",), "boxes")
        raw = loadmat(drawn_voc() / "proposals" / f"voc_2007_{split}.mat")
        images, boxes = raw["images"].ravel(), raw["boxes"].ravel()
        assert [str(image[0]) for image in images] == [data.image_id(i) for i in range(num)]
        for i in range(0, num, 7):
            top, left, bottom, right = torch.from_numpy(boxes[i]).float().T
            height, width = read_image(data, i).shape[1:]
            assert min(top.min(), left.min()) >= 1
            assert (bottom <= height).all() and (right <= width).all()
            proposals = torch.stack([left - 1, top - 1, right, bottom], 1)
            overlap = box_iou(torch.from_numpy(data.objects(i).boxes), proposals)
            assert (((overlap >= 0.5) & (overlap <= 0.9 + 1e-6)).sum(1) >= 6).all()
            assert len(proposals) == 150 + 6 * len(overlap)
            near = torch.nonzero(overlap.amax(0) >= 0.5)[:, 0]
            assert near.max() - near.min() > len(proposals) / 4  # spread over the list


def test_it_is_drawn_from_its_seed(tmp_path: Path) -> None:
    def digests(name: str, seed: int) -> list[str]:
        root = draw_voc(tmp_path / name, 6, 3, seed, 64)
        boxes = VOC(root, ("2007_trainval", "2007_test"), "boxes")
        return [boxes.digest(), VOC(root, ("2012_train",), "masks").digest()]

    first = digests("first", 1)
    assert digests("again", 1) == first
    assert not set(digests("other", 2)) & set(first)
    small = VOC(draw_voc(tmp_path / "small", 5, 2, 1, 32), ("2007_trainval",), "boxes")
    assert small.num_samples == 5 and 24 <= small.image_sizes()[0] <= small.image_sizes()[3] <= 40
    odd = draw_voc(tmp_path / "odd", 5, 2, num_train_masks=1, num_test_masks=3)
    names = "2007_train", "2007_val", "2007_test", "2012_train", "2012_val"
    assert [VOC(odd, (name,), "boxes").num_samples for name in names] == [3, 2, 2, 1, 3]


def test_a_pixels_colour_does_not_tell_the_class() -> None:
    """Nearest neighbours by an object's mean colour predict its class above chance and far from certainty."""

    def colours(name: str) -> tuple[np.ndarray, np.ndarray]:
        data = VOC(drawn_voc(), (name,), "boxes")
        values, labels = [], []
        for i in range(data.num_samples):
            image = read_image(data, i).permute(1, 2, 0).numpy().astype(np.float64)
            for box, label, _ in zip(*data.objects(i), strict=True):
                left, top, right, bottom = box.astype(int)
                values.append(image[top:bottom, left:right].mean((0, 1)))
                labels.append(label)
        return np.array(values), np.array(labels)

    (train, labels), (test, test_labels) = colours("2007_trainval"), colours("2007_test")
    nearest = ((test[:, None] - train) ** 2).sum(2).argsort(1)[:, :15]
    votes = np.array([np.bincount(labels[row], minlength=3).argmax() for row in nearest])
    assert 0.4 < (votes == test_labels).mean() < 0.85
