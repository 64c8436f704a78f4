"""Test the tests: edit one expression of fastpsl at a time, and see whether a test that runs it fails.

    python -m toolchain.mutants choose 20261201 100    # adds so many edits to mutants.json
    python -m toolchain.mutants cover -n 2             # which test runs which line, in build/mutants
    python -m toolchain.mutants run                    # goes on where it stopped; --first 0 --last 9: a part

An edit has its function's name and its statement's text, no line number, and is found again in whichever file
the function stands. `--renamed OLD=NEW` is for words that changed; `where` shows what is found.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from coverage import CoverageData

from toolchain.edits import draw, edited, find, places

LIST = Path(__file__).with_name("mutants.json")
LIMIT_S = 60.0  # of an edit, imports included
TESTS_S = 20.0  # of an edit's tests as `cover` timed them, the fastest first; others are left out
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "runs", ".*_cache")
Found = Sequence[tuple[Path, Any] | str]


def rows(renamed: Sequence[str]) -> list[dict[str, Any]]:
    """Return the edits of mutants.json in today's words."""
    text = LIST.read_text()
    for old, new in (pair.split("=") for pair in renamed):
        text = re.sub(rf"\b{re.escape(old)}\b", new, text)
    edits: list[dict[str, Any]] = json.loads(text)
    return edits


def pytest(checkout: Path, *words: object, stdout: int | None = None) -> subprocess.Popen[bytes]:
    variables = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, words)],
        cwd=checkout,
        env=os.environ | variables,
        stdout=stdout,
        start_new_session=True,
    )


def cover(checkout: Path, found: Found, words: Sequence[str]) -> int:
    """Run the tests, and record those of each line in the files that hold an edit."""
    build = checkout / "build" / "mutants"
    build.mkdir(parents=True, exist_ok=True)
    files = "\n    ".join(sorted({str(place[0]) for place in found if not isinstance(place, str)}))
    (build / "coveragerc").write_text(f"[run]\ndata_file = {build}/coverage\ninclude =\n    {files}\n")
    options = ("--cov", f"--cov-config={build}/coveragerc", "--cov-context=test", "--cov-report=")
    return pytest(checkout, *options, f"--junitxml={build}/times.xml", *words).wait()


def tests_of(build: Path, path: Path, node: Any) -> list[tuple[float, str]]:
    """Return the tests that run a node's lines, with their seconds, the fastest first."""
    data = CoverageData(str(build / "coverage"))
    data.read()
    by_line = data.contexts_by_lineno(str(path))
    contexts = {text for line in range(node.lineno, node.end_lineno + 1) for text in by_line.get(line, ())}
    names = {text.rpartition("|")[0] for text in contexts} - {""}
    seconds = {
        f"{case.get('classname')}.{case.get('name')}": float(case.get("time", 0))
        for case in ElementTree.parse(build / "times.xml").iter("testcase")
    }

    def time(name: str) -> float:
        function, bracket, parameters = name.partition("[")
        dotted = function.replace("/", ".").replace(".py::", ".").replace("::", ".")
        return seconds.get(dotted + bracket + parameters, 0.1)

    return sorted((time(name), name) for name in names)


def outcome(copied: Path, tests: Sequence[str]) -> str:
    """Run tests until one fails."""
    process = pytest(copied, "-x", "-n", "0", "-m", "", *tests, stdout=subprocess.DEVNULL)
    try:
        return {0: "survived", 1: "killed", 5: "not covered"}.get(
            code := process.wait(LIMIT_S), f"killed, {code}"
        )
    except subprocess.TimeoutExpired:
        return "timed out"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(checkout: Path, todo: dict[int, dict[str, Any]], found: Found) -> None:
    """Try edits in a copy of the checkout, and write a line for each to build/mutants/results.jsonl."""
    build = checkout / "build" / "mutants"
    results = build / "results.jsonl"
    results.touch()
    done = {json.loads(line)["number"] for line in results.read_text().splitlines()}
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(shutil.copytree(checkout, Path(scratch, "copy"), ignore=_LEFT_OUT, symlinks=True))
        for number in sorted(todo.keys() - done):
            row, place, names = todo[number], found[number], list[str]()
            total_s, num_covering, result = 0.0, 0, str(place)
            if not isinstance(place, str):
                tests = tests_of(build, *place)
                num_covering, result = len(tests), "not covered"
                for seconds, name in tests:
                    total_s += seconds
                    if total_s <= TESTS_S or not names:
                        names.append(name)
                if names:
                    target = copied / place[0].relative_to(checkout)
                    target.write_text(edited(*place, row["becomes"]))
                    result = outcome(copied, names)
                    shutil.copy2(place[0], target)
            told = {"number": number, "outcome": result, "tests": len(names), "covering": num_covering}
            with results.open("a") as file:
                file.write(json.dumps(told | row) + "\n")
            print(
                f"{number}: {result} by {len(names)} of {num_covering} tests: {row['function']}", flush=True
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["choose", "where", "cover", "run"])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument(
        "--renamed", action="append", default=[], metavar="OLD=NEW", help="a word of the code"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N")
    parser.add_argument("--last", type=int, default=10**9, metavar="N")
    options, rest = parser.parse_known_args()
    checkout = options.checkout.resolve()
    if options.command == "choose":
        edits = json.loads(LIST.read_text())
        edits += draw(checkout, int(rest[0]), int(rest[1]))
        LIST.write_text(json.dumps(edits, indent=1) + "\n")
        return 0
    todo = dict(enumerate(rows(options.renamed)))
    found = find([*todo.values()], places(checkout))
    for i, place in enumerate(found):
        if isinstance(place, str):
            print(f"{i}: {place}: {todo[i]['function']}, {todo[i]['file']}: {todo[i]['text']}")
        elif options.command == "where":
            print(f"{i}: {place[0].relative_to(checkout)}:{place[1].lineno}: {todo[i]['function']}")
    if options.command == "cover":
        return cover(checkout, found, rest)
    if options.command == "run":
        run(checkout, {i: row for i, row in todo.items() if options.first <= i <= options.last}, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
