"""Odd surroundings: disks, limits, homes, names, and changing data.

Each trial must end well, or in one line with the remedy, within its time limit.
"""

import contextlib
import ctypes
import functools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastpsl.pipelines.beton.sidecar import sidecar_path
from tests.faults import runs
from tests.faults.report import Finding, Outcome
from tests.faults.runs import beton, fastpsl, fresh, long_run, recipe, write_images
from tests.pipelines.memory import own_memory

Trial = Callable[[Path], Outcome]  # called with an empty folder of its own
_CLONE_NEWNS = 0x00020000
_STRANGER = 12345
_TWO_STEPS = ("--max-steps-per-stage", 2)


def surroundings(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the trials `seed` to `seed + count - 1`, modulo their count."""
    may_mount()
    for number in range(seed, seed + count):
        name, here = list(TRIALS)[number % len(TRIALS)], folder / str(number)
        here.mkdir(parents=True)
        try:
            outcome = TRIALS[name](here)
        except (OSError, AssertionError, ValueError) as error:  # so that the other trials go on
            outcome = "unclear", f"the trial itself: {type(error).__name__}: {error}"
        yield Finding(name, *outcome, number)


def _trains(*words: str, data: bool = False, **settings: Any) -> Trial:
    """Return a trial that trains shortly, with `data` on a folder of images; it may end with `words`."""

    def trial(folder: Path) -> Outcome:
        images = ("--data", write_images(folder / "pictures")) if data else ()
        return recipe(folder, *images, words=words, **settings)

    return trial


def _without_litter(outcome: Outcome, folder: Path) -> Outcome:
    """Return `outcome`, unless temporary files remain."""
    files = runs.litter(folder)
    return ("differs", files) if files else outcome


# Disks, as file systems in memory that only this process sees.


def _own_mounts() -> bool:
    """Give this process and its future children their own mounts; return False without the right to."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True).returncode == 0


# Called once before the server of forks starts, so that the forks see the mounts.
may_mount = functools.cache(_own_mounts)


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _needs_mounts(trial: Trial) -> Trial:
    why = runs.NOT_HERE, "needs the right to mount: run it as root"
    return lambda folder: trial(folder) if may_mount() else why


def _on_disk(
    size: str,
    trial: Callable[[Path, Path], Outcome],
    fill: Callable[[Path], object] = lambda disk: None,
    read_only: bool = False,
) -> Trial:
    """Return a trial that is called with its folder and a disk of so many bytes ("20m") at folder/disk."""

    def with_disk(folder: Path) -> Outcome:
        disk = folder / "disk"
        disk.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}", "faults", disk)
        try:
            fill(disk)
            if read_only:
                _mount("-o", "remount,ro", disk)
            return trial(folder, disk)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)

    return _needs_mounts(with_disk)


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "full", "wb") as file:
        while True:
            os.write(file.fileno(), bytes(4096))


def _full_disk(folder: Path, disk: Path) -> Outcome:
    """Train on a small disk, where a checkpoint does not fit; then enlarge it and go on.

    Files from before must stay whole, and the second run must continue them.
    """
    outcome = recipe(folder, out=disk / "run", words=("free some space",))
    if outcome[0] != "refused" or not runs.checkpoints(disk / "run"):
        return _without_litter(outcome, disk)
    _mount("-o", "remount,size=100m", disk)
    second = recipe(folder, out=disk / "run")
    if second[0] == "goes on":
        recipe(folder, out=folder / "whole")
        second = runs.ended_as(disk / "run", folder / "whole", second, "a whole run, after it was emptied")
    return outcome if second[0] == "goes on" else second


def _write(folder: Path, place: Path, **settings: Any) -> Outcome:
    """Write a beton into `place`, which must leave nothing behind if it is refused."""
    outcome = fastpsl(
        folder, "data", "write", write_images(folder / "pictures"), place / "x.beton", **settings
    )
    names = [path.name for path in place.iterdir() if path.name not in ("pictures", "log", "log.out")]
    return ("differs", f"left behind: {names}") if outcome[0] == "refused" and names else outcome


def _shrink_shared_memory() -> None:
    assert _own_mounts()
    _mount("-t", "tmpfs", "-o", "size=64k", "faults", "/dev/shm")


