"""A thread writes checkpoints while the training goes on: what they hold, and what may happen meanwhile."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typing_extensions import override

from fastpsl.engine import last_step
from fastpsl.engine.last_step import LastStep, Snapshot
from fastpsl.engine.run import Run
from fastpsl.engine.trainer import pretrain
from fastpsl.files import atomic
from fastpsl.models.checkpoint import CheckpointManager
from fastpsl.scripts.recipe_process import error_line
from tests.engine.test_last_step import Hanging
from tests.engine.test_last_step import fit as fit_hanging
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import tiny_run
from tests.programs import digests, newest_checkpoint, newest_step
from tests.recipes.in_process import starter
from tests.slow import slow
from tests.warm import CONTEXT

LIMIT_S = 120.0


def fit(out: Path, runs: list[Run] | None = None) -> bool:
    """Train three stages of four steps, with a checkpoint of each step, from where the run in `out` ended."""
    run = tiny_run(out, max_steps_per_stage=4, keep_checkpoints=99, val=None, checkpoint_steps=1)
    (runs if runs is not None else []).append(run)
    try:
        return pretrain(tiny_experiment(), run)
    finally:
        run.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert fit(out)
    return out


def resumed_as_whole(out: Path, whole: Path) -> bool:
    """Go on from the newest checkpoint and compare the end, bit for bit."""
    assert fit(out)
    assert (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    return digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole))


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
    whole: Path, tmp_path: Path, late_writes: tuple[dict[int, Any], dict[int, Any]]
) -> None:
    saved, written = late_writes
    run = tiny_run(tmp_path, max_steps_per_stage=4, keep_checkpoints=99, val=None, checkpoint_steps=3)
    assert pretrain(tiny_experiment(), run)
    run.close()
    assert list(written) == [3, 4, 6, 8, 9, 12]
    assert all(written[step] == saved[step] for step in written)
    assert written[12].items() <= digests(newest_checkpoint(tmp_path)).items()
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole))


RECIPES: dict[str, tuple[object, ...]] = {
    "mocov2_r50": ("--size-px", 32, "--batch-size", 8, "--queue-size", 24, "--key-group", 2),
    "uic_alexnet": ("--epochs", 2),
    "sslpp_iic": (),
}


@pytest.mark.parametrize("name", [*map(slow, RECIPES)])
def test_no_later_step_changes_a_recipes_queue_or_labels(
    name: str,
    tmp_path: Path,
    late_writes: tuple[dict[int, Any], dict[int, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved, written = late_writes
    few = ("--workers", 1, "--no-tensorboard", "--checkpoint-steps", 2, "--max-steps-per-stage", 5)
    plan = ("--plan", "end_to_end", "--backbone", "resnet18") if name == "mocov2_r50" else ()
    outcome = starter(name, monkeypatch, capsys)(*RECIPES[name], *few, *plan, "--out", tmp_path)
    assert outcome.code == 0, outcome
    assert list(written)[:3] == [2, 4, 5] and all(written[step] == saved[step] for step in written)


def die_at(out: Path, call: str, is_done: bool, num_threads: int) -> None:
    """Train, and kill this process before or after a call in the write of step 6."""
    real = getattr(os, call)

    def called(*arguments: Any) -> None:
        # `fsync` has the file's number, `replace` its paths.
        name = os.readlink(f"/proc/self/fd/{arguments[0]}") if call == "fsync" else str(arguments[0])
        fatal = "step-00000006.pt" in name
        assert not fatal or threading.current_thread().name == "fastpsl-checkpoint"
        if fatal and not is_done:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(num_threads)
    setattr(atomic.os, call, called)
    fit(out)


@pytest.mark.parametrize(
    ("call", "is_done", "newest"), [("replace", False, 5), slow("fsync", False, 5), slow("replace", True, 6)]
)
def test_killed_within_a_write_the_checkpoint_before_serves(
    whole: Path, tmp_path: Path, call: str, is_done: bool, newest: int
) -> None:
    process = CONTEXT.Process(target=die_at, args=(tmp_path, call, is_done, torch.get_num_threads()))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == -signal.SIGKILL
    assert newest_step(tmp_path) == newest
    assert resumed_as_whole(tmp_path, whole)


def test_a_signal_within_a_write_is_followed_by_both_checkpoints(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        assert not fit(tmp_path, runs)
    last = newest_step(tmp_path)
    assert last >= 6 and runs[0].position.run_step == last
    assert resumed_as_whole(tmp_path, whole)


def test_a_process_that_leaves_a_long_step_waits_for_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step hangs. The second one's checkpoint is being written when the process is to leave."""
    leaves, there, hangs, write = threading.Event(), list[int](), threading.Event(), Run.save
    leave = LastStep._leave

    class Left(BaseException):
        pass

    class Long(Hanging):
        @override
        def loss(self, *arguments: Any) -> Any:
            if arguments[1].training and len(self.trained) + 1 == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                assert hangs.wait(LIMIT_S)
                raise Left
            return super().loss(*arguments)

    def leaving(keeper: LastStep) -> None:
        leaves.set()
        leave(keeper)

    def exit_(code: int) -> None:
        there.append(newest_step(tmp_path))
        hangs.set()

    def slow_write(run: Run, step: int, state: dict[str, Any]) -> None:
        if step == 2:
            assert leaves.wait(LIMIT_S)
        write(run, step, state)

    monkeypatch.setattr(last_step, "LEAVE_AFTER_S", 0.01)
    monkeypatch.setattr(last_step.os, "_exit", exit_)
    monkeypatch.setattr(LastStep, "_leave", leaving)
    monkeypatch.setattr(Run, "save", slow_write)
    with pytest.raises(Left):
        fit_hanging(tmp_path, Long(), checkpoint_steps=2)
    assert there == [2]


def test_a_disk_that_is_full_ends_the_run_with_a_line(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, runs = CheckpointManager.save, list[Run]()

    def full(checkpoints: CheckpointManager, step: int, state: dict[str, Any]) -> Path:
        if step >= 6:
            raise OSError(28, "No space left on device", str(checkpoints.folder / "step-00000006.pt"))
        return write(checkpoints, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointManager, "save", full)
        with pytest.raises(OSError) as excinfo:
            fit(tmp_path, runs)
    assert error_line(excinfo.value, runs) == (
        f"{tmp_path}/checkpoints/step-00000006.pt: cannot be written (No space left on device); free some "
        f"space or choose another disk; the same command with --out {tmp_path} goes on from step-00000005.pt"
    )
    assert runs[0].position.run_step <= 7  # of the next step at the latest
    assert resumed_as_whole(tmp_path, whole)


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
        keeper._writing.join(LIMIT_S)
        run.position.run_step += 1
        with pytest.raises(OSError, match="No space"):
            keeper.release()
    run.close()


def test_a_disk_that_does_not_answer_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, runs = threading.Event(), list[Run]()
    monkeypatch.setattr(Run, "save", lambda *_: answers.wait(LIMIT_S))
    monkeypatch.setattr(LastStep, "_limit_s", 0.05)
    with pytest.raises(TimeoutError) as excinfo:
        fit(tmp_path, runs)
    answers.set()
    assert error_line(excinfo.value, runs) == (
        f"{tmp_path}/checkpoints: cannot be written (it takes more than 0.05 s); choose a folder that can be "
        f"written; the same command with --out {tmp_path} starts anew, as there is no checkpoint yet"
    )
