"""CPU seconds of a process and of all that it has started, also of workers that live on."""

import os
import resource
from contextlib import suppress
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _CHILDREN_SYSTEM = 1, 11, 14  # fields of /proc/PID/stat after the name, see proc(5)


def tree_cpu_s(pid: int) -> float:
    """Return the CPU seconds, user's and system's, of a process, its living descendants and the ended ones.

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
    seconds = 0.0
    if pid == os.getpid():
        tree.remove(pid)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            seconds += usage.ru_utime + usage.ru_stime
    return seconds + sum(
        int(ticks) / _TICKS_PER_S
        for each in tree
        for ticks in stats.get(each, [])[_USER : _CHILDREN_SYSTEM + 1]
    )


def _fields(process: Path) -> list[str]:
    """Return the fields of a process's stat after its name, none for a process that has ended."""
    with suppress(OSError):
        return (process / "stat").read_text().rpartition(")")[2].split()
    return []
