"""python -m tests.faults --out FILE.json: hurts fastpsl in every way that was thought of, and counts what
came of it.

Each category is a function `NAME(folder, seed, count)` of a module beside this one, an iterator of findings.
Exit 1 where there was a failure.
"""

import argparse
import importlib
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.child import describe
from tests.faults.report import CATEGORIES, Category, Finding, write_results

_SHOWN_EVERY_S = 10.0


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
                _run(category, Path(folder) / category.name)
                write_results(options.out, categories_run, command, options.seed)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    write_results(options.out, categories_run, command, options.seed)
    num_failed = sum(len(category.failures) for category in categories_run)
    num_cases = sum(category.num_done for category in categories_run)
    print(f"{options.out}: {num_cases:,} cases, {num_failed:,} failures")
    return 1 if num_failed or not all(category.finished for category in categories_run) else 0


def _run(category: Category, folder: Path) -> None:
    """Run one category; if the category itself fails, that is one finding."""
    folder.mkdir()
    started = last_shown = time.monotonic()
    print(f"{category.name}: a count of {category.count:,}, from seed {category.seed}", flush=True)
    function = getattr(importlib.import_module(f"tests.faults.{CATEGORIES[category.name][0]}"), category.name)
    try:
        for finding in function(folder, category.seed, category.count):
            category.add(finding)
            category.seconds = time.monotonic() - started
            if finding.failed:
                print(f"  {finding.case}: {finding.outcome}: {finding.detail!a}")
                print(f"    {category.repeat(finding)}", flush=True)
            if time.monotonic() - last_shown >= _SHOWN_EVERY_S:
                last_shown = time.monotonic()
                print(category.progress(), flush=True)
        category.finished = True
    except Exception as error:  # noqa: BLE001 - the other categories go on
        category.add(Finding("the category itself", "crash", describe(error)))
    print(category.progress(), flush=True)


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
