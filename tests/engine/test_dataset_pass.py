"""EpochContext passes over every training sample once, as requested, and leaves the network unchanged."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine import dataset_pass
from fastpsl.engine.dataset_pass import NAME, PART, RECORD, EpochContext, PassStopped, Predictions, predict
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.plan import make_plan
from fastpsl.engine.run import Run
from fastpsl.engine.train_step import DTYPES
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.views import Input, ViewSpec, center_view
from fastpsl.tasks.rotation import Rotation
from tests.engine.steps import rank_of
from tests.engine.tiny import TinyNet, noise_batch, one_process, tiny_run
from tests.programs import digests
from tests.slow import slow
from tests.warm import results_of_ranks

NUM = 75  # two batches of 32, and one of 11 with padding
CENTER = center_view(Input(size_px=32), 32)
RANDOM = ViewSpec(RandomResizedCrop(32))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = tiny_run(tmp_path)
    run.data.train = Subset(run.data.train, np.arange(NUM))
    yield run
    run.close()


def context_of(run: Run, draws: int = 1000) -> EpochContext:
    torch.manual_seed(0)
    task = Rotation(shorter_px=36, size_px=32)
    experiment = Experiment(task, TinyNet(), make_plan("psl", (1, 1, 1)), cosine(0.1))
    train_step = make_train_step(experiment, 0, run.options, run.world)
    for batch in range(3):  # fill the running statistics
        train_step.module.blocks(torch.randn(8, 3, 32, 32) + batch)
    return EpochContext(run, train_step, epoch=0, first=True, draws_epoch=draws)


def features_of(context: EpochContext, view: ViewSpec, training: bool = False) -> list[Tensor]:
    """Return each batch's maps."""
    return [maps for _, maps in context.forward_dataset(view, lambda maps: maps, training=training)]


@pytest.mark.parametrize("training", [False, True])
def test_every_sample_once_and_nothing_is_changed(run: Run, training: bool) -> None:
    context = context_of(run)
    module = context.train_step.module
    module.blocks.learning[1].eval()  # a mode that the pass must restore
    before = digests(module.state_dict()), [part.training for part in module.modules()]
    all_indices: list[int] = []
    for indices, features in context.forward_dataset(RANDOM, lambda maps: maps, training=training):
        assert not features.requires_grad and features.shape == (32, 12, 4, 4)
        all_indices += indices.tolist()
    assert all_indices[:NUM] == list(range(NUM)) and all_indices[NUM:] == [-1] * 21
    assert (digests(module.state_dict()), [part.training for part in module.modules()]) == before


def test_in_eval_mode_an_image_does_not_depend_on_its_batch(run: Run) -> None:
    context = context_of(run)
    network = context.train_step.module.blocks
    result = torch.cat(features_of(context, CENTER))[:NUM]
    with run.data.loader(run.data.train, [CENTER], train=False) as loader:
        inputs = torch.cat([batch.inputs([CENTER], torch.float32)[0] for batch in loader.epoch(1000)])[:NUM]
    network.eval()
    with torch.no_grad():
        assert torch.allclose(result, torch.cat([network(one[None]) for one in inputs]), atol=1e-5)


def test_each_batch_of_each_pass_has_its_own_dropout(run: Run) -> None:
    def seeds(draws: int) -> list[int]:
        passed = context_of(run, draws).forward_dataset(
            RANDOM, lambda maps: torch.tensor(torch.initial_seed()), training=True
        )
        return [int(seed) for _, seed in passed]

    first, other = seeds(1000), seeds(1001)
    assert len(first) == 3 and len({*first, *other}) == 6 and seeds(1000) == first


def test_in_train_mode_statistics_are_the_batchs_without_its_padding(run: Run) -> None:
    context = context_of(run)
    network = context.train_step.module.blocks
    batches = features_of(context, RANDOM, training=True)
    with run.data.loader(run.data.train, [RANDOM], train=False) as loader:
        inputs = [batch.inputs([RANDOM], torch.float32)[0] for batch in loader.epoch(1000)]
    network.train()
    with torch.no_grad():
        assert torch.allclose(batches[0], network(inputs[0]), atol=1e-5)
        last = inputs[2][:11]
        repeated = torch.cat([last, last[torch.arange(11, 32) % 11]])
        assert torch.allclose(batches[2][:11], network(repeated)[:11], atol=1e-5)
        assert not torch.allclose(batches[2][:11], network(inputs[2])[:11], atol=1e-2)


