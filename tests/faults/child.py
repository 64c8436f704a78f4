"""The judge of cases: it runs them in forked children of this process, within limits of time and memory.

A child takes a batch of cases, so that imports and compilation are paid once. The parent knows the current
case of a child. A case in which a child dies or hangs is tried again alone, and the others go on in a new
child.

The parent must have a single thread when it forks, so only children start threads (a Loader, DALI).
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
_NOT_PREPARED = 71  # exit code for a fault of the harness itself
_OURS = re.compile(r"/(fastpsl|pipelines|kernels|recipes)/[^:]*\.py$")


class Case(NamedTuple):
    """One fault: its seed and its kind."""

    seed: int
    name: str


class Limits(NamedTuple):
    """The limits of one case.

    `resident_bytes` limits the growth of the resident memory from the start of the case to its peak. The
    address space may grow by `address_bytes` before malloc fails.
    """

    wall_s: float = 30.0
    cpu_s: int = 60
    resident_bytes: int = 1 << 30
    address_bytes: int = 24 << 30


class _Judgement(NamedTuple):
    outcome: str
    detail: str
    grown_bytes: int = 0


Judge = Callable[[Case], tuple[str, str]]  # outcome and detail, in the child


def judge_cases(
    category: str,
    cases: Sequence[Case],
    judge: Judge,
    log: Path,
    limits: Limits,
    batch: int = 100,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Finding]:
    """Yield a finding for each case, judged in children; "crash", "hang" and "memory" come from here.

    Args:
        category: The category of the findings.
        cases: The cases.
        judge: Called in the child with one case after the other; an exception that it raises is a
            "traceback".
        log: The file for the children's stdout and stderr.
        limits: The limits of each case.
        batch: The most cases that a child takes.
        prepare: Called once in each child, before its first case is measured.
    """
    waiting = deque(cases)
    while waiting:
        batch_cases = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
        num_done = 0
        for judgement, ended_child in _in_child(batch_cases, judge, log, limits, prepare):
            case = batch_cases[num_done]
            num_done += 1
            if ended_child and len(batch_cases) > 1:
                # The earlier cases may have caused it, so this one is tried alone.
                alone, _ = next(iter(_in_child([case], judge, log, limits, prepare)))
                if alone.outcome not in FAILURES:
                    alone = judgement._replace(
                        detail=f"only after {num_done - 1} other cases: {judgement.detail}"
                    )
                judgement = alone
            yield Finding(
                category, case.name, judgement.outcome, judgement.detail, case.seed, judgement.grown_bytes
            )
        waiting.extendleft(reversed(batch_cases[num_done:]))


def _in_child(
    cases: Sequence[Case], judge: Judge, log: Path, limits: Limits, prepare: Callable[[], None] | None
) -> Iterator[tuple[_Judgement, bool]]:
    """Yield (judgement, whether it ended the child) for each case until the child ends."""
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
    """Yield the lines of a pipe; None when the next one takes longer than `wall_s`."""
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
    """Judge the cases and write a line of JSON for each; never return."""
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
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    start_bytes = own_memory("VmRSS")
    try:
        outcome, detail = judge(case)
    except BaseException as error:  # noqa: BLE001 - any exception is a finding
        outcome, detail = "traceback", describe(error)
    growth_bytes = own_memory("VmHWM") - start_bytes
    if outcome not in FAILURES and growth_bytes > limits.resident_bytes:
        outcome, detail = (
            "memory",
            f"{growth_bytes / 1e6:,.0f} MB, {limits.resident_bytes / 1e6:,.0f} MB are allowed; {detail}",
        )
    return _Judgement(outcome, detail[:600], max(0, growth_bytes))


def _tail(log: Path) -> str:
    """Return the last lines of a child's log as one."""
    return " | ".join(log.read_text(errors="backslashreplace").splitlines()[-12:])[-500:]


def describe(error: BaseException) -> str:
    """Describe an exception in one line: its type, its text, and the last line of fastpsl that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _OURS.search(frame.filename)]
    where = f" at {_OURS.search(frames[-1].filename).group()[1:]}:{frames[-1].lineno}" if frames else ""  # type: ignore[union-attr]
    return f"{type(error).__name__}: {error!s:.400}{where}"


def refusal(error: BaseException, *names: str) -> tuple[str, str]:
    """Classify an exception as users would meet it; "refused" is a ValueError that holds one of `names`.

    The library raises ValueError for wrong input, and its commands print that as one line. Any other
    exception would be a traceback.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "memory", describe(error)
    if isinstance(error, TimeoutError):
        return "hang", describe(error)
    if not isinstance(error, ValueError):
        return "traceback", describe(error)
    if not any(name in text for name in names):
        return "unclear", describe(error)
    return "refused", text