def _full(name: str, data: bool = False) -> Trial:
    """Return a trial where the place that a variable names is full; only a folder of images needs a cache."""
    words = "No space left", name
    return _on_disk(
        "64k",
        lambda folder, disk: _trains(*words, data=data, environment={name: str(disk)})(folder),
        _fill,
    )


def _to_disk(folder: Path, disk: Path) -> Outcome:
    return recipe(folder, out=disk / "run", words=("cannot be written", "choose a folder"))


_read_only = partial(_on_disk, "100m", read_only=True)
_DISKS: dict[str, Trial] = {
    **{f"disk of {size}": _on_disk(size, _full_disk) for size in ("1m", "7m", "12m", "18m")},
    "full disk for a beton": _on_disk("200k", partial(_write, words=("No space left",))),
    "full temporary folder": _full("TMPDIR"),
    "full cache": _full("XDG_CACHE_HOME", data=True),
    "read only run folder": _read_only(_to_disk),
    "read only run that exists": _read_only(
        _to_disk, lambda disk: recipe(disk.parent, out=disk / "run")
    ),
    "read only beton": _read_only(partial(_write, words=("Read-only file system",))),
    "data on a read only disk": _read_only(
        lambda folder, disk: recipe(folder, "--data", disk / "pictures"),
        lambda disk: write_images(disk / "pictures"),
    ),
    "tiny shared memory": _needs_mounts(_trains("/dev/shm", prepare=_shrink_shared_memory)),
}  # fmt: skip

# Limits of the system: descriptors, size of files, address space.


def _set_limit(name: str, value: int) -> None:
    if name == "AS":  # in addition to the gigabytes of addresses that torch and numba use
        value += own_memory("VmSize")
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _limited(work: str, name: str, value: int, words: tuple[str, ...]) -> Trial:
    settings: dict[str, Any] = {"words": words, "prepare": partial(_set_limit, name, value)}
    if (work, name) == ("write", "AS"):  # told before the command's name is read
        settings["speaker"] = "fastpsl"
    work_in = recipe if work == "train" else lambda folder, **more: _write(folder, folder, **more)
    return lambda folder: work_in(folder, **settings)


_FILES, _LARGE, _MEMORY = ("Too many open files", "ulimit -n"), ("File too large", "ulimit -f"), ("memory",)
_KINDS = {"NOFILE": "descriptors", "FSIZE": "file size", "AS": "address space"}
_LIMITS: dict[str, Trial] = {
    f"{work} with {_KINDS[name]} {value}": _limited(work, name, value, words)
    for work, name, value, words in (
        ("train", "NOFILE", 8, _FILES), ("train", "NOFILE", 16, _FILES), ("train", "NOFILE", 64, ()),
        ("write", "NOFILE", 8, _FILES), ("train", "FSIZE", 1 << 20, _LARGE),
        ("train", "FSIZE", 4 << 20, _LARGE),
        ("write", "FSIZE", 1 << 20, _LARGE), ("train", "AS", 64 << 20, _MEMORY),
        ("train", "AS", 256 << 20, _MEMORY), ("train", "AS", 1 << 30, _MEMORY),
        ("write", "AS", 64 << 20, _MEMORY),
    )
}  # fmt: skip

# Data that change during training.


def _changed(change: Callable[[Path], object], *words: str, images: bool = False) -> Trial:
    """Return a trial that changes data during training.

    The run must go on, or end in a line with the data's name and `words`.
    """

    def trial(folder: Path) -> Outcome:
        data = write_images(folder / "pictures", runs.NUM_SAMPLES) if images else beton(folder / "x.beton")
        process = long_run(folder / "run", folder / "log", "--data", data, "--timeout-s", 30)
        change(data)
        # More steps than an epoch has, and than the batches that are ready.
        steps = runs.NUM_SAMPLES // 4 + 10
        return runs.stop_after(process, folder / "run", steps, words and (data.name, *words))

    return trial


def _delete(data: Path) -> None:
    data.unlink()
    sidecar_path(data).unlink()


def _other(data: Path) -> Path:
    return beton(data.parent / "other.beton", seed=100)


