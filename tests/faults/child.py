"""Cases of faults, judged in processes with limits, so that a crash, a hang or a full memory is a finding.

A process takes one case after the other. After one in which it ends, another takes those that are left.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import resource
import signal
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from tests.faults.report import FAILURES, Finding, Outcome
from tests.pipelines.memory import own_memory
from tests.warm import CONTEXT

_PR_SET_PDEATHSIG = 1
_OURS = re.compile(r"/(fastpsl|pipelines|kernels|recipes)/[^:]*\.py$")
_PREPARATION_S = 600.0  # where code is compiled
_MOST_LETTERS = 1000  # of a message, which may quote a path or two


class Case(NamedTuple):
    """One fault: its seed and its kind."""

    seed: int
    name: str


class Limits(NamedTuple):
    """The limits of one case: what its memory may grow by, and after how many seconds it hangs.

    Attributes:
        resident_bytes: From the start of the case to its peak.
        address_bytes: Before malloc fails.
    """

    wall_s: float = 120.0
    cpu_s: int = 120
    resident_bytes: int = 256 << 20
    address_bytes: int = 24 << 30


class Judge(Protocol):
    """A judge of cases, which can be sent to another process; an exception of `judge` is a "traceback"."""

    def prepare(self, case: Case) -> None:
        """Prepare the process before a case is measured."""

    def judge(self, case: Case) -> Outcome:
        """Return the outcome of one case."""


def judged(judge: Judge, cases: Sequence[Case], log: Path, limits: Limits) -> Iterator[Finding]:
    """Yield a finding for each case; "crash", "hang" and "memory" come from here.

    `log` is the file for the stdout and stderr of the processes.
    """
    left = list(cases)
    while left:
        with closing(_messages(judge, list(left), log, limits)) as messages:
            for message in messages:
                case = left.pop(0)
                yield message if isinstance(message, Finding) else Finding(case.name, *message, case.seed)


def _messages(
    judge: Judge, cases: Sequence[Case], log: Path, limits: Limits
) -> Generator[Finding | Outcome, None, None]:
    """Yield the findings of a process, and how it ended if cases are left."""
    receiving, sending = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_judge_all, args=(sending, judge, cases, log, limits))
    process.start()
    sending.close()
    num = 0
    try:
        with contextlib.suppress(EOFError):
            limit_s = _PREPARATION_S
            while num < len(cases):
                if not receiving.poll(limit_s):
                    yield "hang", f"more than {limit_s:g} s"
                    return
                message = receiving.recv()
                limit_s = limits.wall_s if message is None else _PREPARATION_S
                if message is not None:
                    yield message
                    num += 1
        process.join()
        if num < len(cases):
            words = " | ".join(log.read_text(errors="backslashreplace").splitlines()[-12:])[-500:]
            code = process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit {code}"
            ends = {-signal.SIGXCPU: "hang", -signal.SIGKILL: "memory"}
            yield ends.get(code, "crash"), f"{how}; {words}"
    finally:
        if process.exitcode is None:
            process.kill()
        process.join()
        receiving.close()


def _judge_all(sending: Any, judge: Judge, cases: Sequence[Case], log: Path, limits: Limits) -> NoReturn:
    code = 70
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable(2)
        for case in cases:
            judge.prepare(case)
            sending.send(None)  # it begins
            sending.send(_limited(judge, case, limits))
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc(file=open(2, "w", closefd=False))  # noqa: SIM115 - sys.stderr may be captured
    finally:
        os._exit(code)


def _limited(judge: Judge, case: Case, limits: Limits) -> Finding:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(usage.ru_utime + usage.ru_stime) + limits.cpu_s
    address_bytes = own_memory("VmSize") + limits.address_bytes
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (address_bytes, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    start_bytes = own_memory("VmRSS")
    try:
        outcome, detail = judge.judge(case)
    except BaseException as error:  # noqa: BLE001 - any exception is a finding
        outcome, detail = "traceback", describe(error)
    grown_bytes = own_memory("VmHWM") - start_bytes
    if outcome not in FAILURES and grown_bytes > limits.resident_bytes:
        allowed = f"{limits.resident_bytes / 1e6:,.0f} MB are allowed"
        outcome, detail = "memory", f"{grown_bytes / 1e6:,.0f} MB, {allowed}; {detail}"
    return Finding(case.name, outcome, detail[:600], case.seed, max(0, grown_bytes))


def describe(error: BaseException) -> str:
    """Describe an exception in one line: its type, its text, and the last line of fastpsl that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{found[0][1:]}:{frame.lineno}" for frame in frames if (found := _OURS.search(frame.filename))]
    where = f" at {ours[-1]}" if ours else ""
    return f"{type(error).__name__}: {error!s:.400}{where}"


def refusal(error: BaseException, *names: str) -> Outcome:
    """Classify an exception as users would meet it: "refused" is a ValueError of a line with one of `names`.

    The library raises ValueError for wrong input, and its commands print that as one line. Any other
    exception would be a traceback.
    """
    text = str(error)
    is_line = "\n" not in text and len(text) < _MOST_LETTERS
    if isinstance(error, ValueError) and is_line and any(name in text for name in names):
        return "refused", text
    kinds = {MemoryError: "memory", TimeoutError: "hang", ValueError: "unclear"}
    outcome = next((word for kind, word in kinds.items() if isinstance(error, kind)), "traceback")
    return outcome, describe(error)
