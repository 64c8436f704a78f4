"""If data fail during training, the last complete step is saved, and a resumed run ends like a whole one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastpsl.engine.distributed import World, leave_world
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.trainer import pretrain
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.loader.batch import Batch
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import tiny_run
from tests.programs import digests, newest_checkpoint
from tests.warm import on_ranks

FAILURE = OSError(5, "Input/output error", "/data/train.beton")


def fit(out: Path, world: World | None = None, **options: Any) -> bool:
    """Train epochs of three batches, where each stage ends in its second epoch."""
    run = tiny_run(out, world, max_steps_per_stage=5, val=None, **{"batch_size": 160, **options})
    try:
        return pretrain(tiny_experiment(), run)
    finally:
        run.close()


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
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert fit(out)
    return out


@pytest.mark.parametrize("number", [3, 4], ids=["in mid-epoch", "at an epoch's start"])
def test_the_last_whole_step_is_saved_and_said(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        fail_at(number, FAILURE, patch)
        with pytest.raises(ValueError, match=f"goes on from stage 1, step {number - 1}$") as excinfo:
            fit(tmp_path)
    assert str(excinfo.value).startswith(str(FAILURE)) and excinfo.value.__cause__ is FAILURE
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == number - 1
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == number - 1
    assert fit(tmp_path)
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole))


def one_of_two(rank: int, folder: str) -> None:
    """Run one of two ranks: a whole run, one in which rank 1's data fail, and its continuation."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World(rank, 2, rank, 2, torch.device("cpu"))
    assert fit(Path(folder, "whole"), world)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            fail_at(3, FAILURE, patch)
        with pytest.raises(ValueError) as excinfo:
            fit(Path(folder, "failed"), world)
    Path(folder, f"told-{rank}.txt").write_text(str(excinfo.value))
    assert rank == 1 or newest_checkpoint(Path(folder, "failed"))["position"]["run_step"] == 2
    assert fit(Path(folder, "failed"), world)
    leave_world()


def test_no_rank_begins_a_step_for_which_one_has_no_data(tmp_path: Path) -> None:
    on_ranks(one_of_two, (str(tmp_path),), 2)
    where = "; a checkpoint was written, and the same command goes on from stage 1, step 2"
    for rank, message in enumerate((f"{FAILURE} (rank 1){where}", f"{FAILURE}{where}")):
        assert (tmp_path / f"told-{rank}.txt").read_text() == message
    state, whole_state = newest_checkpoint(tmp_path / "failed"), newest_checkpoint(tmp_path / "whole")
    assert digests(state) == digests(whole_state)


def test_a_step_that_has_begun_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second of two parts fails, BatchNorm's statistics already contain the first."""
    error = OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        fail_at(6, error, patch)
        with pytest.raises(OSError) as excinfo:
            fit(tmp_path, batch_size=32, accumulate=2)
    assert excinfo.value is error and not (tmp_path / "checkpoints").exists()
    with monkeypatch.context() as patch:
        fail_at(1, error, patch)  # nothing was learned yet
        with pytest.raises(OSError):
            fit(tmp_path, batch_size=32, accumulate=2)
    assert not (tmp_path / "checkpoints").exists()


def test_a_disk_that_fails_too_does_not_hide_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    error = OSError(5, "Input/output error")
    monkeypatch.setattr(CheckpointManager, "save", full)
    fail_at(3, error, monkeypatch)
    with pytest.raises(OSError) as excinfo:
        fit(tmp_path)
    assert excinfo.value is error
