"""CPU seconds and page faults of a process and of all that it has started, also of workers that live on."""

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PARENT, _FAULTS, _CHILDRENS_FAULTS, _USER, _CHILDREN_SYSTEM = (
    1,
    7,
    8,
    11,
    14,
)  # fields of /proc/PID/stat after the name, see proc(5)


class Usage(NamedTuple):
    """The use of a machine by a tree of processes.

    Attributes:
        cpu_s: CPU seconds, user's and system's.
        num_faults: Minor page faults: pages of memory that were mapped without reading a disk.
    """

    cpu_s: float
    num_faults: int


def tree_usage(pid: int) -> Usage:
    """Return what a process, its living descendants and the ended ones have used.

    Args:
        pid: The process. Its own time and that of its ended children is exact where it is the caller,
            all else is counted in ticks of 10 ms.
    """
    stats = {int(path.name): fields for path in Path("/proc").glob("[0-9]*") if (fields := _fields(path))}
    children: dict[int, list[int]] = {}
    for each, fields in stats.items():
        children.setdefault(int(fields[_PARENT]), []).append(each)
    tree = [pid]
    for each in tree:  # grows while it is walked
        tree += children.get(each, [])
    seconds, num_faults = 0.0, 0
    if pid == os.getpid():
        tree.remove(pid)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            seconds += usage.ru_utime + usage.ru_stime
            num_faults += usage.ru_minflt
    for fields in (stats[each] for each in tree if each in stats):
        seconds += sum(map(int, fields[_USER : _CHILDREN_SYSTEM + 1])) / _TICKS_PER_S
        num_faults += int(fields[_FAULTS]) + int(fields[_CHILDRENS_FAULTS])
    return Usage(seconds, num_faults)


def _fields(process: Path) -> list[str]:
    """Return the fields of a process's stat after its name, none for a process that has ended."""
    with suppress(OSError):
        return (process / "stat").read_text().rpartition(")")[2].split()
    return []
