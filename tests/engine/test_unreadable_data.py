"""Data that cannot be read within a training: the last whole step is saved, on all ranks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastpsl.engine.distributed import World
from fastpsl.engine.reporter import Reporter
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from tests.engine.exact_signals import train_until
from tests.engine.steps import rank_of
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import tiny_run
from tests.programs import newest_checkpoint
from tests.recipes.in_process import same_run
from tests.warm import results_of_ranks

FAILURE = OSError(5, "Input/output error", "/data/train.beton")


def fit_end_to_end(out: Path, world: World | None = None, **options: Any) -> bool:
    """Train epochs of three batches, where each stage ends in its second epoch."""
    run = tiny_run(out, world, max_steps_per_stage=5, val=None, **{"batch_size": 160, **options})
    return train_until(None, tiny_experiment(), run)


def fail_at(number: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the reading of batch `number` (from 1) raise `error`."""
    original, num_read = Reporter.watched, [0]

    def fail(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            num_read[0] += 1
            if num_read[0] == number:
                raise error
            yield batch

    monkeypatch.setattr(Reporter, "watched", lambda self, batches: original(self, fail(batches)))


@pytest.fixture(scope="module")
def whole_end_to_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert fit_end_to_end(out)
    return out


@pytest.mark.parametrize("number", [3, 4], ids=["in mid-epoch", "at an epoch's start"])
def test_the_last_whole_step_is_saved_and_said(
    whole_end_to_end: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        fail_at(number, FAILURE, patch)
        with pytest.raises(ValueError, match=f"goes on from stage 1, step {number - 1}$") as excinfo:
            fit_end_to_end(tmp_path)
    assert str(excinfo.value).startswith(str(FAILURE)) and excinfo.value.__cause__ is FAILURE
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == number - 1
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == number - 1
    assert fit_end_to_end(tmp_path)
    same_run(whole_end_to_end, tmp_path)


def unreadable(*_: object) -> Iterator[Batch]:
    raise FAILURE
    yield  # which makes it a generator, as an epoch is


def one_of_two(folder: Path, rank: int, size: int) -> tuple[str, str]:
    """Run one of two ranks: a whole run; one where rank 1's data fail, continued; one without data."""
    world = rank_of(rank, size)
    assert fit_end_to_end(folder / "whole", world)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            fail_at(3, FAILURE, patch)
        with pytest.raises(ValueError) as excinfo:
            fit_end_to_end(folder / "failed", world)
    assert rank == 1 or newest_checkpoint(folder / "failed")["position"]["run_step"] == 2
    assert fit_end_to_end(folder / "failed", world)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:  # which alone reads the first batch
            patch.setattr(Loader, "epoch", unreadable)
        with pytest.raises(ValueError if rank else OSError) as ended:
            fit_end_to_end(folder / "unread", world)
    return str(excinfo.value), str(ended.value)


def test_no_rank_begins_a_step_for_which_one_has_no_data(tmp_path: Path) -> None:
    told = results_of_ranks(partial(one_of_two, tmp_path), 2, tmp_path)
    where = "; a checkpoint was written, and the same command goes on from stage 1, step 2"
    assert told[0] == (f"{FAILURE} (rank 1){where}", f"{FAILURE}")
    assert told[1] == (f"{FAILURE}{where}", f"{FAILURE} (rank 0)")
    same_run(tmp_path / "whole", tmp_path / "failed")


def test_a_step_that_has_begun_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second of two parts fails, BatchNorm's statistics already contain the first."""
    error = OSError(5, "Input/output error")
    for number in (6, 1):  # at 1, nothing was learned yet
        with monkeypatch.context() as patch:
            fail_at(number, error, patch)
            with pytest.raises(OSError) as excinfo:
                fit_end_to_end(tmp_path, batch_size=32, accumulate=2)
        assert excinfo.value is error and not (tmp_path / "checkpoints").exists(), number


def test_a_disk_that_fails_too_does_not_hide_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    error = OSError(5, "Input/output error")
    monkeypatch.setattr(CheckpointManager, "save", full)
    fail_at(3, error, monkeypatch)
    with pytest.raises(OSError) as excinfo:
        fit_end_to_end(tmp_path)
    assert excinfo.value is error
