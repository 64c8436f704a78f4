"""The runner of one category in a process of its own, which counts and shows its findings as they come."""

import importlib
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tests.faults.report import Category, Finding
from tests.warm import CONTEXT

_SILENT_S = 10.0


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
                    print(
                        f"  {finding.case}: {finding.outcome}: {finding.detail!a}\n"
                        f"    {category.repeat(finding)}",
                        flush=True,
                    )
            category.seconds = time.monotonic() - started
            if time.monotonic() - last_shown >= _SILENT_S:
                print(f"  {_progress(category)}", flush=True)
                last_shown = time.monotonic()
    except EOFError:
        process.join()
        category.add(Finding(category.name, "the category itself", "crash", f"exit code {process.exitcode}"))
    finally:
        category.seconds = time.monotonic() - started
        receiving.close()
        if process.is_alive() and not category.finished:
            _kill_group(process.pid)
        process.join()
    print(f"  {_progress(category)}", flush=True)


def _progress(category: Category) -> str:
    num_done, seconds = category.num_done, category.seconds
    if not num_done:
        return f"{category.name}: {seconds:,.0f} s so far, no finding yet"
    time_left = (
        f", {seconds / num_done * (category.count - num_done):,.0f} s left"
        if 0 < num_done < category.count
        else ""
    )
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in category.outcomes.most_common())
    return f"{category.name}: {num_done:,} of {category.count:,} in {seconds:,.0f} s{time_left}: {outcomes}"


def _in_process(sending: Connection, name: str, folder: Path, seed: int, count: int) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for finding in importlib.import_module(f"tests.faults.{name}").run(folder, seed, count):
        sending.send(finding)
    times = os.times()
    sending.send(times.user + times.system + times.children_user + times.children_system)


def _kill_group(pid: int | None) -> None:
    if pid:
        os.killpg(pid, signal.SIGKILL)