def _overwrite(data: Path, content: Callable[[Path], bytes]) -> None:
    with open(data, "r+b") as file:
        file.write(content(data))


def _overwritten_by_another(folder: Path) -> Outcome:
    """Overwrite the beton by a sound one with other images, as cp and rsync --inplace do."""
    change = partial(_overwrite, content=lambda data: _other(data).read_bytes())
    outcome = _changed(change, "overwritten")(folder)
    return ("silent", "trained on to its end on other pictures") if outcome[0] == "goes on" else outcome


_GONE = "class 1/17.jpg"
_CHANGED_DATA: dict[str, Trial] = {
    "deleted": _changed(_delete),  # the open file stays readable
    # The open file stays, or the message names the new one.
    "replaced by a renamed one": _changed(lambda data: os.replace(_other(data), data), "changed"),
    "truncated in its pictures": _changed(
        lambda data: os.truncate(data, data.stat().st_size * 2 // 3), "truncated"
    ),
    "truncated to nothing": _changed(lambda data: os.truncate(data, 0), "truncated"),
    "overwritten by zeros": _changed(
        partial(_overwrite, content=lambda data: bytes(data.stat().st_size)), "overwritten"
    ),
    "overwritten by another beton": _overwritten_by_another,
    "folder deleted": _changed(shutil.rmtree, "No such file", images=True),
    "a picture of a folder deleted": _changed(lambda data: os.unlink(data / _GONE), _GONE, images=True),
}

# Users without a home, a cache or a temporary folder; another user's id.


def _another_user(folder: Path) -> Outcome:
    """Train as a user without a name, a home, or write access outside of the run's folder.

    The user may read everything, because Python may lie in root's home.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return runs.NOT_HERE, "needs root, and setpriv of util-linux"
    for path in (folder, *folder.parents[:-1]):  # because only its owner can enter a temporary folder
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", _STRANGER, _STRANGER)
    (folder / "log").touch()
    user = ("setpriv", f"--reuid={_STRANGER}", f"--regid={_STRANGER}", "--clear-groups")
    reads = [f"--{which}=-all,+dac_read_search" for which in ("inh-caps", "ambient-caps", "bounding-set")]
    environment = {"HOME": "/", "XDG_CACHE_HOME": None, "TMPDIR": None}
    out = folder / "theirs" / "run"
    return _trains(data=True, out=out, how=fresh, environment=environment, before=(*user, *reads))(folder)


def _in_home(**environment: str | None) -> Trial:
    return _trains(how=fresh, environment=environment)


_NOWHERE: dict[str, str | None] = {"HOME": "/proc/nope", "XDG_CACHE_HOME": None}
_HOMES: dict[str, Trial] = {
    "no home": _in_home(HOME=None, XDG_CACHE_HOME=None),
    "a home that cannot be written": _in_home(**_NOWHERE),
    "no temporary folder": lambda folder: _in_home(TMPDIR=str(folder / "nowhere"))(folder),
    "another user": _another_user,
}

# Odd names.

_NAMES = (
    "ünï 中文 🐦", "stars *?[x] {a,b}", "a newline\nin it", "-a dash", "quotes '\" $HOME `x` \\",
    "%s {0} %(a)d",
)  # fmt: skip


def _everywhere(name: str, folder: Path) -> Outcome:
    """Use a name in the names of a source, a beton and a run."""
    here = folder / name
    here.mkdir()
    source, data = write_images(here / f"source {name}"), here / f"{name}.beton"
    for outcome in (
        fastpsl(folder, "data", "write", source, data),
        fastpsl(folder, "data", "verify", data),
        recipe(folder, "--data", data, out=here / f"run {name}"),
        recipe(folder, "--data", source, out=here / f"run of the folder {name}"),
    ):
        if outcome[0] != "goes on":
            return outcome
    return outcome


_ODD_NAMES: dict[str, Trial] = {
    **{f"names with {name!a}": partial(_everywhere, name) for name in _NAMES},
    "names that are no UTF-8": partial(_everywhere, "latin \udce4\udcff"),
}

TRIALS = _DISKS | _LIMITS | _CHANGED_DATA | _HOMES | _ODD_NAMES
