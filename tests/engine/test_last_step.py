"""Checkpoints: written by a thread beside the training, and after a signal within a step that hangs."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.engine import last_step
from fastpsl.engine.last_step import LastStep, Snapshot
from fastpsl.engine.online_probe import OnlineProbe
from fastpsl.engine.plan import make_plan
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import Metrics
from fastpsl.engine.trainer import pretrain
from fastpsl.files import atomic
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.pipelines.views import ViewSpec
from fastpsl.scripts.recipe_process import error_line
from tests.engine.exact_signals import train_until
from tests.engine.test_task_hooks import Asking, experiment
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import tiny_run
from tests.programs import digests, newest_checkpoint, newest_step
from tests.recipes.in_process import same_run, start
from tests.slow import slow
from tests.warm import CONTEXT

NUM_STEPS = 4  # per stage, of which there are two
LIMIT_S = 120.0
left = threading.Event()


class Left(BaseException):
    """An exception instead of the process's end, so that the test continues."""


def hang(*numbers: signal.Signals) -> None:
    """Send this process signals, and wait until it would end."""
    for number in numbers or (signal.SIGTERM,):
        os.kill(os.getpid(), number)
    assert left.wait(LIMIT_S)
    raise Left


class Hanging(Asking):
    """A task that hangs in step `at` of the run, from 1, or does another thing. Its state has a queue."""

    def __init__(self, at: int | None = None, do: Callable[[], object] = hang) -> None:
        super().__init__()
        self.at, self.do, self.queue = at, do, torch.zeros(8)

    @override
    def loss(self, *arguments: Any) -> tuple[Tensor, Metrics]:
        if arguments[1].training and len(self.trained) + 1 == self.at:
            self.do()
        return super().loss(*arguments)

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


class Clustering(Hanging):
    """A task that hangs, or does another thing, before its second epoch."""

    @override
    def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
        return self.views(level)

    @override
    def start_epoch(self, context: Any) -> None:
        if context.epoch == 1:
            self.do()


def reset_connection() -> None:
    raise RuntimeError("Connection reset by peer")


@pytest.fixture
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


def fit(out: Path, task: Hanging, **options: Any) -> None:
    torch.manual_seed(0)
    with closing(tiny_run(out, epochs=(1, 1), max_steps_per_stage=NUM_STEPS, **options)) as run:
        assert pretrain(experiment(task), run)


def stopped_in_the_second_epoch(out: Path, task: Hanging, error: type[BaseException]) -> int:
    """Train an epoch and begin another one, which raises `error`; return the number of steps."""
    one_stage = replace(experiment(task), stages=make_plan("psl", (2,), num_levels=3)[:1])
    with closing(tiny_run(out, epochs=(2,), batch_size=160)) as run, pytest.raises(error):
        pretrain(one_stage, run)
    assert run.position.run_step > 0 and newest_checkpoint(out)["position"]["step"] == run.position.step
    return run.position.run_step


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
        fit(tmp_path, Hanging(at, partial(hang, *numbers)))
    assert at_once == [75] and newest_step(tmp_path) == at - 1
    stage, step = divmod(at - 1, NUM_STEPS)
    expected = {"state": "preempted", "stage": stage + 1, "step": step, "reason": "interrupted"}
    assert status(tmp_path) == expected
    output = capsys.readouterr().out
    assert f"after {at - 1} steps" in output and f"--out {tmp_path} goes on from there" in output
    fit(tmp_path, Hanging())
    same_run(whole, tmp_path, "metrics.jsonl")


