"""After a signal within a step that hangs, the last step is saved and can be resumed from."""

import json
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine import last_step
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.online_probe import OnlineProbe
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import make_plan
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.trainer import pretrain
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from tests.engine.test_task_hooks import Asking
from tests.engine.tiny import TinyNet, tiny_run
from tests.programs import digests, newest_checkpoint, newest_step

NUM_STEPS = 4  # per stage, of which there are two
left = threading.Event()


class Left(BaseException):
    """An exception instead of the process's end, so that the test continues."""


class Hanging(Asking):
    """A task that gets a signal in step `at` (of the run, from 1) and hangs, and whose state has a queue."""

    def __init__(self, at: int | None = None, numbers: Sequence[signal.Signals] = (signal.SIGTERM,)) -> None:
        super().__init__()
        self.at, self.numbers, self.queue = at, numbers, torch.zeros(8)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        if head.training and len(self.trained) + 1 == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            assert left.wait(120)
            raise Left
        return super().loss(blocks, head, inputs, batch)

    @override
    def num_warm_up_batches(self, stage: Any) -> int:
        return 0

    @override
    def after_step(self, extras: Any) -> None:
        self.queue.copy_((self.queue.roll(1) + torch.arange(8)) / 2)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"queue": self.queue}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.queue = state["queue"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every step count as long and shorten all waits; return the exit codes of attempted exits."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    left.clear()
    monkeypatch.setattr(last_step.os, "_exit", leave)
    monkeypatch.setattr(last_step, "LEAVE_AFTER_S", 0.01)
    monkeypatch.setattr(last_step, "LONG_STEP_S", 0.0)
    return codes


def fit(out: Path, task: Hanging, **options: Any) -> Run:
    run = tiny_run(out, epochs=(1, 1), max_steps_per_stage=NUM_STEPS, **options)
    torch.manual_seed(0)
    try:
        experiment = Experiment(
            task, TinyNet(), make_plan("psl", (1, 1), num_levels=3), step_drops(0.05, (1,))
        )
        assert pretrain(experiment, run)
    finally:
        run.close()
    return run


def status(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "status.json").read_text())
    return record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    fit(out, Hanging())
    return out


