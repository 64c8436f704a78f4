"""Processes that send what they find: categories, and within them batches of cases, in forks with limits.

A fork takes a batch of cases, so that imports and compilation are paid once. A case in which it dies or hangs
is tried again alone, and the others go on in a new fork. What forks must have a single thread, so only forks
start threads (a Loader, DALI).
"""

import contextlib
import ctypes
import faulthandler
import importlib
import multiprocessing
import os
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.faults.report import CATEGORIES, FAILURES, Category, Finding, Outcome
from tests.pipelines.memory import own_memory
from tests.warm import CONTEXT

_FORK: Any = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1
_NOT_PREPARED, _FAILED = 71, 70  # exit codes for a fault of the harness, and for an error of a case's child
_SILENT_S = 10.0
_BATCH = 250  # the most cases that a child takes
_OURS = re.compile(r"/(fastpsl|pipelines|kernels|recipes)/[^:]*\.py$")


class Ended(NamedTuple):
    """The end of a process, which it could not send itself."""

    exit_code: int


def sent_by(
    context: Any, silent_s: float, target: Callable[..., object], *arguments: object
) -> Generator[Any, None, None]:
    """Yield what `target(send, *arguments)` sends from a process of its own, and at last that it `Ended`.

    None tells that it was silent for `silent_s` seconds. Whoever stops to listen kills it, with its group.
    """
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(target, sending, *arguments), daemon=False)
    process.start()
    sending.close()
    try:
        with contextlib.suppress(EOFError):
            while True:
                yield receiving.recv() if receiving.poll(silent_s) else None
        process.join()
        yield Ended(process.exitcode)
    finally:
        if process.exitcode is None:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(process.pid, signal.SIGKILL)
            process.join()
        receiving.close()


def _send(target: Callable[..., object], sending: Any, *arguments: object) -> None:
    target(sending.send, *arguments)


def run(category: Category, folder: Path) -> None:
    """Run one category in its own process; if the category itself fails, that is one finding."""
    folder.mkdir()
    started = last_shown = time.monotonic()
    print(f"{category.name}: a count of {category.count:,}, from seed {category.seed}", flush=True)
    arguments = category.name, folder, category.seed, category.count
    with closing(sent_by(CONTEXT, _SILENT_S, _run, *arguments)) as messages:
        for message in messages:
            category.seconds = time.monotonic() - started
            if isinstance(message, float):
                category.finished, category.cpu_seconds = True, message
            elif isinstance(message, Ended) and not category.finished:
                message = Finding("the category itself", "crash", f"exit code {message.exit_code}")
            if isinstance(message, Finding):
                category.add(message)
                if message.failed:
                    print(f"  {message.case}: {message.outcome}: {message.detail!a}")
                    print(f"    {category.repeat(message)}", flush=True)
            if isinstance(message, Ended) or time.monotonic() - last_shown >= _SILENT_S:
                last_shown = time.monotonic()
                print(category.progress(), flush=True)


def _run(send: Callable[[object], None], name: str, folder: Path, seed: int, count: int) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    module = importlib.import_module(f"tests.faults.{CATEGORIES[name][0]}")
    for finding in getattr(module, name)(folder, seed, count):
        send(finding)
    times = os.times()
    send(times.user + times.system + times.children_user + times.children_system)


class Case(NamedTuple):
    """One fault: its seed and its kind."""

    seed: int
    name: str


def cases_of(kinds: Sequence[str], seed: int, count: int) -> list[Case]:
    """Return the cases from `seed` on, which take the kinds in turn."""
    return [Case(number, kinds[number % len(kinds)]) for number in range(seed, seed + count)]


class Limits(NamedTuple):
    """The limits of one case.

    `resident_bytes` limits the growth of the resident memory from the start of the case to its peak. The
    address space may grow by `address_bytes` before malloc fails.
    """

    wall_s: float = 30.0
    cpu_s: int = 60
    resident_bytes: int = 1 << 30
    address_bytes: int = 24 << 30


class Jury(NamedTuple):
    """A judge of cases, and its surroundings; an exception of the judge is a "traceback"."""

    judge: Callable[[Case], Outcome]  # called in the child with one case after the other
    log: Path  # the file for the children's stdout and stderr
    limits: Limits  # of each case
    prepare: Callable[[], object] = lambda: None  # called in each child, before its first case is measured

    def findings(self, cases: Sequence[Case], batch: int = _BATCH) -> Iterator[Finding]:
        """Yield a finding for each case, judged in children; "crash", "hang" and "memory" come from here."""
        waiting = list(cases)
        while waiting:
            some, num_done = waiting[:batch], 0
            for finding, ended_child in self._in_child(some):
                if ended_child and len(some) > 1:
                    # The earlier cases may have caused it, so this one is tried alone.
                    alone, _ = next(iter(self._in_child([some[num_done]])))
                    after = f"only after {num_done} other cases: {finding.detail}"
                    finding = alone if alone.failed else finding._replace(detail=after)
                num_done += 1
                yield finding
            waiting = waiting[num_done:]

    def _in_child(self, cases: Sequence[Case]) -> Iterator[tuple[Finding, bool]]:
        """Yield (finding, whether it ended the child) for each case until the child ends."""
        left = list(cases)
        with closing(sent_by(_FORK, self.limits.wall_s, self._judge_all, cases)) as messages:
            for message in messages:
                if isinstance(message, Finding):
                    left.pop(0)
                    yield message, False
                    continue
                if not isinstance(message, Ended):
                    outcome = "hang", f"more than {self.limits.wall_s:g} s"
                else:
                    words = " | ".join(self.log.read_text(errors="backslashreplace").splitlines()[-12:])[
                        -500:
                    ]
                    code = message.exit_code
                    assert code != _NOT_PREPARED, words
                    ends = {-signal.SIGXCPU: "hang", -signal.SIGKILL: "memory"}
                    how = signal.Signals(-code).name if code < 0 else f"exit {code}"
                    outcome = ends.get(code, "crash"), f"{how}; {words}"
                if left:
                    yield Finding(left[0].name, *outcome, left[0].seed), True
                return

    def _judge_all(self, send: Callable[[object], None], cases: Sequence[Case]) -> NoReturn:
        code = _NOT_PREPARED
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            faulthandler.enable(2)
            self.prepare()
            code = _FAILED
            for case in cases:
                send(self._limited(case))
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc(file=open(2, "w", closefd=False))  # noqa: SIM115 - sys.stderr may be captured
        finally:
            os._exit(code)

    def _limited(self, case: Case) -> Finding:
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
        return Finding(case.name, outcome, detail[:600], case.seed, max(0, grown_bytes))


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
