"""python -m tests.faults --out FILE.json: hurts fastpsl in every way that was thought of, and counts what
came of it.

Each category is a function `NAME(folder, seed, count)` of a module beside this one, an iterator of findings.
It runs in a process of its own, forked from one that has torch, numba and fastpsl imported. Exit 1 where
there was a failure.
"""

import argparse
import importlib
import os
import shlex
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tests.faults.report import Category, Finding, write_results
from tests.warm import CONTEXT

# The categories in the order of a run: the module and the number of cases of each.
CATEGORIES = {
    "betons": ("betons", 10_000),
    "side_files": ("betons", 10_000),
    "images": ("images", 10_000),
    "hostile": ("hostile", 1_500),
    "kills": ("strikes", 200),
    "signals": ("strikes", 44),
    "surroundings": ("surroundings", 72),  # each trial once
    "ranks": ("strikes", 40),
    "openings": ("growth", 10_000),  # openings of each decoder
    "training": ("growth", 60),  # minutes
}
_SILENT_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Run the categories that the options name, and return the exit code."""
    options = _options(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # because `nohup` and `&` ignore them
        signal.signal(number, signal.default_int_handler)
    counts = {name: getattr(options, name) for name in options.only}
    categories = [Category(name, options.seed, count) for name, count in counts.items() if count > 0]
    command = "python -m tests.faults " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    categories_run: list[Category] = []
    try:
        with tempfile.TemporaryDirectory(prefix="faults-", dir=options.folder) as folder:
            for category in categories:
                categories_run.append(category)
                run(category, Path(folder) / category.name)
                write_results(options.out, categories_run, command, options.seed)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    write_results(options.out, categories_run, command, options.seed)
    num_failed = sum(len(category.failures) for category in categories_run)
    num_cases = sum(category.num_done for category in categories_run)
    print(f"{options.out}: {num_cases:,} cases, {num_failed:,} failures")
    return 1 if num_failed or not all(category.finished for category in categories_run) else 0


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


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    add, names = parser.add_argument, list(CATEGORIES)
    add("--seed", type=int, default=0, help="of the first case; the others follow by 1")
    add("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    add("--folder", type=Path, default=None, help="where cases are written for the time of the run")
    add("--out", type=Path, required=True, help="the results file")
    for name, (_, count) in CATEGORIES.items():
        option = f"--{name.replace('_', '-')}"
        add(option, type=int, default=count, metavar="COUNT", help=f"[{count}]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
