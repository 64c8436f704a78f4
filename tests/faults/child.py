"""Judges cases in forked children of this process, each within limits of time and memory.

A child takes a batch of cases, so that imports and compiled code are paid once. The parent knows which case a child is
at: where a child dies or hangs, that case is tried again alone, and the others go on in a new child.

The parent must have one thread only when it forks: what starts threads (a Loader, DALI) runs in children alone.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import re
import resource
import select
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.report import FAILURES, Finding
from tests.pipelines.memory import own_memory

_PR_SET_PDEATHSIG = 1
_NOT_PREPARED = 71  # exit code: the harness's own fault
_OURS = re.compile(r"/(fastpsl|pipelines|kernels|recipes)/[^:]*\.py$")


class Case(NamedTuple):
    """One fault: the seed that makes it, and its kind."""

    seed: int
    name: str


class Limits(NamedTuple):
    """What one case may take. `resident_bytes` is growth of the resident memory over the start of the case, by the
    kernel's high-water mark; the address space may grow by `address_bytes` before malloc fails."""

    wall_s: float = 30.0
    cpu_s: int = 60
    resident_bytes: int = 1 << 30
    address_bytes: int = 24 << 30


class _Judgement(NamedTuple):
    outcome: str
    detail: str
    grown_bytes: int = 0


Judge = Callable[[Case], tuple[str, str]]  # outcome and detail, in the child


def judged(
    category: str,
    cases: Sequence[Case],
    judge: Judge,
    log: Path,
    limits: Limits,
    batch: int = 100,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Finding]:
    """What `judge` says of each case, in children; "crash", "hang" and "memory" come from here.

    Args:
        judge: called in the child with one case after the other; an exception that it lets pass is a "traceback".
        log: where the children's stdout and stderr go.
        batch: cases a child takes at most.
        prepare: called once in each child, before its first case is measured.
    """
    waiting = deque(cases)
    while waiting:
        taken = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
        done = 0
        for judgement, ended in _in_child(taken, judge, log, limits, prepare):
            case = taken[done]
            done += 1
            if ended and len(taken) > 1:  # is it this case, or what those before it left behind?
                alone, _ = next(iter(_in_child([case], judge, log, limits, prepare)))
                if alone.outcome not in FAILURES:
                    alone = judgement._replace(
                        detail=f"only after {done - 1} other cases: {judgement.detail}"
                    )
                judgement = alone
            yield Finding(
                category, case.name, judgement.outcome, judgement.detail, case.seed, judgement.grown_bytes
            )
        waiting.extendleft(reversed(taken[done:]))


def _in_child(
    cases: Sequence[Case], judge: Judge, log: Path, limits: Limits, prepare: Callable[[], None] | None
) -> Iterator[tuple[_Judgement, bool]]:
    """(judgement, whether the child ended by it) for each case until the child ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(cases, judge, log, limits, prepare, writing)
    os.close(writing)
    position, exit_code = 0, None
    try:
        lines = _lines(reading, limits.wall_s)
        for line in lines:
            if line is None:
                os.kill(child, signal.SIGKILL)
                yield _Judgement("hang", f"more than {limits.wall_s:g} s"), True
                return
            yield _Judgement(*json.loads(line)), False
            position += 1
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert exit_code != _NOT_PREPARED, _tail(log)
        if position < len(cases):
            outcome = (
                "hang"
                if exit_code == -signal.SIGXCPU
                else "memory"
                if exit_code == -signal.SIGKILL
                else "crash"
            )
            how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit {exit_code}"
            yield _Judgement(outcome, f"{how}; {_tail(log)}"), True
    finally:
        os.close(reading)
        if exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _lines(reading: int, wall_s: float) -> Iterator[bytes | None]:
    """Lines of a pipe; None when the next one takes longer than `wall_s`."""
    rest, deadline = b"", time.monotonic() + wall_s
    while True:
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            yield None
            return
        part = os.read(reading, 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
        deadline = time.monotonic() + wall_s


def _be_child(
    cases: Sequence[Case],
    judge: Judge,
    log: Path,
    limits: Limits,
    prepare: Callable[[], None] | None,
    writing: int,
) -> None:
    """Judge the cases, a line of JSON each; never returns."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable(2)
        try:
            if prepare:
                prepare()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(_NOT_PREPARED)
        for case in cases:
            line = json.dumps(_limited(case, judge, limits)).encode() + b"\n"
            os.write(writing, line)
        os._exit(0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(70)


def _limited(case: Case, judge: Judge, limits: Limits) -> _Judgement:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(usage.ru_utime + usage.ru_stime) + limits.cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
    resource.setrlimit(
        resource.RLIMIT_AS, (own_memory("VmSize") + limits.address_bytes, resource.RLIM_INFINITY)
    )
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = own_memory("VmRSS")
    try:
        outcome, detail = judge(case)
    except BaseException as error:  # noqa: BLE001 - it is what is looked for
        outcome, detail = "traceback", described(error)
    grown = own_memory("VmHWM") - before
    if outcome not in FAILURES and grown > limits.resident_bytes:
        outcome, detail = (
            "memory",
            f"{grown / 1e6:,.0f} MB, {limits.resident_bytes / 1e6:,.0f} MB are allowed; {detail}",
        )
    return _Judgement(outcome, detail[:600], max(0, grown))


def _tail(log: Path) -> str:
    """The last lines that a child left, as one."""
    return " | ".join(log.read_text(errors="backslashreplace").splitlines()[-12:])[-500:]


def described(error: BaseException) -> str:
    """An exception as one line: its type, its text, and the last of our own lines that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _OURS.search(frame.filename)]
    where = f" at {_OURS.search(frames[-1].filename).group()[1:]}:{frames[-1].lineno}" if frames else ""  # type: ignore[union-attr]
    return f"{type(error).__name__}: {error!s:.400}{where}"


def refusal(error: BaseException, *names: str) -> tuple[str, str]:
    """How an exception would meet the user: "refused" is a ValueError that holds one of `names`.

    The library raises ValueError for what users gave, and its commands print that as one line; everything else would be a
    traceback.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "memory", described(error)
    if isinstance(error, TimeoutError):
        return "hang", described(error)
    if not isinstance(error, ValueError):
        return "traceback", described(error)
    if not any(name in text for name in names):
        return "unclear", described(error)
    return "refused", text
