"""The properties that all programs of bench/ share."""

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.program import check_out, counted, progress

ROOT = Path(__file__).resolve().parents[2]
WITH_POLICY = sorted(
    path for path in (ROOT / "bench").glob("*.py") if 'setdefault("OMP_WAIT_POLICY"' in path.read_text()
)
WITH_RESULTS = sorted(
    path.stem
    for path in (ROOT / "bench").glob("*.py")
    if re.search(r"save_result\(\s*\w+\.out, ", path.read_text())
)


@pytest.mark.parametrize("path", WITH_POLICY, ids=lambda path: path.stem)
def test_barriers_are_told_to_sleep_before_torch_comes(path: Path) -> None:
    """libgomp reads the variable once; set later, the result would say PASSIVE while threads spin."""
    for node in ast.parse(path.read_text()).body:
        if "OMP_WAIT_POLICY" in ast.unparse(node):
            break
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        third_party = [name for name in names if name.split(".")[0] not in sys.stdlib_module_names]
        assert not third_party, f"{path.name} imports {third_party} first"


@pytest.mark.slow
def test_the_policy_reaches_libgomp() -> None:
    """libgomp reports it when bench/throughput.py starts."""
    assert ROOT / "bench" / "throughput.py" in WITH_POLICY
    process = subprocess.run(
        [sys.executable, "bench/throughput.py", "--help"], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=240,
        env={"PATH": "/usr/bin:/bin", "OMP_DISPLAY_ENV": "VERBOSE"},
    )  # fmt: skip
    if "OMP_WAIT_POLICY" not in process.stderr:
        pytest.skip("this torch brings another library of threads")
    assert process.returncode == 0 and "OMP_WAIT_POLICY = 'PASSIVE'" in process.stderr


def test_these_programs_write_results() -> None:
    assert WITH_RESULTS == [
        "beton_write", "checkpoint", "detection", "determinism", "jpeg_engines", "kernels", "loaders",
        "order", "remote", "scaling", "sizes", "small", "start", "step", "throughput", "time_to_accuracy",
        "training",
    ]  # fmt: skip


@pytest.mark.parametrize("name", WITH_RESULTS)
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module(f"bench.{name}")
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "result.json"
    monkeypatch.setattr(sys, "argv", [name, "--out", str(out)])

    def measures() -> None:
        raise AssertionError("it has begun")

    for first in ("environment", "join_world", "choose_device"):
        monkeypatch.setattr(program, first, lambda *_, **__: measures(), raising=False)
    with pytest.raises(ValueError, match="cannot be written") as raised:
        program.main()
    assert (
        str(raised.value)
        == f"--out {out}: cannot be written (not a folder); choose a folder that can be written"
    )


def test_where_a_result_may_go(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "folder" / "result.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "folder"]  # no file remains
    with pytest.raises(ValueError, match="it is a folder; give it a file's name"):
        check_out(tmp_path / "new")
    closed = Path("/proc/self/result.json")
    with pytest.raises(ValueError, match=r"--out /proc/self/result.json: cannot be written \(\w.*\); choose"):
        check_out(closed)


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 100.0, 103.0, 112.0, 113.0))
    monkeypatch.setattr("bench.program.time.monotonic", lambda: next(clock))
    with progress() as log:
        for phase in ("first", "second", "third", "fourth"):
            log(phase)
    out, err = capsys.readouterr()
    assert not out
    assert [line.split(", ", 1)[1] for line in err.splitlines()] == ["after 0 s: first", "after 12 s: third"]


def test_one_is_counted_as_one() -> None:
    assert [counted(num, "rank") for num in (0, 1, 2, 1000)] == [
        "0 ranks",
        "1 rank",
        "2 ranks",
        "1,000 ranks",
    ]


def test_sigterm_leaves_no_folder(tmp_path: Path) -> None:
    program = (
        "import tempfile, time\nfrom bench.program import run_program\n"
        "def main():\n    with tempfile.TemporaryDirectory():\n        print('ready', flush=True)\n        "
        "time.sleep(1000)\n"
        "run_program(main)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 143
    assert not list(tmp_path.iterdir())
