"""Limits of the system: descriptors, address space, size of files."""

import resource
from functools import partial
from pathlib import Path

from tests.faults.disk import write_images
from tests.faults.trials import Outcome, Trial, fastpsl, recipe
from tests.pipelines.memory import own_memory

_LIMITED = {
    "descriptors": resource.RLIMIT_NOFILE,
    "address_space": resource.RLIMIT_AS,
    "file_size": resource.RLIMIT_FSIZE,
}


def _set(name: str, value: int) -> None:
    if name == "address_space":  # in addition to the gigabytes of addresses that torch and numba use
        value += own_memory("VmSize")
    resource.setrlimit(_LIMITED[name], (value, value))


def _training(name: str, value: int, words: tuple[str, ...], folder: Path) -> Outcome:
    return recipe(folder, words=words, prepare=partial(_set, name, value))


def _writing(name: str, value: int, words: tuple[str, ...], folder: Path) -> Outcome:
    source = write_images(folder / "pictures")
    arguments = ("data", "write", source, folder / "x.beton")
    outcome = fastpsl(folder, *arguments, words=words, prepare=partial(_set, name, value))
    names = [path.name for path in folder.glob("*x.beton*")]
    return ("differs", f"left behind: {names}") if outcome[0] == "refused" and names else outcome


def _trial(work: str, name: str, value: int, *words: str) -> Trial:
    trial = partial({"train": _training, "write": _writing}[work], name, value, words)
    trial.__name__ = f"{work}_with_{name}_{value}"  # type: ignore[attr-defined]
    return trial


TRIALS: tuple[Trial, ...] = (
    _trial("train", "descriptors", 8, "Too many open files", "ulimit -n"),
    _trial("train", "descriptors", 16, "Too many open files", "ulimit -n"),
    _trial("train", "descriptors", 64),
    _trial("write", "descriptors", 8, "Too many open files", "ulimit -n"),
    _trial("train", "file_size", 1 << 20, "File too large", "ulimit -f"),
    _trial("train", "file_size", 4 << 20, "File too large", "ulimit -f"),
    _trial("write", "file_size", 1 << 20, "File too large", "ulimit -f"),
    _trial("train", "address_space", 64 << 20, "memory"),
    _trial("train", "address_space", 256 << 20, "memory"),
    _trial("train", "address_space", 1 << 30, "memory"),
    _trial("write", "address_space", 64 << 20, "memory"),
)
