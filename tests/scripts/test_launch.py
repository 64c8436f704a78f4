"""The processes of a recipe on this machine: their output, their places, and their signals."""

import errno
import os
import warnings
from pathlib import Path

import pytest

from fastpsl.console.terminal import EXIT_USER_ERROR
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.resume import choose_folder, lock_folder
from fastpsl.scripts import local_ranks
from fastpsl.scripts.launch import launch, print_warnings_once
from tests.engine.test_gpu_failures import code_of
from tests.engine.tiny import tiny_recipe
from tests.programs import interpreted


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    out = tmp_path / "of a day" / "seed 0"
    for _ in range(2):  # a run that is there already goes on
        assert choose_folder("tiny", PretrainOptions(out=out)) == out and out.is_dir()


@pytest.mark.parametrize("rank", [0, 1])
def test_warnings_are_one_line_said_once_by_rank_0(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        print_warnings_once("jigsaw", rank)
        for _ in range(2):
            warnings.warn("decoding by pillow,\nwhich is slower", stacklevel=1)
    expected = "jigsaw: warning: decoding by pillow, which is slower\n" if rank == 0 else ""
    assert capsys.readouterr().err == expected


def test_a_recipes_warnings_have_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    def make_options() -> PretrainOptions:
        warnings.warn("few images", stacklevel=1)
        raise ValueError("--data x: nothing is there")

    with warnings.catch_warnings(), pytest.raises(SystemExit, match="2"):
        warnings.simplefilter("always")
        launch(tiny_recipe(make_options, None), [])
    assert capsys.readouterr().err == "tiny: warning: few images\ntiny: --data x: nothing is there\n"


@pytest.mark.parametrize("named", [False, True])
def test_a_full_disk_is_named_with_what_to_do_and_where_it_goes_on(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoints" / "step-00000003.pt" if named else tmp_path
    error = OSError(errno.ENOSPC, "No space left on device", *([str(path)] if named else []))
    assert code_of(tmp_path, error, monkeypatch, checkpoint_steps=1) == EXIT_USER_ERROR
    output = capsys.readouterr().err
    assert "Traceback" not in output and output.splitlines()[-1] == (
        f"tiny: {path}: cannot be written (No space left on device); free some space or choose another disk; "
        f"the same command with --out {tmp_path} goes on from step-00000002.pt"
    )


def test_a_file_that_cannot_be_read_is_no_matter_of_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/data/train.beton")
    assert code_of(tmp_path, error, monkeypatch) == EXIT_USER_ERROR
    assert capsys.readouterr().err.endswith("tiny: [Errno 13] Permission denied: '/data/train.beton'\n")


def test_a_folder_that_cannot_be_written_is_named(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "somewhere")

    words = r"cannot be written \(Read-only file system\); choose a folder that can be written"
    out = cwd / "out"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"^{out}: {words}"):
        patch.setattr(os, "mkdir", read_only)
        choose_folder("tiny", PretrainOptions(out=out))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"^{cwd}/runs: {words}"):
        patch.setattr(os, "mkdir", read_only)
        choose_folder("tiny", PretrainOptions())
    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(ValueError, match=f"^{out}: {words}"):
        lock_folder(out)


@pytest.mark.parametrize(("num_gpus", "most"), [(0, 3), (2, 2)])
def test_each_process_has_a_gpu_or_a_core(
    num_gpus: int, most: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_ranks.os, "sched_getaffinity", lambda _: {0, 1, 2})
    local_ranks._require_places(most, num_gpus, "fastpsl train simclr")
    told = "fastpsl train simclr: no GPU that torch can use is here; 3 processes run on the CPU\n"
    assert capsys.readouterr().err == ("" if num_gpus else told)
    with pytest.raises(ValueError, match=f"--gpus {most + 1}: .*; give {most} or less"):
        local_ranks._require_places(most + 1, num_gpus, "fastpsl")


# A process of its own: a test's process has other children, and may have been told to ignore the signal.
FORWARDS = """
import os, signal, subprocess
from pathlib import Path
from fastpsl.scripts import local_ranks

come = []
signal.signal(signal.SIGTERM, lambda number, _: come.append(number))
with local_ranks._forwarding():
    os.kill(os.getpid(), signal.SIGTERM)
assert come == [signal.SIGTERM]
glob, of_an_ended_thread = Path.glob, Path("/proc/self/task/0/children")
Path.glob = lambda path, pattern: [of_an_ended_thread, *glob(path, pattern)]
signal.signal(signal.SIGTERM, signal.SIG_DFL)
children = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
try:
    with local_ranks._forwarding():
        os.kill(os.getpid(), signal.SIGTERM)
        assert [child.wait(60) for child in children] == 2 * [-signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)  # once more, which nobody is left to get
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
finally:
    for child in children:
        child.kill()
"""


def test_every_process_gets_a_signal_of_the_first() -> None:
    done = interpreted(FORWARDS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("of_rank_1", "code", "told"),
    [
        ("pass", 0, ""),
        ("sys.exit(75)", 75, ""),
        ("os.kill(os.getpid(), 9)", 1, "fastpsl train x: a process was killed by SIGKILL\n"),
    ],
)
def test_the_launcher_ends_as_its_processes_do(
    of_rank_1: str, code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in (("OMP_NUM_THREADS", "1"), ("FASTPSL_COMMAND", "")):  # and as before afterwards
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local_ranks, "_require_places", lambda *_: None)
    asserted, script = "assert os.environ['FASTPSL_COMMAND'] == 'fastpsl train x'", tmp_path / "script.py"
    script.write_text(f"import os, sys\n{asserted}\nif os.environ['RANK'] == '1': {of_rank_1}\n")
    assert local_ranks.run_ranks([str(script)], 2, "fastpsl train x") == code
    assert capsys.readouterr().err == told