def test_padding_is_filled_with_the_batchs_own_images() -> None:
    batch = noise_batch([CENTER], 6)
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    for indices, expected in (
        ([5, 6, 7, -1, -1, -1], [0, 1, 2, 0, 1, 2]),
        ([5, -1, 7, 8, -1, -1], [0, 2, 2, 3, 2, 3]),
        ([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5]),
        ([-1] * 6, [0, 1, 2, 3, 4, 5]),
        ([-1, 0, -1, -1, -1, -1], [1] * 6),
    ):
        batch.indices = torch.tensor(indices)
        filled = dataset_pass._without_padding(images, batch)[:, 0, 0, 0].tolist()
        valid = [place for place, index in enumerate(indices) if index >= 0]
        assert all(filled[place] == place for place in valid)
        assert set(filled) == (set(map(float, valid)) or set(filled)) and filled == expected


def test_draws_are_those_that_were_asked_for(run: Run) -> None:
    first, again, other = (torch.cat(features_of(context_of(run, draws), RANDOM)) for draws in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_signal_ends_a_pass_and_what_fails_in_it_leaves_no_trace(run: Run) -> None:
    context = context_of(run)
    module = context.train_step.module
    before = digests(module.state_dict())
    with pytest.raises(ZeroDivisionError):
        for _ in context.forward_dataset(RANDOM, lambda maps: maps, training=True):
            _ = 1 / 0
    run.stop_signal.stop_requested = True
    with pytest.raises(PassStopped):
        features_of(context, RANDOM, training=True)
    assert digests(module.state_dict()) == before and module.training


def test_undisturbed_puts_modes_and_statistics_back() -> None:
    network = TinyNet()
    network.parts[2].eval()
    before = digests(network.state_dict())
    with dataset_pass.undisturbed(network, one_process(), training=True), torch.no_grad():
        assert all(part.training for part in network.modules())
        network(torch.randn(4, 3, 32, 32))
        assert digests(network.state_dict()) != before
    assert digests(network.state_dict()) == before
    assert [part.training for part in network.parts] == [True, True, False, True, True]
    with dataset_pass.undisturbed(network, one_process()):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.parts] == [True, True, False, True, True]


def test_dropout_in_a_pass_is_its_own(run: Run) -> None:
    """Dropout does not depend on earlier random numbers, and differs between batches."""
    context = context_of(run)
    context.train_step.module.blocks.learning[2] = torch.nn.Sequential(
        context.train_step.module.blocks.learning[2], torch.nn.Dropout(0.5)
    )
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        results.append(features_of(context, CENTER, training=True))
    assert all(map(torch.equal, *results))
    assert not torch.equal(results[0][0] == 0, results[0][1] == 0)


def test_a_pass_runs_nothing_that_was_compiled(run: Run) -> None:
    context = context_of(run)
    blocks = context.train_step.module.blocks

    def refuse(*arguments: object) -> list[torch.Tensor]:
        raise AssertionError("a step's runner")

    blocks.runner = refuse  # type: ignore[assignment]
    features_of(context, CENTER, training=True)
    assert blocks.runner is refuse


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pass_shows_the_blocks_images_in_the_steps_precision(tmp_path: Path, precision: str) -> None:
    with closing(tiny_run(tmp_path, precision=precision)) as run:
        context, seen = context_of(run), set[torch.dtype]()
        blocks = context.train_step.module.blocks
        blocks.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
        for _, features in context.forward_dataset(CENTER, lambda maps: maps):
            assert (features.dtype == torch.bfloat16) == (precision == "bf16")
    assert seen == {DTYPES[precision]}


