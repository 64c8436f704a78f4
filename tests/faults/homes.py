"""Users without a home, a cache or a temporary folder; another user's id; a read-only installation."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.faults.disk import needs_mounts, own_mounts, write_images
from tests.faults.forks import ROOT, start
from tests.faults.small_runs import verdict
from tests.faults.trials import NOT_HERE, Outcome, Trial, fresh_recipe, recipe

_STRANGER = 12345
_NO_HOME = {"HOME": None, "XDG_CACHE_HOME": None}


def no_home(folder: Path) -> Outcome:
    return fresh_recipe(folder, environment=_NO_HOME)


def a_home_that_cannot_be_written(folder: Path) -> Outcome:
    return fresh_recipe(folder, environment={"HOME": "/proc/nope", "XDG_CACHE_HOME": None})


def no_home_and_the_sample_to_be_drawn(folder: Path) -> Outcome:
    """Train on the embedded sample, which needs a cache."""
    command = [ROOT / "recipes" / "jigsaw_r50.py", "--out", folder / "run", "--max-steps-per-stage", 1]
    end = start(command, folder / "log", {"HOME": "/proc/nope", "XDG_CACHE_HOME": None}).wait(150)
    return verdict(end, "jigsaw_r50", words=("XDG_CACHE_HOME",))


def no_temporary_folder(folder: Path) -> Outcome:
    return fresh_recipe(folder, environment={"TMPDIR": str(folder / "nowhere")})


def working_folder_deleted(folder: Path) -> Outcome:
    return recipe(folder, prepare=partial(_stand_nowhere, folder / "gone"))


def _stand_nowhere(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def another_user(folder: Path) -> Outcome:
    """Train as a user without a name, a home, or write access outside of the run's folder.

    The user may read everything, because Python may lie in root's home.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return NOT_HERE, "needs root, and setpriv of util-linux"
    for path in (folder, *folder.parents):  # because only its owner can enter a temporary folder
        if (
            path.stat().st_uid == os.geteuid()
            and path != Path(path.anchor)
            and not path.stat().st_mode & 0o001
        ):
            path.chmod(path.stat().st_mode | 0o011)
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", _STRANGER, _STRANGER)
    (folder / "log").touch()
    user = ("setpriv", f"--reuid={_STRANGER}", f"--regid={_STRANGER}", "--clear-groups")
    reads = (
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    )
    data = ("--data", write_images(folder / "pictures"), "--out", folder / "theirs" / "run")
    return fresh_recipe(
        folder,
        *data,
        environment={"HOME": "/", "XDG_CACHE_HOME": None, "TMPDIR": None},
        before=(*user, *reads),
    )


def a_read_only_installation_without_a_home(folder: Path) -> Outcome:
    """Train as in a container, where the tree, Python's folders and the home are read-only."""
    return fresh_recipe(
        folder,
        environment={"HOME": "/proc/nope", "XDG_CACHE_HOME": None, "NUMBA_CACHE_DIR": None},
        preexec_fn=partial(_make_read_only, ROOT, Path(sys.prefix)),
    )


def a_read_only_installation_and_temporary_folder(folder: Path) -> Outcome:
    """Train where nothing lasts between processes, not even compiled code.

    The import fails, before the recipe's name is known.
    """
    return fresh_recipe(
        folder,
        words=("NUMBA_CACHE_DIR",),
        speaker="fastpsl",
        refusals=(1,),
        environment={
            "HOME": "/proc/nope",
            "XDG_CACHE_HOME": None,
            "NUMBA_CACHE_DIR": None,
            "TMPDIR": "/proc/nope",
        },
        preexec_fn=partial(
            _make_read_only, ROOT, Path(sys.prefix), Path("/var/tmp"), Path("/tmp"), but=folder
        ),
    )


def _make_read_only(*folders: Path, but: Path | None = None) -> None:
    """Make folders read-only, except `but`, in mounts of this process, which then becomes the interpreter."""
    assert own_mounts()
    if but:
        subprocess.run(["mount", "--bind", str(but), str(but)], check=True)
    for folder in folders:
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        if but and but.is_relative_to(folder):
            subprocess.run(["mount", "--bind", f"/proc/{os.getppid()}/root{but}", str(but)], check=True)


TRIALS: tuple[Trial, ...] = (
    no_home, a_home_that_cannot_be_written, no_home_and_the_sample_to_be_drawn, no_temporary_folder,
    working_folder_deleted, another_user,
    needs_mounts(a_read_only_installation_without_a_home),
    needs_mounts(a_read_only_installation_and_temporary_folder),
)  # fmt: skip
