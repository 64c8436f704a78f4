"""The embedded sample: made once, equal each time, with classes that can be learned."""

from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.sample.betons import NUM_TEST, NUM_TRAIN, SamplePaths, draw_part, sample_paths
from fastpsl.pipelines.sample.landscapes import CLASS_NAMES, draw_image
from tests.pipelines.photos import pil_decode
from tests.programs import said_at_once

MAKE = "from fastpsl.pipelines.sample.betons import sample_paths; print(sample_paths())"


def small(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with Beton(path) as beton:
        images = [np.frombuffer(beton.read(i), np.uint8).reshape(32, 32, 3) for i in range(beton.num_samples)]
        return np.stack(images).astype(np.float32) / 255, beton.labels()


@pytest.mark.slow
def test_several_processes_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = said_at_once(MAKE, {"XDG_CACHE_HOME": str(tmp_path)})
    monkeypatch.setattr(
        "fastpsl.pipelines.sample.betons.draw_part", lambda *arguments: pytest.fail("drawn again")
    )
    paths = sample_paths(tmp_path / "fastpsl")
    assert outputs == {f"{paths}\n"}
    assert sorted(path.name for path in paths.train.parent.iterdir()) == sorted(
        ["lock", *(f"{name}.beton{end}" for name in SamplePaths._fields for end in ("", ".json"))]
    )


def test_its_betons_are_sound() -> None:
    for path, num, is_small in zip(sample_paths(), (NUM_TRAIN, NUM_TEST) * 2, (0, 0, 1, 1), strict=True):
        assert list(verify(path)) == []
        with Beton(path) as beton:
            assert beton.num_samples == num and beton.class_names == CLASS_NAMES
            assert list(beton.labels()) == [i % 8 for i in range(num)]
            sizes = beton.image_sizes()
            assert (
                sizes == (32, 32, 32, 32)
                if is_small
                else (sizes[0] >= 128 and sizes[3] <= 200 and sizes[3] > sizes[1])
            )


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
    kernel = x @ x.T
    weights = x.T @ np.linalg.solve(kernel + 0.02 * np.trace(kernel) / len(x) * np.eye(len(x)), y - y.mean(0))
    return float((((test - mean) @ weights + y.mean(0)).argmax(1) == test_targets).mean())


@pytest.mark.slow
def test_there_is_something_to_learn_and_it_is_not_trivial() -> None:
    """A linear model on raw pixels predicts kind, turn and place above chance and below certainty."""
    paths = sample_paths()
    (train, labels), (test, test_targets) = small(paths.train_32), small(paths.test_32)
    kind = fit(train.reshape(len(train), -1), labels, test.reshape(len(test), -1), test_targets)
    assert 0.25 < kind < 0.95, kind  # chance 0.125

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


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME"):
        sample_paths(tmp_path / "file")