def test_a_failure_that_another_rank_has_reported_stays_on_record(tmp_path: Path, at_once: list[int]) -> None:
    """A launcher stops rank 0, which waits for a rank that failed. A script must not start that run again."""

    def lose() -> None:
        failed = {"state": "failed", "stage": 1, "step": 2, "reason": "rank 1: ValueError: no"}
        (tmp_path / "status.json").write_text(json.dumps(failed))
        hang()

    with pytest.raises(Left):
        fit(tmp_path, Hanging(3, lose))
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

    def wait_for_watchers() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        watchers = [t for t in threading.enumerate() if t.name == "fastpsl-last-step"]
        for thread in watchers:
            thread.join(LIMIT_S)
        assert watchers and not any(thread.is_alive() for thread in watchers)

    with pytest.raises(AssertionError):  # it stopped after that step
        fit(tmp_path, Hanging(3, wait_for_watchers))  # the first step is kept
    assert not at_once and newest_step(tmp_path) == 3


def test_before_an_epoch_that_clusters_first_the_last_step_is_kept(
    tmp_path: Path, at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_step, "LONG_STEP_S", 3600.0)
    num_steps = stopped_in_the_second_epoch(tmp_path, Clustering(), Left)
    assert at_once == [75] and newest_step(tmp_path) == num_steps


