"""Folders of caches: below the home if it is writable, else one private folder for all processes."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from fastpsl.files import caches
from tests.programs import ENVIRONMENT, ROOT

NAMES = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "RANK")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for temporary files, in an environment without a home."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/proc/nope")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_home_that_can_be_written_is_left_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(temporary / "home"))
    caches.choose_caches()
    monkeypatch.setenv("HOME", "/proc/nope")
    monkeypatch.setenv("XDG_CACHE_HOME", str(temporary / "cache"))
    caches.choose_caches()
    assert os.environ["XDG_CACHE_HOME"] == str(temporary / "cache") and "MPLCONFIGDIR" not in os.environ
    assert sorted(path.name for path in temporary.iterdir()) == ["cache", "home"]
    assert capsys.readouterr().err == ""


def test_a_private_folder_takes_its_place_and_children_inherit_it(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    for name in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR", "RANK"):
        monkeypatch.setenv(name, "")  # as unset
    caches.choose_caches()
    private = temporary / f"fastpsl-{os.getuid()}"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert os.environ["XDG_CACHE_HOME"] == str(private)
    assert os.environ["MPLCONFIGDIR"] == str(private / "matplotlib")
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    stderr = capsys.readouterr().err
    assert (
        stderr.count("\n") == 1 and "/proc/nope/.cache cannot be written" in stderr and str(private) in stderr
    )
    caches.choose_caches()  # as in a child process, which inherits the environment
    assert capsys.readouterr().err == ""
    for variable, home in (("XDG_CACHE_HOME", "/proc/nope"), ("HOME", "nowhere/in/particular")):
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv(variable, home)
        caches.choose_caches()  # as in another rank on this machine
        assert os.environ["XDG_CACHE_HOME"] == str(private) and capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file", "another's"])
def test_code_is_never_run_from_a_folder_of_others(
    kind: str, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    private = temporary / f"fastpsl-{os.getuid()}"
    if kind == "a link":
        (temporary / "theirs").mkdir(mode=0o700)
        private.symlink_to(temporary / "theirs")
    elif kind == "a file":
        private.touch()
    elif kind == "another's":
        uid, lstat = os.getuid(), os.lstat
        private.mkdir(mode=0o700)
        foreign_stat = os.stat_result([*lstat(private)[:4], uid + 1, *lstat(private)[5:]])
        monkeypatch.setattr(os, "lstat", lambda path: foreign_stat if path == private else lstat(path))
    else:
        private.mkdir()
        private.chmod(0o770)
    caches.choose_caches()
    cache = Path(os.environ["XDG_CACHE_HOME"])
    assert cache.parent == temporary and cache.resolve() not in (private, temporary / "theirs")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and str(cache) in capsys.readouterr().err


def test_without_any_folder_one_line_says_what_to_set(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    caches.choose_caches()  # the folder of the code is writable
    monkeypatch.setattr(caches, "__file__", "/proc/nope/caches.py")
    with pytest.raises(
        SystemExit, match="^fastpsl: no folder for compiled code.*set NUMBA_CACHE_DIR and XDG"
    ) as error:
        caches.choose_caches()
    assert len(str(error.value).splitlines()) == 1
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(temporary))
    caches.choose_caches()


def test_compiled_code_is_kept_though_the_tree_and_home_are_read_only(tmp_path: Path) -> None:
    mounted = f"mount --bind {ROOT} {ROOT} && mount -o remount,ro,bind {ROOT}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], check=False, capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")
    code = (
        "import os, fastpsl.pipelines.decoders.libffcv as module, matplotlib.pyplot\n"
        "assert not os.access(module.__file__, os.W_OK)\n"
        "from fastpsl.kernels.permutations import permutation_set\n"
        "print(len(permutation_set(4, (3,)).permutations), os.environ['XDG_CACHE_HOME'])"
    )
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in NAMES}
    environment |= {"HOME": "/proc/nope", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mounted} && cd / && exec "$@"', "sh", sys.executable, "-c", code],
        check=False, capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    private = tmp_path / f"fastpsl-{os.getuid()}"
    assert process.stdout == f"3 {private}\n", process.stderr
    assert list((private / "numba").rglob("*.nbi")) and len(process.stderr.splitlines()) == 1, process.stderr


def test_a_check_that_fails_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one remembered whose note the disk cannot take."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    results = iter([ValueError("damaged"), None, None, ValueError("asked once too often")])

    def check() -> None:
        if (error := next(results)) is not None:
            raise error

    def fail(_: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ValueError, match="damaged"):
        caches.checked_once("abc", "masks", check)
    says = "cannot be kept there .*free some space, or set XDG_CACHE_HOME"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=says):
        patch.setattr(Path, "touch", fail)
        caches.checked_once("abc", "masks", check)
    for _ in range(2):
        caches.checked_once("abc", "masks", check)
