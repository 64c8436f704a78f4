"""Categories in processes of their own, and cases in forked children of them, within limits.

A child takes a batch of cases, so that imports and compilation are paid once. The parent knows the current
case of a child. A case in which a child dies or hangs is tried again alone, and the others go on in a new
child.

The parent must have a single thread when it forks, so only children start threads (a Loader, DALI).
"""

import contextlib
import ctypes
import faulthandler
import importlib
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.faults.report import CATEGORIES, FAILURES, Category, Finding, Outcome
from tests.pipelines.memory import own_memory
from tests.warm import CONTEXT

_PR_SET_PDEATHSIG = 1
_NOT_PREPARED = 71  # exit code for a fault of the harness itself
_SILENT_S = 10.0
_BATCH = 250  # the most cases that a child takes
_OURS = re.compile(r"/(fastpsl|pipelines|kernels|recipes)/[^:]*\.py$")


def run(category: Category, folder: Path) -> None:
    """Run one category in its own process; if the category itself fails, that is one finding."""
    folder.mkdir()
    receiving, sending = CONTEXT.Pipe(duplex=False)
    arguments = (sending, category.name, folder, category.seed, category.count)
    process = CONTEXT.Process(target=_in_process, args=arguments, daemon=False)
    process.start()
    sending.close()
    started = last_shown = time.monotonic()
    print(f"{category.name}: a count of {category.count:,}, from seed {category.seed}", flush=True)
    try:
        while True:
            if receiving.poll(max(0.0, last_shown + _SILENT_S - time.monotonic())):
                finding = receiving.recv()
                if not isinstance(finding, Finding):
                    category.finished, category.cpu_seconds = True, finding
                    break
                category.add(finding)
                if finding.failed:
                    print(f"  {finding.case}: {finding.outcome}: {finding.detail!a}")
                    print(f"    {category.repeat(finding)}", flush=True)
            category.seconds = time.monotonic() - started
            if time.monotonic() - last_shown >= _SILENT_S:
                print(f"  {category.progress()}", flush=True)
                last_shown = time.monotonic()
    except EOFError:
        process.join()
        category.add(Finding("the category itself", "crash", f"exit code {process.exitcode}"))
    finally:
        category.seconds = time.monotonic() - started
        receiving.close()
        if process.pid and process.is_alive() and not category.finished:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    print(f"  {category.progress()}", flush=True)


def _in_process(sending: Connection, name: str, folder: Path, seed: int, count: int) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    module = importlib.import_module(f"tests.faults.{CATEGORIES[name][0]}")
    for finding in getattr(module, name)(folder, seed, count):
        sending.send(finding)
    times = os.times()
    sending.send(times.user + times.system + times.children_user + times.children_system)


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


class Jury(NamedTuple):
    """A judge of cases, and its surroundings.

    Attributes:
        judge: Called in the child with one case after the other; an exception that it raises is a
            "traceback".
        prepare: Called once in each child, before its first case is measured.
    """

    judge: Callable[[Case], Outcome]
    log: Path  # the file for the children's stdout and stderr
    limits: Limits  # the limits of each case
    prepare: Callable[[], object] = lambda: None

    def findings(self, cases: Sequence[Case], batch: int = _BATCH) -> Iterator[Finding]:
        """Yield a finding for each case, judged in children; "crash", "hang" and "memory" come from here."""
        waiting = deque(cases)
        while waiting:
            some = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            num_done = 0
            for judgement, ended_child in self._in_child(some):
                case = some[num_done]
                num_done += 1
                if ended_child and len(some) > 1:
                    # The earlier cases may have caused it, so this one is tried alone.
                    alone, _ = next(iter(self._in_child([case])))
                    after = f"only after {num_done - 1} other cases: {judgement.detail}"
                    judgement = alone if alone.outcome in FAILURES else judgement._replace(detail=after)
                yield Finding(case.name, *judgement[:2], case.seed, judgement.grown_bytes)
            waiting.extendleft(reversed(some[num_done:]))

    def _in_child(self, cases: Sequence[Case]) -> Iterator[tuple[_Judgement, bool]]:
        """Yield (judgement, whether it ended the child) for each case until the child ends."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._be_child(cases, writing)
        os.close(writing)
        num_done, exit_code = 0, None
        try:
            for line in _lines(reading, self.limits.wall_s):
                if line is None:
                    os.kill(child, signal.SIGKILL)
                    yield _Judgement("hang", f"more than {self.limits.wall_s:g} s"), True
                    return
                yield _Judgement(*json.loads(line)), False
                num_done += 1
            exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            tail = self.log.read_text(errors="backslashreplace").splitlines()[-12:]
            words = " | ".join(tail)[-500:]
            assert exit_code != _NOT_PREPARED, words
            if num_done < len(cases):
                ends = {-signal.SIGXCPU: "hang", -signal.SIGKILL: "memory"}
                how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit {exit_code}"
                yield _Judgement(ends.get(exit_code, "crash"), f"{how}; {words}"), True
        finally:
            os.close(reading)
            if exit_code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)

    def _be_child(self, cases: Sequence[Case], writing: int) -> None:
        """Judge the cases and write a line of JSON for each; never return."""
        code = _NOT_PREPARED
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            faulthandler.enable(2)
            self.prepare()
            code = 70
            for case in cases:
                os.write(writing, json.dumps(self._limited(case)).encode() + b"\n")
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(code)

    def _limited(self, case: Case) -> _Judgement:
        usage, limits = resource.getrusage(resource.RUSAGE_SELF), self.limits
        cpu_s = int(usage.ru_utime + usage.ru_stime) + limits.cpu_s
        address_bytes = own_memory("VmSize") + limits.address_bytes
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_AS, (address_bytes, resource.RLIM_INFINITY))
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        start_bytes = own_memory("VmRSS")
        try:
            outcome, detail = self.judge(case)
        except BaseException as error:  # noqa: BLE001 - any exception is a finding
            outcome, detail = "traceback", describe(error)
        grown_bytes = own_memory("VmHWM") - start_bytes
        if outcome not in FAILURES and grown_bytes > limits.resident_bytes:
            allowed = f"{limits.resident_bytes / 1e6:,.0f} MB are allowed"
            outcome, detail = "memory", f"{grown_bytes / 1e6:,.0f} MB, {allowed}; {detail}"
        return _Judgement(outcome, detail[:600], max(0, grown_bytes))


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


def describe(error: BaseException) -> str:
    """Describe an exception in one line: its type, its text, and the last line of fastpsl that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{found[0][1:]}:{frame.lineno}" for frame in frames if (found := _OURS.search(frame.filename))]
    where = f" at {ours[-1]}" if ours else ""
    return f"{type(error).__name__}: {error!s:.400}{where}"


def refusal(error: BaseException, *names: str) -> Outcome:
    """Classify an exception as users would meet it; "refused" is a ValueError that holds one of `names`.

    The library raises ValueError for wrong input, and its commands print that as one line. Any other
    exception would be a traceback.
    """
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and any(name in text for name in names):
        return "refused", text
    kinds = {MemoryError: "memory", TimeoutError: "hang", ValueError: "unclear"}
    outcome = next((word for kind, word in kinds.items() if isinstance(error, kind)), "traceback")
    return outcome, describe(error)
