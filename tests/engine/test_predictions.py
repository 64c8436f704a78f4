"""Predictions by parts: equal bytes for any number of ranks, resumed passes, and other sciences."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastpsl.engine import dataset_pass
from fastpsl.engine.dataset_pass import NAME, PART, RECORD, Predictions, predict, read_predictions
from fastpsl.engine.distributed import World, leave_world
from tests.engine.tiny import one_process
from tests.slow import slow
from tests.warm import on_ranks

SCIENCE = {"weights": "abc", "seed": 3}
# One image, less than a part, whole parts, more parts than ranks, and a last part of one image.
COUNTS = (1, 7, PART, PART + 1, 3 * PART, 5 * PART + 7)


def rows_of(image: int) -> int:
    """Return the number of rows of an image. Every third image has none, like one without detections."""
    return image % 3


def predictions_of(image: int) -> Predictions:
    num = rows_of(image)
    boxes = np.random.default_rng(image).random((num, 4)).astype(np.float32)
    return {"boxes": boxes, "labels": np.full(num, image * 10, np.int64)}


class Predictor:
    """A predictor that returns `predictions_of` and records its images, after a wait for each part."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.asked: list[int] = []
        self.wait_s = wait_s

    def predict_images(self, images: range) -> Iterator[Predictions]:
        time.sleep(self.wait_s)
        for image in images:
            self.asked.append(image)
            yield predictions_of(image)


def expected(num: int) -> Predictions:
    each = [predictions_of(image) for image in range(num)]
    image = [image for image in range(num) for _ in range(rows_of(image))]
    return {"image": np.array(image, np.int64)} | {
        name: np.concatenate([one[name] for one in each]) for name in ("boxes", "labels")
    }


def same(one: Predictions, other: Predictions) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("num", COUNTS)
def test_all_images_in_their_order(tmp_path: Path, num: int) -> None:
    predictor = Predictor()
    path = predict(tmp_path, num, predictor.predict_images, one_process(), SCIENCE)
    assert path == tmp_path / NAME and same(read_predictions(path), expected(num))
    assert predictor.asked == list(range(num))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([NAME, RECORD])
    assert json.loads((tmp_path / RECORD).read_text()) == SCIENCE


def test_images_without_any_row(tmp_path: Path) -> None:
    """Predictions of a network that detects nothing."""
    empty = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    path = predict(tmp_path, 20, lambda images: (empty for _ in images), one_process(), SCIENCE)  # type: ignore[misc]
    assert path is not None
    result = read_predictions(path)
    assert result["image"].shape == (0,) and result["image"].dtype == np.int64
    assert result["boxes"].shape == (0, 4) and result["boxes"].dtype == np.float32


@pytest.mark.parametrize("stop", [1, PART - 1, PART + 1, 2 * PART + 5])
def test_an_interrupted_pass_goes_on(tmp_path: Path, stop: int) -> None:
    num = 3 * PART + 4
    first, second = Predictor(), Predictor()
    assert (
        predict(tmp_path, num, first.predict_images, one_process(), SCIENCE, lambda done: done >= stop)
        is None
    )
    assert not (tmp_path / NAME).exists() and len(first.asked) == stop
    path = predict(tmp_path, num, second.predict_images, one_process(), SCIENCE)
    whole = stop // PART * PART  # the images of complete parts
    assert second.asked == list(range(whole, num))
    assert path is not None and same(read_predictions(path), expected(num))


def test_an_error_in_the_middle_leaves_the_parts(tmp_path: Path) -> None:
    def fail(images: range) -> Iterator[Predictions]:
        for image in images:
            if image == PART + 3:
                raise OSError("a picture that is gone")
            yield predictions_of(image)

    with pytest.raises(OSError, match="gone"):
        predict(tmp_path, 2 * PART, fail, one_process(), SCIENCE)
    predictor = Predictor()
    predict(tmp_path, 2 * PART, predictor.predict_images, one_process(), SCIENCE)
    assert predictor.asked == list(range(PART, 2 * PART))


def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    path = predict(tmp_path, 20, Predictor().predict_images, one_process(), SCIENCE)
    assert path is not None
    before, again = path.read_bytes(), Predictor()
    # The state of a run that was killed while it removed the parts.
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "000001.npz").write_bytes(b"")
    assert predict(tmp_path, 20, again.predict_images, one_process(), SCIENCE) == path
    assert not again.asked and path.read_bytes() == before and not (tmp_path / "predictions").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_another_science_begins_anew(tmp_path: Path, whole: bool) -> None:
    """Parts and predictions of other weights are deleted."""
    stop = (lambda done: False) if whole else (lambda done: done > PART)
    old = lambda images: ({name: value * 0 for name, value in predictions_of(i).items()} for i in images)
    assert (predict(tmp_path, 40, old, one_process(), SCIENCE, stop) is not None) == whole
    predictor = Predictor()
    path = predict(tmp_path, 40, predictor.predict_images, one_process(), SCIENCE | {"weights": "abd"})
    assert path is not None and predictor.asked == list(range(40))
    assert same(read_predictions(path), expected(40))


