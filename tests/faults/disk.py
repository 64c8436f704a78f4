"""Disks that are full, small or read-only, as file systems in memory that only this process sees."""

import contextlib
import ctypes
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.small_runs import JIGSAW, checkpoints, left_behind, start_ranks, verdict
from tests.faults.trials import LIMIT_S, NOT_HERE, SHORT, Outcome, Trial, fastpsl, recipe, without_litter
from tests.pipelines.photos import jpeg, photo

_CLONE_NEWNS = 0x00020000


def own_mounts() -> bool:
    """Give this process and its future children their own mounts; return False without the right to.

    Their mounts disappear with them.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True).returncode == 0


@functools.cache
def may_mount() -> bool:
    """Call `own_mounts` once, before the server of forks starts, so that the forks see the mounts."""
    return own_mounts()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of so many bytes ("20m") at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def needs_mounts(trial: Trial) -> Trial:
    """Return the trial, guarded by the right to mount."""

    def guarded(folder: Path) -> Outcome:
        return trial(folder) if may_mount() else (NOT_HERE, "needs the right to mount: run it as root")

    guarded.__name__ = trial.__name__
    return guarded


def _full_disk(size: str, folder: Path) -> Outcome:
    """Train on a small disk, where a checkpoint does not fit; then enlarge it and go on.

    Files from before must stay whole, and the second run must continue them.
    """
    with small_disk(folder / "disk", size) as disk:
        outcome = recipe(folder, out=disk / "run", words=("No space left", "free"))
        if outcome[0] != "refused" or not checkpoints(disk / "run"):
            return without_litter(outcome, disk)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        again = start_ranks(JIGSAW.command(disk / "run", *SHORT), folder / "again.log")[0].wait(LIMIT_S)
        second = verdict(again, JIGSAW.recipe)
        if second[0] != "goes on":
            return second
        undisturbed = folder / "whole"
        recipe(folder, out=undisturbed)
        return (
            outcome
            if left_behind(disk / "run") == left_behind(undisturbed)
            else ("differs", "after the disk was emptied")
        )


def _of_size(size: str) -> Trial:
    trial = partial(_full_disk, size)
    trial.__name__ = f"disk_of_{size}"  # type: ignore[attr-defined]
    return trial


def full_disk_for_a_beton(folder: Path) -> Outcome:
    with small_disk(folder / "disk", "200k") as disk:
        outcome = fastpsl(
            folder,
            "beton",
            "write",
            write_images(folder / "pictures"),
            disk / "x.beton",
            words=("No space left",),
        )
        names = [path.name for path in disk.iterdir()]
        return ("differs", f"left behind: {names}") if names else outcome


def full_temporary_folder(folder: Path) -> Outcome:
    with small_disk(folder / "disk", "64k") as disk:
        _fill(disk)
        return recipe(folder, environment={"TMPDIR": str(disk)}, words=("No space left", "TMPDIR"))


def full_cache(folder: Path) -> Outcome:
    """Train on a folder of images when its index does not fit into the cache; nothing else needs it."""
    with small_disk(folder / "disk", "64k") as disk:
        _fill(disk)
        source = write_images(folder / "pictures")
        return recipe(
            folder,
            "--data",
            source,
            environment={"XDG_CACHE_HOME": str(disk)},
            words=("No space left", "XDG_CACHE_HOME"),
        )


def read_only_run_folder(folder: Path) -> Outcome:
    with _read_only(folder / "disk", lambda disk: None) as disk:
        return recipe(folder, out=disk / "run", words=("Read-only file system", "choose a folder"))


def read_only_run_that_exists(folder: Path) -> Outcome:
    with _read_only(folder / "disk", lambda disk: recipe(folder, out=disk / "run")) as disk:
        return recipe(folder, out=disk / "run", words=("Read-only file system", "choose a folder"))


def read_only_beton(folder: Path) -> Outcome:
    source = write_images(folder / "pictures")
    with _read_only(folder / "disk", lambda disk: None) as disk:
        return fastpsl(folder, "data", "write", source, disk / "x.beton", words=("Read-only file system",))


def data_on_a_read_only_disk(folder: Path) -> Outcome:
    """Train on a read-only disk, which needs no writing."""
    with _read_only(folder / "disk", lambda disk: write_images(disk / "pictures")) as disk:
        return recipe(folder, "--data", disk / "pictures")


def tiny_shared_memory(folder: Path) -> Outcome:
    return recipe(folder, prepare=_shrink_shared_memory, words=("/dev/shm",))


def _shrink_shared_memory() -> None:
    assert own_mounts()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "faults", "/dev/shm"], check=True)


@contextlib.contextmanager
def _read_only(folder: Path, fill: Callable[[Path], object]) -> Iterator[Path]:
    with small_disk(folder, "100m") as disk:
        fill(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield disk


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "full", "wb") as file:
        while True:
            os.write(file.fileno(), bytes(4096))


def write_images(folder: Path, num: int = 64) -> Path:
    """Write a folder of photos of 130 to 190 px in 4 classes, and return its path."""
    for number in range(num):
        path = folder / f"class {number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo(number, 130 + 7 * number % 60, 130 + 11 * number % 60)))
    return folder


TRIALS: tuple[Trial, ...] = tuple(
    needs_mounts(trial)
    for trial in (
        *(_of_size(size) for size in ("1m", "7m", "12m", "18m")),
        full_disk_for_a_beton, full_temporary_folder, full_cache, read_only_run_folder,
        read_only_run_that_exists, read_only_beton,
        data_on_a_read_only_disk, tiny_shared_memory,
    )
)  # fmt: skip