@pytest.mark.usefixtures("at_once")
def test_a_checkpoint_that_was_saved_is_not_written_over_by_the_step_before(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with pytest.raises(RuntimeError), last_step.LastStep(run) as keeper:
        run.position.run_step = 1
        keeper.keep({"backbone": {"w": torch.ones(1)}, "train_step": {"head": {}}})
        run.position.run_step = 2
        keeper.save({"backbone": {"w": torch.full((1,), 2.0)}, "train_step": {"head": {}}})
        reset_connection()
    run.close()
    assert newest_step(tmp_path) == 2 and newest_checkpoint(tmp_path)["backbone"]["w"] == 2


@pytest.mark.usefixtures("at_once")
def test_an_error_too_leaves_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are a lost rank, or data that fail, during the clustering of a million images."""
    monkeypatch.setattr(last_step, "LONG_STEP_S", 3600.0)
    num_steps = stopped_in_the_second_epoch(tmp_path, Clustering(do=reset_connection), RuntimeError)
    assert newest_step(tmp_path) == num_steps


@pytest.mark.usefixtures("at_once")
def test_before_the_monitor_looks_at_a_stages_end_the_last_step_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_step, "LONG_STEP_S", 3600.0)

    def probe(monitor: OnlineProbe, steps_per_epoch: int, last_step: int, release: Any) -> bool:
        if monitor.run.position.step == last_step:
            reset_connection()
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

    def fill_and_hang() -> None:
        monkeypatch.setattr(CheckpointManager, "save", full)
        hang()

    with pytest.raises(Left):
        fit(tmp_path, Hanging(3, fill_and_hang))
    assert not at_once and newest_step(tmp_path) == 0
    assert "cannot be saved: [Errno 28] No space left on device" in capsys.readouterr().err


@pytest.mark.usefixtures("at_once")
def test_signals_go_where_they_went_before(tmp_path: Path) -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    fit(tmp_path, Hanging())
    after = signal.set_wakeup_fd(before)
    assert after == before


@pytest.mark.usefixtures("at_once")
def test_its_sockets_are_closed(tmp_path: Path) -> None:
    with closing(tiny_run(tmp_path)) as run, last_step.LastStep(run) as keeper:
        pass
    assert keeper._reader.fileno() == keeper._writer.fileno() == -1


@pytest.mark.usefixtures("at_once")
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


def fit_three_stages(out: Path, runs: list[Run] | None = None) -> bool:
    """Train three stages of four steps, with a checkpoint of each step, from where the run in `out` ended."""
    run = tiny_run(out, max_steps_per_stage=4, keep_checkpoints=99, val=None, checkpoint_steps=1)
    (runs if runs is not None else []).append(run)
    return train_until(None, tiny_experiment(), run)


@pytest.fixture(scope="module")
def whole_three_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert fit_three_stages(out)
    return out


def assert_resumed(out: Path, whole_three_stages: Path) -> None:
    """Go on from the newest checkpoint and compare the end, bit for bit."""
    assert fit_three_stages(out)
    same_run(whole_three_stages, out, "metrics.jsonl")


@pytest.fixture
def late_writes(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, Any], dict[int, Any]]:
    """Let each write wait until the training has made another step, or waits for the write.

    Return digests of the states as they were saved, and as they were written, by step.
    """
    take, release, wait, write = Snapshot.take, LastStep.release, LastStep.wait, Run.save
    later, saved, written = threading.Event(), dict[int, Any](), dict[int, Any]()

    def taken(snapshot: Snapshot, state: dict[str, Any]) -> dict[str, Any]:
        later.clear()
        saved[state["position"]["run_step"]] = digests(state)
        return take(snapshot, state)

    def passed(call: Callable[[LastStep], None]) -> Callable[[LastStep], None]:
        def called(keeper: LastStep) -> None:
            later.set()
            call(keeper)

        return called

    def written_late(run: Run, step: int, state: dict[str, Any]) -> None:
        assert threading.current_thread() is not threading.main_thread() and later.wait(LIMIT_S)
        write(run, step, state)
        written[step] = digests(state)

    monkeypatch.setattr(Snapshot, "take", taken)
    monkeypatch.setattr(LastStep, "release", passed(release))
    monkeypatch.setattr(LastStep, "wait", passed(wait))
    monkeypatch.setattr(Run, "save", written_late)
    return saved, written


def test_no_later_step_changes_what_is_written(
    whole_three_stages: Path, tmp_path: Path, late_writes: tuple[dict[int, Any], dict[int, Any]]
) -> None:
    saved, written = late_writes
    options: dict[str, Any] = {"keep_checkpoints": 99, "checkpoint_steps": 3, "val": None}
    assert train_until(None, tiny_experiment(), tiny_run(tmp_path, max_steps_per_stage=4, **options))
    assert list(written) == [3, 4, 6, 8, 9, 12]
    assert all(written[step] == saved[step] for step in written)
    assert written[12].items() <= digests(newest_checkpoint(tmp_path)).items()
    same_run(whole_three_stages, tmp_path)


RECIPES: dict[str, tuple[object, ...]] = {
    "mocov2_r50": ("--size-px", 32, "--batch-size", 8, "--queue-size", 24, "--key-group", 2),
    "uic_alexnet": ("--epochs", 2),
    "sslpp_iic": (),
}


@pytest.mark.parametrize("name", [*map(slow, RECIPES)])
def test_no_later_step_changes_a_recipes_queue_or_labels(
    name: str, tmp_path: Path, late_writes: tuple[dict[int, Any], dict[int, Any]]
) -> None:
    saved, written = late_writes
    few = ("--workers", 1, "--no-tensorboard", "--checkpoint-steps", 2, "--max-steps-per-stage", 5)
    plan = ("--plan", "end_to_end", "--backbone", "resnet18") if name == "mocov2_r50" else ()
    outcome = start(name, *RECIPES[name], *few, *plan, "--out", tmp_path)
    assert outcome.code == 0, outcome
    assert list(written)[:3] == [2, 4, 5] and all(written[step] == saved[step] for step in written)


def die_at(out: Path, call: str, is_done: bool, num_threads: int) -> None:
    """Train, and kill this process before or after a call in the write of step 6."""
    real = getattr(os, call)

    def called(*arguments: Any) -> None:
        # `fsync` has the file's number, `replace` its paths.
        name = os.readlink(f"/proc/self/fd/{arguments[0]}") if call == "fsync" else str(arguments[0])
        fatal = "step-00000006.pt" in name
        assert not fatal or threading.current_thread().name.startswith("fastpsl-checkpoint")
        if fatal and not is_done:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(num_threads)
    setattr(atomic.os, call, called)
    fit_three_stages(out)


@pytest.mark.parametrize(
    ("call", "is_done", "newest"), [("replace", False, 5), slow("fsync", False, 5), slow("replace", True, 6)]
)
def test_killed_within_a_write_the_checkpoint_before_serves(
    whole_three_stages: Path, tmp_path: Path, call: str, is_done: bool, newest: int
) -> None:
    process = CONTEXT.Process(target=die_at, args=(tmp_path, call, is_done, torch.get_num_threads()))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == -signal.SIGKILL
    assert newest_step(tmp_path) == newest
    assert_resumed(tmp_path, whole_three_stages)


def test_a_signal_within_a_write_is_followed_by_both_checkpoints(
    whole_three_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, runs, waits = Run.save, list[Run](), threading.Event()

    def signalled(run: Run, step: int, state: dict[str, Any]) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            while not run.stop_signal.stop_requested:  # the main thread's handler runs between two bytecodes
                assert not waits.wait(0.01)
        write(run, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", signalled)
        assert not fit_three_stages(tmp_path, runs)
    last = newest_step(tmp_path)
    assert last >= 6 and runs[0].position.run_step == last
    assert_resumed(tmp_path, whole_three_stages)


def test_a_process_that_leaves_a_long_step_waits_for_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step hangs. The second one's checkpoint is being written when the process is to leave."""
    leaves, there = threading.Event(), list[int]()
    leave, write = LastStep._leave, Run.save

    def leaving(keeper: LastStep) -> None:
        leaves.set()
        leave(keeper)

    def exit_(code: int) -> None:
        there.append(newest_step(tmp_path))
        left.set()

    def slow_write(run: Run, step: int, state: dict[str, Any]) -> None:
        if step == 2:
            assert leaves.wait(LIMIT_S)
        write(run, step, state)

    left.clear()
    monkeypatch.setattr(last_step, "LEAVE_AFTER_S", 0.01)
    monkeypatch.setattr(last_step.os, "_exit", exit_)
    monkeypatch.setattr(LastStep, "_leave", leaving)
    monkeypatch.setattr(Run, "save", slow_write)
    with pytest.raises(Left):
        fit(tmp_path, Hanging(3), checkpoint_steps=2)
    assert there == [2]


def test_a_disk_that_is_full_ends_the_run_with_a_line(
    whole_three_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, runs = CheckpointManager.save, list[Run]()

    def full(checkpoints: CheckpointManager, step: int, state: dict[str, Any]) -> Path:
        if step >= 6:
            raise OSError(28, "No space left on device", str(checkpoints.folder / "step-00000006.pt"))
        return write(checkpoints, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", full)
        with pytest.raises(OSError) as excinfo:
            fit_three_stages(tmp_path, runs)
    assert error_line(excinfo.value, runs) == (
        f"{tmp_path}/checkpoints/step-00000006.pt: cannot be written (No space left on device); free some "
        f"space or choose another disk; the same command with --out {tmp_path} goes on from step-00000005.pt"
    )
    assert runs[0].position.run_step <= 7  # of the next step at the latest
    assert_resumed(tmp_path, whole_three_stages)


def test_short_steps_hear_of_a_full_disk_before_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failed = tiny_run(tmp_path), threading.Event()

    def full(*_: object) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "save", full)
    with LastStep(run) as keeper:
        keeper.save({"backbone": 1})
        assert failed.wait(LIMIT_S)
        assert keeper._writing
        assert keeper._writing.exception(LIMIT_S)
        run.position.run_step += 1
        with pytest.raises(OSError, match="No space"):
            keeper.release()
    run.close()


def test_a_disk_that_does_not_answer_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, runs = threading.Event(), list[Run]()
    monkeypatch.setattr(Run, "save", lambda *_: answers.wait(LIMIT_S))
    monkeypatch.setattr(LastStep, "_limit_s", 0.05)
    with pytest.raises(TimeoutError) as excinfo:
        fit_three_stages(tmp_path, runs)
    answers.set()
    assert error_line(excinfo.value, runs) == (
        f"{tmp_path}/checkpoints: cannot be written (it takes more than 0.05 s); choose a folder that can be "
        f"written; the same command with --out {tmp_path} starts anew, as there is no checkpoint yet"
    )