@pytest.mark.parametrize(
    ("at", "numbers"), [(3, (signal.SIGTERM,)), (NUM_STEPS + 2, (signal.SIGINT, signal.SIGINT))]
)
def test_the_last_step_is_saved_and_gone_on_from(
    whole: Path, tmp_path: Path, at_once: list[int], capsys: pytest.CaptureFixture[str], at: int, numbers: Any
) -> None:
    with pytest.raises(Left):
        fit(tmp_path, Hanging(at, numbers))
    assert at_once == [75] and newest_step(tmp_path) == at - 1
    stage, step = divmod(at - 1, NUM_STEPS)
    expected = {"state": "preempted", "stage": stage + 1, "step": step, "reason": "interrupted"}
    assert status(tmp_path) == expected
    output = capsys.readouterr().out
    assert f"after {at - 1} steps" in output and f"--out {tmp_path} goes on from there" in output
    fit(tmp_path, Hanging())
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole))
    assert (tmp_path / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_a_failure_that_another_rank_has_reported_stays_on_record(tmp_path: Path, at_once: list[int]) -> None:
    """A launcher stops rank 0, which waits for a rank that failed. A script must not start that run again."""

    class Lost(Hanging):
        @override
        def loss(self, *arguments: Any) -> tuple[Tensor, Metrics]:
            if arguments[1].training and len(self.trained) + 1 == self.at:
                failed = {"state": "failed", "stage": 1, "step": 2, "reason": "rank 1: ValueError: no"}
                (tmp_path / "status.json").write_text(json.dumps(failed))
            return super().loss(*arguments)

    with pytest.raises(Left):
        fit(tmp_path, Lost(3))
    assert at_once == [1] and newest_step(tmp_path) == 2
    assert status(tmp_path)["reason"] == "rank 1: ValueError: no"


def test_the_first_step_leaves_nothing_to_save(
    tmp_path: Path, at_once: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Left):
        fit(tmp_path, Hanging(1))
    assert at_once == [75] and newest_step(tmp_path) == 0 and status(tmp_path)["state"] == "preempted"
    assert "starts anew" in capsys.readouterr().out


def test_a_first_step_after_a_resume_leaves_what_it_was_resumed_from(
    tmp_path: Path, at_once: list[int]
) -> None:
    with pytest.raises(Left):
        fit(tmp_path, Hanging(3))
    before = (tmp_path / "checkpoints" / "step-00000002.pt").read_bytes()
    left.clear()
    with pytest.raises(Left):
        fit(tmp_path, Hanging(1))
    assert at_once == [75, 75]
    assert [path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()] == [before]


def test_where_steps_are_short_none_is_kept_and_none_is_lost(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long step after a short one is waited for, because only the network holds the step before."""
    monkeypatch.setattr(last_step, "LONG_STEP_S", 3600.0)

    class Long(Hanging):
        @override
        def loss(self, *arguments: Any) -> tuple[Tensor, Metrics]:
            if arguments[1].training and len(self.trained) + 1 == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
                watchers = [t for t in threading.enumerate() if t.name == "fastpsl-last-step"]
                for thread in watchers:
                    thread.join(120)
                assert watchers and not any(thread.is_alive() for thread in watchers)
            return Asking.loss(self, *arguments)

    with pytest.raises(AssertionError):  # it stopped after that step
        fit(tmp_path, Long(3))  # the first step is kept
    assert not at_once and newest_step(tmp_path) == 3


def test_before_an_epoch_that_clusters_first_the_last_step_is_kept(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_step, "LONG_STEP_S", 3600.0)

    class Clustering(Hanging):
        @override
        def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
            return self.views(level)

        @override
        def start_epoch(self, context: Any) -> None:
            if context.epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                assert left.wait(120)
                raise Left

    run = tiny_run(tmp_path, epochs=(2,), batch_size=160)
    experiment = Experiment(
        Clustering(), TinyNet(), make_plan("psl", (2,), num_levels=3)[:1], step_drops(0.05, (2,))
    )
    with pytest.raises(Left):
        pretrain(experiment, run)
    run.close()
    assert at_once == [75] and newest_step(tmp_path) == run.position.run_step > 0


def test_a_checkpoint_that_was_saved_is_not_written_over_by_the_step_before(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with pytest.raises(RuntimeError), last_step.LastStep(run) as keeper:
        run.position.run_step = 1
        keeper.keep({"backbone": {"w": torch.ones(1)}, "train_step": {"head": {}}})
        run.position.run_step = 2
        keeper.save({"backbone": {"w": torch.full((1,), 2.0)}, "train_step": {"head": {}}})
        raise RuntimeError("Connection reset by peer")
    run.close()
    assert newest_step(tmp_path) == 2 and newest_checkpoint(tmp_path)["backbone"]["w"] == 2


def test_an_error_too_leaves_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are a lost rank, or data that fail, during the clustering of a million images."""
    monkeypatch.setattr(last_step, "LONG_STEP_S", 3600.0)

    class Failing(Hanging):
        @override
        def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
            return self.views(level)

        @override
        def start_epoch(self, context: Any) -> None:
            if context.epoch == 1:
                raise RuntimeError("Connection reset by peer")

    run = tiny_run(tmp_path, epochs=(2,), batch_size=160)
    experiment = Experiment(
        Failing(), TinyNet(), make_plan("psl", (2,), num_levels=3)[:1], step_drops(0.05, (2,))
    )
    with pytest.raises(RuntimeError, match="reset by peer"):
        pretrain(experiment, run)
    run.close()
    assert newest_step(tmp_path) == run.position.run_step > 0
    assert newest_checkpoint(tmp_path)["position"]["step"] == run.position.step


def test_before_the_monitor_looks_at_a_stages_end_the_last_step_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_step, "LONG_STEP_S", 3600.0)

    def probe(monitor: OnlineProbe, steps_per_epoch: int, last_step: int, release: Any) -> bool:
        if monitor.run.position.step == last_step:
            raise RuntimeError("Connection reset by peer")
        return True

    monkeypatch.setattr(OnlineProbe, "probe", probe)
    with pytest.raises(RuntimeError, match="reset by peer"):
        fit(tmp_path, Hanging(), probe_every=1)
    assert newest_step(tmp_path) == NUM_STEPS


def test_a_disk_that_is_full_ends_nothing(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        left.set()
        raise OSError(28, "No space left on device")

    class Full(Hanging):
        @override
        def loss(self, *arguments: Any) -> tuple[Tensor, Metrics]:
            if arguments[1].training and len(self.trained) + 1 == self.at:
                monkeypatch.setattr("fastpsl.models.checkpoint.CheckpointManager.save", full)
            return super().loss(*arguments)

    with pytest.raises(Left):
        fit(tmp_path, Full(3))
    assert not at_once and newest_step(tmp_path) == 0
    assert "cannot be saved: [Errno 28] No space left on device" in capsys.readouterr().err


def test_signals_go_where_they_went_before(tmp_path: Path) -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    fit(tmp_path, Hanging())
    after = signal.set_wakeup_fd(before)
    assert after == before


def test_its_sockets_are_closed(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with last_step.LastStep(run) as keeper:
        pass
    run.close()
    assert keeper._reader.fileno() == keeper._writer.fileno() == -1


@pytest.mark.parametrize(("steps_since", "leaves"), [(0, True), (1, True), (2, False)])
def test_a_process_leaves_only_if_nothing_but_a_step_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_since: int, leaves: bool
) -> None:
    """One more step may have ended, which waits for other ranks."""
    run = tiny_run(tmp_path)
    keeper, gone = last_step.LastStep(run), list[int]()
    monkeypatch.setattr(keeper, "_leave", lambda: gone.append(run.position.run_step))
    keeper._reader, writer = socket.socketpair()
    run.position.run_step += steps_since
    writer.send(bytes([signal.SIGTERM]))
    keeper._watch()
    assert gone == ([steps_since] if leaves else [])
    for end in (keeper._reader, writer):
        end.close()
    run.close()
