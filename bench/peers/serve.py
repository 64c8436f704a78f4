"""The program of one loader's process, python -m bench.peers.serve; bench/interleaved.py starts and asks it.

It is no file to be run by its path: its folder would stand first where Python looks for `ffcv`.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.peers import ALL, TRAINING, Work, ours
from fastpsl.engine.gpu import samples_per_s

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the name, see proc(5).
_PARENT, _FAULTS, _CHILDRENS_FAULTS, _USER, _CHILDREN_SYSTEM = 1, 7, 8, 11, 14


class Usage(NamedTuple):
    """The use of a machine by a tree of processes."""

    cpu_s: float  # CPU seconds, user's and system's
    num_faults: int  # Minor page faults: pages of memory that were mapped without reading a disk


def tree_usage(pid: int) -> Usage:
    """Return what a process and its descendants have used: exactly for the caller, else in ticks of 10 ms."""
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


AHEAD = 5  # batches that queues hold, beside two for each thread or process
_PAUSE_S, _IDLE_CORES, _SETTLE_S = 0.2, 0.1, 10.0


def open_batches(work: Work, num_views: int) -> Iterator[int]:
    """Return an endless iterator over the numbers of samples in the batches."""
    if work.kind in TRAINING:
        yield from TRAINING[work.kind].batches(work, num_views)
    for views in (ALL[work.kind].batches if work.kind in ALL else ours.batches)(work, num_views):
        yield len(views[0])


def wait_until_idle() -> None:
    """Wait until the prefetching is over, which would disturb other loaders; 10 s at most."""
    end = time.monotonic() + _SETTLE_S
    before = tree_usage(os.getpid()).cpu_s
    while time.monotonic() < end:
        time.sleep(_PAUSE_S)
        now = tree_usage(os.getpid()).cpu_s
        if now - before < _IDLE_CORES * _PAUSE_S:
            return
        before = now


def serve(work: Work, num_views: int) -> None:
    """Print a line at the first batch, then an answer to each request of `interleaved.Process.measure`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # because libraries' own prints must not mix with the answers
    # What was prefetched while other loaders ran must not count as work of the timed region.
    ahead = AHEAD + 2 * work.num_threads
    running = {num_views: open_batches(work, num_views)}
    next(running[num_views])
    print("first batch", file=answers, flush=True)
    for line in sys.stdin:
        num_views, seconds = json.loads(line)
        if num_views not in running:
            running[num_views] = open_batches(work, num_views)
        batches = running[num_views]
        for _ in range(ahead):
            next(batches)
        before, start = tree_usage(os.getpid()), time.perf_counter()
        least = ahead if seconds else 1  # one batch warms up
        rate = samples_per_s(partial(next, batches), seconds, work.device, least)
        after, took_s = tree_usage(os.getpid()), time.perf_counter() - start
        cores = (after.cpu_s - before.cpu_s) / took_s
        faults = (after.num_faults - before.num_faults) / took_s / rate
        wait_until_idle()
        print(json.dumps([rate, cores, faults]), file=answers, flush=True)
    answers.close()
    running.clear()  # ends the processes of DataLoader
    os._exit(0)  # because ffcv's threads never end


if __name__ == "__main__":
    serve(Work(**json.loads(sys.argv[1])), int(sys.argv[2]))
