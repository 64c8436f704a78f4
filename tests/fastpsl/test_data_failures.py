"""Data that fail within an epoch cost no step: the last whole one is saved, and a run that goes on ends as one that never failed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastpsl.checkpoint import Checkpoints
from fastpsl.pipelines.batch import Batch
from fastpsl.reporter import Reporter
from fastpsl.trainer import pretrain
from tests.commands import digests, newest_checkpoint
from tests.fastpsl.test_trainer import tiny_job
from tests.fastpsl.tiny import tiny_run


def fit(out: Path, **options: Any) -> bool:
    run = tiny_run(out, max_steps_per_stage=4, val=None, **options)
    try:
        return pretrain(tiny_job(), run)
    finally:
        run.close()


def fail_at(number: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch `number`, from 1, is never read."""
    watched, num_read = Reporter.watched, [0]

    def broken(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            num_read[0] += 1
            if num_read[0] == number:
                raise error
            yield batch

    monkeypatch.setattr(Reporter, "watched", lambda self, batches: watched(self, broken(batches)))


def test_the_last_whole_step_is_saved_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit(tmp_path / "whole")
    error = OSError(5, "Input/output error", "/data/train.beton")
    with monkeypatch.context() as patch:
        fail_at(3, error, patch)
        with pytest.raises(ValueError, match="goes on from stage 1, step 2$") as told:
            fit(tmp_path / "failed")
    assert str(told.value).startswith(str(error)) and told.value.__cause__ is error
    assert newest_checkpoint(tmp_path / "failed")["position"]["run_step"] == 2
    assert (tmp_path / "failed" / "metrics.jsonl").read_text().count("\n") == 2
    assert fit(tmp_path / "failed")
    ours, theirs = newest_checkpoint(tmp_path / "failed"), newest_checkpoint(tmp_path / "whole")
    assert digests(ours) == digests(theirs)


def test_a_step_that_has_begun_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two parts fails: BatchNorm's statistics have the first, so the state is of no step."""
    error = OSError(5, "Input/output error")
    with monkeypatch.context() as patch:
        fail_at(6, error, patch)
        with pytest.raises(OSError) as told:
            fit(tmp_path, accumulate=2)
    assert told.value is error and not (tmp_path / "checkpoints").exists()
    with monkeypatch.context() as patch:
        fail_at(1, error, patch)  # nothing was learned yet
        with pytest.raises(OSError):
            fit(tmp_path, accumulate=2)
    assert not (tmp_path / "checkpoints").exists()


def test_a_disk_that_fails_too_does_not_hide_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    error = OSError(5, "Input/output error")
    monkeypatch.setattr(Checkpoints, "write", full)
    fail_at(3, error, monkeypatch)
    with pytest.raises(OSError) as told:
        fit(tmp_path)
    assert told.value is error