def test_a_pass_is_no_part_of_the_steps_pace(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is no step's, and a signal is heard after its first batch, however fast the steps were."""
    context, is_off, seen = context_of(run), [False], list[bool]()

    @contextmanager
    def off_the_clock() -> Iterator[None]:
        is_off.append(True)
        yield
        is_off.append(False)

    def note(batch: Any) -> Tensor:
        seen.append(is_off[-1])
        return torch.zeros(1)

    monkeypatch.setattr(run.reporter, "off_the_clock", off_the_clock)
    passes: tuple[Callable[[], object], ...] = (
        lambda: list(context.forward_dataset(CENTER, note)),
        lambda: context.predict(lambda images: ({"row": note(image).numpy()} for image in images), {}),
    )
    for make_pass in passes:
        run.stop_signal.stop_requested, run.stop_signal._ask_after = True, 64
        with pytest.raises(PassStopped):
            make_pass()
        is_off.append(False)
    assert seen == [True, True]


def test_predictions_are_of_blocks_and_head(tmp_path: Path) -> None:
    """What is kept of a pass over validation images serves no other weights, of the head alone either."""
    run = tiny_run(tmp_path)
    context = context_of(run)
    before = context.val_science(crop=1)
    assert run.data.val is not None
    val = run.data.val
    assert before == context.val_science(crop=1) and before["data"] == val.digest()
    assert before["files"] == val.stamp()
    assert before != context.val_science(crop=2)
    found = [before["weights"]]
    for part in (context.train_step.module.head, context.train_step.module.blocks):
        with torch.no_grad():
            next(part.parameters()).flatten()[0] += 1
        found.append(context.val_science()["weights"])
    assert len(set(found)) == 3
    run.close()


SCIENCE: dict[str, Any] = {"weights": "abc", "seed": 3}
OTHER = SCIENCE | {"weights": "abd"}
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


def asked_by(
    folder: Path,
    num: int,
    science: dict[str, Any] = SCIENCE,
    stop: Callable[[int], bool] = lambda done: False,
) -> list[int]:
    """Predict in one process, check what is written, and return the images that were asked for."""
    predictor = Predictor()
    path = predict(folder, num, predictor.predict_images, one_process(), science, stop)
    assert path is None or path == folder / NAME
    assert path is None or same(dataset_pass.read_predictions(path), expected(num))
    return predictor.asked


@pytest.mark.parametrize("num", COUNTS)
def test_all_images_in_their_order(tmp_path: Path, num: int) -> None:
    assert asked_by(tmp_path, num) == list(range(num))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([NAME, RECORD])
    assert json.loads((tmp_path / RECORD).read_text()) == SCIENCE


def test_images_without_any_row(tmp_path: Path) -> None:
    """Predictions of a network that detects nothing."""
    empty = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    path = predict(tmp_path, 20, lambda images: (empty for _ in images), one_process(), SCIENCE)  # type: ignore[misc]
    assert path is not None
    result = dataset_pass.read_predictions(path)
    assert result["image"].shape == (0,) and result["image"].dtype == np.int64
    assert result["boxes"].shape == (0, 4) and result["boxes"].dtype == np.float32


@pytest.mark.parametrize("stop", [1, PART - 1, PART + 1, 2 * PART + 5])
def test_an_interrupted_pass_goes_on(tmp_path: Path, stop: int) -> None:
    num = 3 * PART + 4
    assert len(asked_by(tmp_path, num, stop=lambda done: done >= stop)) == stop
    assert not (tmp_path / NAME).exists()
    whole = stop // PART * PART  # the images of complete parts
    assert asked_by(tmp_path, num) == list(range(whole, num)) and (tmp_path / NAME).exists()


def test_an_error_in_the_middle_leaves_the_parts(tmp_path: Path) -> None:
    def fail(images: range) -> Iterator[Predictions]:
        for image in images:
            if image == PART + 3:
                raise OSError("a picture that is gone")
            yield predictions_of(image)

    with pytest.raises(OSError, match="gone"):
        predict(tmp_path, 2 * PART, fail, one_process(), SCIENCE)
    assert asked_by(tmp_path, 2 * PART) == list(range(PART, 2 * PART))


def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    asked_by(tmp_path, 20)
    before = (tmp_path / NAME).read_bytes()
    # The state of a run that was killed while it removed the parts.
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "000001.npz").write_bytes(b"")
    assert not asked_by(tmp_path, 20)
    assert (tmp_path / NAME).read_bytes() == before and not (tmp_path / "predictions").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_another_science_begins_anew(tmp_path: Path, whole: bool) -> None:
    """Parts and predictions of other weights are deleted."""
    stop = (lambda done: False) if whole else (lambda done: done > PART)
    old = lambda images: ({name: value * 0 for name, value in predictions_of(i).items()} for i in images)
    assert (predict(tmp_path, 40, old, one_process(), SCIENCE, stop) is not None) == whole
    assert asked_by(tmp_path, 40, OTHER) == list(range(40)) and (tmp_path / NAME).exists()