def test_predictions_of_another_science_are_gone_before_the_new_are_there(tmp_path: Path) -> None:
    """Otherwise an interrupted second evaluation would find the first one's file with its own record."""
    predict(tmp_path, 40, Predictor().predict_images, one_process(), SCIENCE)
    other = SCIENCE | {"weights": "abd"}
    predict(tmp_path, 40, Predictor().predict_images, one_process(), other, lambda done: done > 20)
    again = Predictor()
    predict(tmp_path, 40, again.predict_images, one_process(), other)
    assert again.asked == list(range(PART, 40))


def test_killed_between_the_file_and_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of one science never exist beside the record of another."""
    predict(tmp_path, 5, Predictor().predict_images, one_process(), SCIENCE)
    write = dataset_pass.write_atomically

    def killed(path: Path, data: bytes) -> None:
        if path.name == RECORD:
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(dataset_pass, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(tmp_path, 5, Predictor().predict_images, one_process(), SCIENCE | {"weights": "abd"})
    assert (tmp_path / NAME).exists()
    again = Predictor()
    predict(tmp_path, 5, again.predict_images, one_process(), SCIENCE)
    assert again.asked == list(range(5))


def in_a_process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    out = Path(folder)
    for num in COUNTS:
        # Rank 0 has the first of two parts, and joins them when the slower rank 1 has made the second.
        place, predictor, calls = out / str(num), Predictor(0.3 * rank * (num == PART + 1)), []  # type: ignore[var-annotated]
        if rank == 0:
            place.mkdir()
        dist.barrier()
        note = lambda done, calls=calls: calls.append(done)  # type: ignore[misc]
        path = predict(place, num, predictor.predict_images, world, SCIENCE, note)
        assert path is not None and path.exists()
        np.savez(out / f"{num}-{rank}.npz", asked=predictor.asked, calls=calls)
    place, predictor = out / "stopped", Predictor()
    if rank == 0:
        place.mkdir()
    dist.barrier()
    # Stop after each rank's 20th image, when each has one complete part.
    calls = []
    stop = lambda _: calls.append(0) or len(calls) == 20  # type: ignore[func-returns-value]
    assert predict(place, COUNTS[-1], predictor.predict_images, world, SCIENCE, stop) is None
    assert predict(place, COUNTS[-1], predictor.predict_images, world, SCIENCE)
    np.savez(out / f"stopped-{rank}.npz", asked=predictor.asked)
    leave_world()


def test_predictions_of_another_folder_are_missed_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predictions.npz is not there: .* --out"):
        read_predictions(tmp_path / NAME)


@pytest.mark.parametrize("world_size", [2, slow(3)])
def test_ranks_write_the_same_bytes_as_one(tmp_path: Path, world_size: int) -> None:
    on_ranks(in_a_process, (world_size, str(tmp_path)), world_size)
    for num in COUNTS:
        alone = tmp_path / f"alone-{num}"
        alone.mkdir()
        path = predict(alone, num, Predictor().predict_images, one_process(), SCIENCE)
        assert path is not None and path.read_bytes() == (tmp_path / str(num) / NAME).read_bytes(), num
        ranks = [np.load(tmp_path / f"{num}-{rank}.npz") for rank in range(world_size)]
        assert sorted(np.concatenate([record["asked"] for record in ranks]).tolist()) == list(range(num))
        assert len({len(record["calls"]) for record in ranks}) == 1, "collective calls would not meet"
    assert (tmp_path / "stopped" / NAME).read_bytes() == (tmp_path / str(COUNTS[-1]) / NAME).read_bytes()
    images_of_ranks = [
        np.load(tmp_path / f"stopped-{rank}.npz")["asked"].tolist() for rank in range(world_size)
    ]
    for rank, images in enumerate(images_of_ranks):
        twice = {image for image in images if images.count(image) == 2}
        begun = range((world_size + rank) * PART, (world_size + rank) * PART + 4)
        assert twice == {image for image in begun if image < COUNTS[-1]}


def test_the_order_of_a_science_means_nothing(tmp_path: Path) -> None:
    predict(tmp_path, 5, Predictor().predict_images, one_process(), SCIENCE)
    again = Predictor()
    predict(tmp_path, 5, again.predict_images, one_process(), dict(reversed(SCIENCE.items())))
    assert not again.asked
