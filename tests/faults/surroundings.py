"""Odd surroundings: disks, limits, homes, outputs, names, neighbours, clocks, and changing data.

Each trial must end well, or in one line with the remedy, within its time limit.
"""

import contextlib
import ctypes
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastpsl.pipelines.beton.sidecar import sidecar_path
from fastpsl.pipelines.beton.verify import verify
from tests.faults import runs
from tests.faults.report import ROOT, Finding, Outcome
from tests.faults.runs import JIGSAW, beton, fastpsl, fresh, long_run, recipe, verdict, write_images
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

# Users without a home, a cache or a temporary folder; another user's id; a read-only installation.


def _sample_to_be_drawn(folder: Path) -> Outcome:
    """Train on the embedded sample, which needs a cache."""
    command = [ROOT / "recipes" / "jigsaw_r50.py", "--out", folder / "run", "--max-steps-per-stage", 1]
    return verdict(runs.start(command, folder / "log", _NOWHERE).wait(150), words=("XDG_CACHE_HOME",))


def _stand_nowhere(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


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


def _make_read_only(*folders: Path, but: Path | None = None) -> None:
    """Make folders read-only, except `but`, in mounts of this process, which then becomes the interpreter."""
    assert _own_mounts()
    if but:
        _mount("--bind", but, but)
    for folder in folders:
        _mount("--bind", folder, folder)
        _mount("-o", "remount,ro,bind", folder)
        if but and but.is_relative_to(folder):
            _mount("--bind", f"/proc/{os.getppid()}/root{but}", but)


def _in_home(**environment: str | None) -> Trial:
    return _trains(how=fresh, environment=environment)


def _read_only_without_temporary(folder: Path) -> Outcome:
    """Train where nothing lasts between processes, not even compiled code.

    The import fails, before the recipe's name is known.
    """
    read_only = partial(_make_read_only, *_INSTALLED, Path("/var/tmp"), Path("/tmp"), but=folder)
    environment = _NOWHERE | {"NUMBA_CACHE_DIR": None, "TMPDIR": "/proc/nope"}
    settings: dict[str, Any] = {"speaker": "fastpsl", "refusals": (1,), "environment": environment}
    return recipe(folder, how=fresh, words=("NUMBA_CACHE_DIR",), preexec_fn=read_only, **settings)


_NOWHERE: dict[str, str | None] = {"HOME": "/proc/nope", "XDG_CACHE_HOME": None}
_INSTALLED = (ROOT, Path(sys.prefix))
_HOMES: dict[str, Trial] = {
    "no home": _in_home(HOME=None, XDG_CACHE_HOME=None),
    "a home that cannot be written": _in_home(**_NOWHERE),
    "no home and the sample to be drawn": _sample_to_be_drawn,
    "no temporary folder": lambda folder: _in_home(TMPDIR=str(folder / "nowhere"))(folder),
    "working folder deleted": lambda folder: recipe(folder, prepare=partial(_stand_nowhere, folder / "gone")),
    "another user": _another_user,
    # As in a container, where the tree, Python's folders and the home are read-only.
    "a read only installation without a home": _needs_mounts(
        _trains(
            how=fresh, environment=_NOWHERE | {"NUMBA_CACHE_DIR": None},
            preexec_fn=partial(_make_read_only, *_INSTALLED),
        )
    ),
    "a read only installation and temporary folder": _needs_mounts(_read_only_without_temporary),
}  # fmt: skip

# Standard output that is closed, full, or a pipe without a reader, in interpreters of their own.


def _with_output(work: str, kind: str, folder: Path) -> Outcome:
    """Train or print with an odd output.

    A run must finish all the same, and its status must report it. A command that only prints must end in one
    line, or silently where nobody reads.
    """
    command: list[object] = ["fastpsl", "data", "info", folder / "x.beton"]
    if work == "train":
        command = JIGSAW.command(folder / "run", *_TWO_STEPS)
    else:
        beton(folder / "x.beton")
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") as full, open(writing, "wb") as unread:
        settings: dict[str, dict[str, Any]] = {
            "closed": {"preexec_fn": partial(os.close, 1)},
            "all closed": {"preexec_fn": partial(os.closerange, 0, 3)},
            "full": {"stdout": full},
            "no reader": {"stdout": unread},
            "no reader at all": {"stdout": unread, "stderr": subprocess.STDOUT},
        }
        process = fresh(command, folder / "log", **settings[kind])
    if work == "tell":
        codes = (0, 1, 141) if kind == "no reader" else (0,)
        return verdict(process.wait(), "fastpsl data info", ("stdout cannot be written",), codes)
    outcome = verdict(process.wait(), codes=(0, 120))
    status = (folder / "run" / "status.json").read_text()
    if '"finished"' not in status or not runs.checkpoints(folder / "run"):
        return "differs", f"{status}; {outcome[1]}"
    return outcome


_OUTPUTS: dict[str, Trial] = {
    f"{work}, output {kind}": partial(_with_output, work, kind)
    for work, kinds in (
        ("train", ("closed", "all closed", "full", "no reader", "no reader at all")),
        ("tell", ("closed", "full", "no reader")),
    )
    for kind in kinds
}

# Odd names, links, and places where no run can be.

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


def _out(path: str, words: str) -> Trial:
    """Return a trial with such an --out; the file x is in its folder."""

    def trial(folder: Path) -> Outcome:
        _with_file(folder / "x")
        return recipe(folder, out=folder / path, words=(words,))

    return trial


def _with_file(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("")


def _occupied(name: str) -> Trial:
    """Return a trial with a folder where the run has a file, or a file where it has a folder."""

    def trial(folder: Path) -> Outcome:
        make = _with_file if name == "checkpoints" else partial(Path.mkdir, parents=True)
        make(folder / "run" / name)
        return recipe(folder, words=(name,))

    return trial


def _by_link(exists: bool, folder: Path) -> Outcome:
    target, link = folder / "target.beton", folder / "x.beton"
    link.symlink_to(beton(target) if exists else target)
    return recipe(folder, "--data", link, words=() if exists else (link.name,))


_ODD_PATHS: dict[str, Trial] = {
    **{f"names with {name!a}": partial(_everywhere, name) for name in _NAMES},
    "names that are no UTF-8": partial(_everywhere, "latin \udce4\udcff"),
    "out is a file": _out("x", "--out"),
    "out below a file": _out("x/run", "give a folder"),
    "out in proc": _out("/proc/x", "choose a folder"),
    "out with a long name": _out("a" * 300, "name too long"),
    **{
        f"{name} occupied": _occupied(name)
        for name in ("checkpoints", "status.json", "metrics.jsonl", ".lock")
    },
    "dangling link for data": partial(_by_link, False),
    "data by a link": partial(_by_link, True),
}  # fmt: skip

# Processes that share a place: two trainers, two writers, locks of dead processes, killed writers.


def _two_trainers(folder: Path) -> Outcome:
    """Start two trainers in one folder; the second is refused, the first finishes."""
    first = long_run(folder / "run", folder / "first.log")
    second = recipe(folder, words=(str(folder / "run"), "--out"))
    outcome = runs.stop_after(first, folder / "run", 1)
    if second[0] == "goes on":
        return "differs", "both trained in one folder"
    return second if outcome[0] == "goes on" else outcome


def _lock_of_a_killed_trainer(folder: Path) -> Outcome:
    """Kill a trainer; the system releases its lock, so the run goes on at once."""
    process = long_run(folder / "run", folder / "log", "--checkpoint-steps", 1)
    process.send(signal.SIGKILL)
    process.wait()
    outcome = recipe(folder, *runs.ONE_STAGE, "--epochs", 1000, "--max-steps-per-stage", 8)
    is_resumed = any("resuming" in (folder / name).read_text() for name in ("log", "log.out"))
    return outcome if outcome[0] != "goes on" or is_resumed else ("differs", "started anew")


def _lock_with_other_content(folder: Path) -> Outcome:
    (folder / "run").mkdir()
    (folder / "run" / ".lock").write_text("pid 1 on another machine\n")
    return recipe(folder)


def _two_writers(folder: Path) -> Outcome:
    """Start two writers of one beton; one writes it, the other is refused, and the beton is whole."""
    out, source = folder / "x.beton", write_images(folder / "pictures", 200)
    command = ("fastpsl", "data", "write", source, out, "--max-side", 100)
    processes = [runs.start(command, folder / f"{which}.log") for which in "ab"]
    outcomes = [verdict(process.wait(), "fastpsl data write", words=(out.name,)) for process in processes]
    by_name = dict(outcomes)
    if by_name.keys() != {"goes on", "refused"}:
        failures = (each for each in outcomes if each[0] not in ("goes on", "refused"))
        return next(failures, ("differs", f"{outcomes}"))
    faults = list(verify(out, 1))
    return _without_litter(("silent", str(faults[0])) if faults else ("refused", by_name["refused"]), folder)


def _writer_killed(folder: Path) -> Outcome:
    """Kill a writer that overwrites a beton: either beton must be whole, and the next write succeed."""
    chance, whole = random.Random(str(folder)), folder / "whole.beton"
    out, source = beton(folder / "x.beton"), write_images(folder / "pictures", 120)
    write = ("data", "write", source, out, "--max-side", 100, "--overwrite", "--workers", 1)
    old, started = out.read_bytes(), time.monotonic()
    outcome = fastpsl(folder, *(whole if word == out else word for word in write))
    if outcome[0] != "goes on":
        return outcome
    seconds, new, num_killed = time.monotonic() - started, whole.read_bytes(), 0
    for _ in range(6):
        process = runs.start(("fastpsl", *write), folder / "log")
        time.sleep(chance.uniform(0, seconds))
        process.send(signal.SIGKILL)
        num_killed += process.wait().code == -signal.SIGKILL
        if out.read_bytes() not in (old, new):
            return "silent", "neither the old beton nor the new one"
        if faults := list(verify(out, 1)):
            return "differs", str(faults[0])
    outcome = fastpsl(folder, *write)
    if outcome[0] == "goes on" and out.read_bytes() != new:
        return "differs", "the write after the kills"
    return _without_litter((outcome[0], f"{num_killed} of 6 were killed"), folder)


_NEIGHBOURS: dict[str, Trial] = {
    "two trainers": _two_trainers,
    "lock of a killed trainer": _lock_of_a_killed_trainer,
    "lock with other content": _lock_with_other_content,
    "two writers": _two_writers,
    "writer killed": _writer_killed,
}

# A wall clock that jumps during training (by libfaketime), which must not change the run's results.

_LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


def _clock(*shifts: str) -> Trial:
    """Set the wall clock to each shift in turn, every few steps; the steady clock of waits stays real."""

    def trial(folder: Path) -> Outcome:
        library = next(filter(os.path.exists, _LIBRARIES), None)
        if library is None:
            return runs.NOT_HERE, "needs libfaketime: apt install faketime"
        clock, run = folder / "clock", folder / "run"
        trained = ("--max-steps-per-stage", 8, "--checkpoint-minutes", 1, "--tensorboard")
        environment: dict[str, str | None] = {
            "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DISABLE_SHM": "1",
        }  # fmt: skip
        clock.write_text(shifts[0])
        process = fresh(JIGSAW.command(run, *trained), folder / "log", environment)
        for number, shift in enumerate(shifts[1:], 1):
            process.wait_until(lambda: runs.num_steps(run) >= 4 * number)  # noqa: B023
            clock.with_name("clock of next").write_text(shift)
            # At once, because the library reads the file at any time.
            clock.with_name("clock of next").replace(clock)
        outcome = verdict(process.wait())
        if outcome[0] != "goes on":
            return outcome
        steady = recipe(folder, *trained, out=folder / "steady")
        return runs.ended_as(run, folder / "steady", steady, "the run with a steady clock")

    return trial


_CLOCKS: dict[str, Trial] = {
    "clock jumps back": _clock("+0", "-2d", "-10y"),
    "clock jumps ahead": _clock("+0", "+2d", "+10y"),
    "clock of 1970": _clock("@1970-01-01 00:00:10"),
}

TRIALS = _DISKS | _LIMITS | _CHANGED_DATA | _HOMES | _OUTPUTS | _ODD_PATHS | _NEIGHBOURS | _CLOCKS