def test_predictions_of_another_science_are_gone_before_the_new_are_there(tmp_path: Path) -> None:
    """Otherwise an interrupted second evaluation would find the first one's file with its own record."""
    asked_by(tmp_path, 40)
    asked_by(tmp_path, 40, OTHER, lambda done: done > 20)
    assert asked_by(tmp_path, 40, OTHER) == list(range(PART, 40))


def test_killed_between_the_file_and_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of one science never exist beside the record of another."""
    asked_by(tmp_path, 5)
    write = dataset_pass.write_atomically

    def killed(path: Path, data: bytes) -> None:
        if path.name == RECORD:
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(dataset_pass, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            asked_by(tmp_path, 5, OTHER)
    assert (tmp_path / NAME).exists() and asked_by(tmp_path, 5) == list(range(5))


def in_a_process(out: Path, rank: int, world_size: int) -> dict[Any, list[int]]:
    """Return which images this rank is asked for, and under ("calls", …) what it tells after them."""
    world, asked = rank_of(rank, world_size), dict[Any, list[int]]()
    for num in COUNTS:
        # Rank 0 has the first of two parts, and joins them when the slower rank 1 has made the second.
        place, predictor, calls = out / str(num), Predictor(0.3 * rank * (num == PART + 1)), []  # type: ignore[var-annotated]
        if rank == 0:
            place.mkdir()
        dist.barrier()
        note = lambda done, calls=calls: calls.append(done)  # type: ignore[misc]
        path = predict(place, num, predictor.predict_images, world, SCIENCE, note)
        assert path is not None and path.exists()
        asked |= {num: predictor.asked, ("calls", num): calls}
    place, predictor = out / "stopped", Predictor()
    if rank == 0:
        place.mkdir()
    dist.barrier()
    # Stop after each rank's 20th image, when each has one complete part.
    calls = []
    stop = lambda _: calls.append(0) or len(calls) == 20  # type: ignore[func-returns-value]
    assert predict(place, COUNTS[-1], predictor.predict_images, world, SCIENCE, stop) is None
    assert predict(place, COUNTS[-1], predictor.predict_images, world, SCIENCE)
    return asked | {"stopped": predictor.asked}


def test_predictions_of_another_folder_are_missed_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predictions.npz is not there: .* --out"):
        dataset_pass.read_predictions(tmp_path / NAME)


def test_predictions_that_are_damaged_are_named_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / NAME
    np.savez(path, boxes=np.zeros((1 << 10, 4), np.float32))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"predictions.npz is no sound file of predictions \(.+\): give"):
        dataset_pass.read_predictions(path)


@pytest.mark.parametrize("world_size", [2, slow(3)])
def test_ranks_write_the_same_bytes_as_one(tmp_path: Path, world_size: int) -> None:
    ranks = results_of_ranks(partial(in_a_process, tmp_path), world_size, tmp_path)
    for num in COUNTS:
        alone = tmp_path / f"alone-{num}"
        alone.mkdir()
        asked_by(alone, num)
        assert (alone / NAME).read_bytes() == (tmp_path / str(num) / NAME).read_bytes(), num
        assert sorted(image for rank in ranks for image in rank[num]) == list(range(num))
        assert len({len(rank["calls", num]) for rank in ranks}) == 1, "collective calls would not meet"
    assert (tmp_path / "stopped" / NAME).read_bytes() == (tmp_path / str(COUNTS[-1]) / NAME).read_bytes()
    for rank, images in enumerate(each["stopped"] for each in ranks):
        twice = {image for image in images if images.count(image) == 2}
        begun = range((world_size + rank) * PART, (world_size + rank) * PART + 4)
        assert twice == {image for image in begun if image < COUNTS[-1]}


def test_the_order_of_a_science_means_nothing(tmp_path: Path) -> None:
    asked_by(tmp_path, 5)
    assert not asked_by(tmp_path, 5, dict(reversed(SCIENCE.items())))
