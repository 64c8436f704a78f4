"""Control characters are escaped, a lost reader ends nothing, and a low `ulimit -v` is told."""

import errno
import fcntl
import io
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typing_extensions import override

from fastpsl import cli
from fastpsl.console.screen import Screen
from fastpsl.console.terminal import (
    EXIT_USER_ERROR,
    escaped,
    own_rank,
    plain,
    require_address_space,
    safe_output,
    same_place,
)
from fastpsl.engine import step_modes
from fastpsl.engine.distributed import join_world, leave_world
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.run import Run
from fastpsl.files.workers import num_local_ranks
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.scripts.launch import launch
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import tiny_recipe
from tests.pipelines.memory import own_memory
from tests.pipelines.photos import jpeg, photo
from tests.programs import ENVIRONMENT, ROOT


def python(kib: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter with a limit on its address space."""
    command = ("bash", "-c", f'ulimit -v {kib}; exec "$@"', "-", sys.executable, *words)
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600
    )


def test_a_variable_that_is_empty_is_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CC", "CXX"):
        monkeypatch.setenv(name, "")
    world = join_world("cpu", 60)
    leave_world()
    assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)
    assert own_rank() == 0 and num_local_ranks() == 1
    assert (step_modes._compiler("CC", "cc"), step_modes._compiler("CXX", "g++")) == ("cc", "g++")
    assert "CC" not in os.environ and "CXX" not in os.environ  # Triton and torch would call ""


def test_what_steers_is_shown_and_the_rest_stays() -> None:
    shown = r"\x1b]0;pwn\x07 \x9b2J \r\x08 \u202egnp.exe \u2066 \udcff"
    assert escaped("\x1b]0;pwn\x07 \x9b2J \r\x08 \u202egnp.exe \u2066 \udcff") == shown
    text = "Käse, 中文, עברית, 👩\u200d🚀, \\x1b, a\tb\n"
    assert escaped(text) == text


def test_print_escapes_and_what_draws_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    lost: list[Any] = []
    with safe_output(lambda *told: lost.append(told)):
        print("a\x1b[2Jb\udcff")
        print("c\x1b[2Jd", file=sys.stderr)
        plain(sys.stderr).write("\x1b[1mbold")
        with safe_output(lambda *told: None):  # nested calls do not escape twice
            print("\x07")
    assert capsys.readouterr() == ("a\\x1b[2Jb\\udcff\n\\x07\n", "c\\x1b[2Jd\n\x1b[1mbold") and not lost
    stream = io.StringIO()
    Screen(Console(file=stream, soft_wrap=True)).log("decoder \x1b]0;x\x07")
    assert stream.getvalue() == "decoder \\x1b]0;x\\x07\n"


def test_all_is_written_when_the_output_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    with path.open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with safe_output(lambda *told: None):
            print("the last line")
        assert path.read_text() == "the last line\n"


def test_two_streams_lead_to_one_place_or_not(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with open(path, "w") as one, open(path, "a") as other, open(tmp_path / "other", "w") as third:
        assert same_place(one, other) and not same_place(one, third)
        assert not same_place(one, io.StringIO())
        other.close()
        assert not same_place(one, other)


class Dead(io.StringIO):
    """A pipe that loses its reader after `lives` writes."""

    def __init__(self, lives: int, number: int = errno.EPIPE):
        super().__init__()
        self.lives, self.number = lives, number

    @override
    def write(self, text: str) -> int:
        self.lives -= 1
        if self.lives < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


def test_a_terminal_that_does_not_wait_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may leave the terminal non-blocking, like this pipe of 4 kB with a late reader."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    lost: list[Any] = []
    line = "x" * 99
    with open(reading, "rb") as read, open(writing, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        got = [b""]
        reader = threading.Timer(0.2, lambda: got.append(read.read(100 * 100)))
        reader.start()
        with safe_output(lambda *told: lost.append(told)):
            for _ in range(100):
                print(line)
        reader.join(60)
    assert not lost and got[-1] == f"{line}\n".encode() * 100


def trained(out: Path, finish: Callable[[Run], Sequence[str]] | None = None, **options: Any) -> int:
    def parse() -> PretrainOptions:
        values: dict[str, Any] = {"batch_size": 32, "epochs": (1, 1, 1), "max_steps_per_stage": 1}
        values |= {"workers": 1, "device": "cpu", "tensorboard": False, **options}
        paths = sample_paths()
        return PretrainOptions(data=str(paths.train_32), val=str(paths.test_32), out=out, **values)

    def build(options: PretrainOptions) -> Experiment:
        experiment = tiny_experiment()
        return replace(experiment, finish=finish) if finish else experiment

    with pytest.raises(SystemExit) as excinfo:
        launch(tiny_recipe(parse, build))
    assert isinstance(excinfo.value.code, int)
    return excinfo.value.code


@pytest.mark.parametrize("both", [False, True])
def test_a_finished_run_stays_finished_when_its_readers_have_gone(
    both: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Dead(0))
    if both:
        monkeypatch.setattr(sys, "stderr", Dead(2))
    assert trained(tmp_path) == 0
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "error.txt").exists()
    output = capsys.readouterr().err
    assert "Traceback" not in output
    if not both:
        assert output.count("tiny: stdout cannot be written (Broken pipe); the run goes on without it") == 1


@pytest.mark.parametrize("state", ["finished", "preempted"])
def test_an_error_after_the_end_does_not_change_how_it_ended(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(run: Run) -> None:
        run.write_status(state, "")
        raise OSError("a file that cannot be closed")

    monkeypatch.setattr(Run, "close", close)
    assert trained(tmp_path) == EXIT_USER_ERROR
    assert json.loads((tmp_path / "status.json").read_text())["state"] == state


def test_what_fails_in_a_recipes_own_end_has_not_finished(tmp_path: Path) -> None:
    def finish(run: Run) -> list[str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert trained(tmp_path, finish) == EXIT_USER_ERROR
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_a_command_whose_stdout_is_full_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beton = str(sample_paths().test_32)
    monkeypatch.setattr(sys, "stdout", Dead(0, errno.ENOSPC))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["data", "verify", beton])
    assert (
        capsys.readouterr().err == "fastpsl data verify: stdout cannot be written (No space left on device)\n"
    )
    monkeypatch.setattr(sys, "stdout", Dead(0))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["data", "verify", beton])
    monkeypatch.setattr(sys, "stdout", None)
    cli.main(["data", "verify", beton])
    assert capsys.readouterr().err == ""


def test_names_of_classes_reach_the_terminal_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos" / "\x1b]0;pwn\x07c"
    folder.mkdir(parents=True)
    (folder / "a\x1b[2J.jpg").write_bytes(jpeg(photo(1, 40, 50)))
    (folder / "b\x1b[2J.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    out = tmp_path / "out\x9b.beton"
    cli.main(["data", "write", str(tmp_path / "photos"), str(out), "--max-bad", "100%"])
    cli.main(["data", "info", str(out)])
    cli.main(["data", "verify", str(out)])
    output = "".join(capsys.readouterr())
    assert (
        r"\x1b]0;pwn\x07c" in output and r"out\x9b.beton" in output and not set(output) & set("\x1b\x07\x9b")
    )


def test_descriptors_closed_from_the_start_and_a_full_device(tmp_path: Path) -> None:
    """`fastpsl >&-`, `> /dev/full` and `2>&-` share one child process, because a start takes a second."""
    child = f"""
import os, sys
from fastpsl.cli import main
for stdout, stderr in ((None, 2), ("/dev/full", 2), (1, None)):
    if os.fork() == 0:
        for number, to in ((1, stdout), (2, stderr)):
            if to is None:
                os.close(number)
                setattr(sys, ("stdout", "stderr")[number - 1], None)
            elif isinstance(to, str):
                os.dup2(os.open(to, os.O_WRONLY), number)
        main(["data", "verify", {str(sample_paths().test_32)!r}])
        os._exit(0 if os.stat(1) and os.stat(2) else 9)
    print("code", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
    process = python("unlimited", "-c", child)
    assert process.stdout.split("\n")[:2] == ["code 0", "code 2"] and process.stdout.endswith("code 0\n")
    assert process.stderr == "fastpsl data verify: stdout cannot be written (No space left on device)\n"


@pytest.mark.parametrize(("left", "told"), [(None, None), (2 << 30, None), (500 << 20, "0.5"), (-1, "0.0")])
def test_a_command_starts_where_enough_is_left(
    left: int | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = resource.RLIM_INFINITY if left is None else own_memory("VmSize") + left
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    with nullcontext() if told is None else pytest.raises(ValueError, match=f"{told} GB are left"):
        require_address_space()


def test_a_write_is_refused_at_once(tmp_path: Path) -> None:
    """Without the check it would hang: OpenBLAS, which numba loads in a worker's thread, retries forever."""
    start = "import sys; from fastpsl.cli import main; main(sys.argv[1:])"
    process = python("650000", "-c", start, "data", "write", str(tmp_path), str(tmp_path / "x.beton"))
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("fastpsl: memory is limited to 0.7 GB of addresses")
    assert "`ulimit -v unlimited`" in process.stderr


def test_what_torch_says_follows_what_can_be_done() -> None:
    process = python("2000000", "-c", "import fastpsl, torch")
    assert process.returncode == 1 and "ulimit -v unlimited" in process.stderr.splitlines()[0]
    process = python("2000000", "-c", "import sys; sys.modules['torch'] = sys; import fastpsl")
    assert process.returncode == 0 and not process.stderr
    process = python("unlimited", "-c", "import fastpsl")
    assert process.returncode == 0 and not process.stderr
