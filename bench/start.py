"""Seconds from a command to its first batch and its first training step, each time in a fresh process.

    python bench/start.py --repeats 5

Rows: a bare interpreter, `import torch`, `import fastpsl`; the first batch of `fastpsl.loader` and the first
step of `fastpsl train`. The last two are on the embedded sample, with numba's cache filled (warm) and empty
(cold). Files are in the page cache, and Python's modules are compiled.

The clock begins with the start of the process. It ends with the line that says that it is done. `cpu_s` is
the processor time until then, of all threads, which a busy machine changes less. What torch's import takes is
a part of all that follows it: the ratios are over it. Writes a JSON.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, check_positive, progress, run_program
from bench.schema import RUNS, data_record, environment, save_result, spread
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sample.betons import sample_paths

DONE = "it is done"
IMPORTS = {"interpreter": "pass", "import torch": "import torch", "import fastpsl": "import fastpsl"}
FIRST_BATCH = "import fastpsl; next(iter(fastpsl.loader(batch_size={}, device='cpu')))"
FIRST_STEP = " step 1/"  # in the reporter's line about it
Variant = tuple[str, str | None]
Commands = dict[Variant, tuple[list[str], str]]


class Start(NamedTuple):
    """A start: seconds until the process was done, and processor time of all its threads."""

    seconds: float
    cpu_s: float


def start(command: Sequence[str], done: str, cache: Path, bytecode: Path) -> Start:
    """Run a command until a line of its output contains `done`; kill it.

    `cache` is numba's cache, `bytecode` Python's. Raises OSError if the process ended without that line.
    """
    variables = os.environ | {"NUMBA_CACHE_DIR": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    variables |= {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    root, begin, lines = str(Path(__file__).resolve().parents[1]), time.perf_counter(), list[str]()
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        try:
            for line in process.stdout or ():
                lines.append(line)
                if done in line:
                    seconds = time.perf_counter() - begin
                    # Of the fields behind the command's name, user and system time.
                    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                    return Start(seconds, sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"))
        finally:
            process.kill()
    raise OSError(f"{' '.join(command)}: ended without {done!r}: {''.join(lines[-1:]).strip()}")


def commands(batch_size: int, recipe: str, out: Path) -> Commands:
    """Return for each variant (what, cache) its command, and a part of the line with which it is done."""
    say = f"\nprint({DONE!r}, flush=True)\ninput()"
    python = [sys.executable, "-c"]
    batch = [*python, FIRST_BATCH.format(batch_size) + say], DONE
    train = ["-m", "fastpsl.cli", "train", recipe, "--device", "cpu", "--batch-size", str(batch_size)]
    step = [sys.executable, *train, "--out", str(out)], FIRST_STEP
    all_commands: Commands = {(what, None): ([*python, code + say], DONE) for what, code in IMPORTS.items()}
    for cache in ("warm", "cold"):
        all_commands |= {("first batch", cache): batch, (f"first step of {recipe}", cache): step}
    return all_commands


def measure(
    options: argparse.Namespace, log: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Start all variants in turn, first once untimed with the cache that stays; return rows and ratios."""
    starts: dict[Variant, list[Start]] = {}
    with tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:

        def once(variant: Variant, number: int, name: str) -> Start:
            place = Path(scratch, f"{name}-{number}")
            command, done = commands(options.batch_size, options.recipe, place / "run")[variant]
            cache = place / "cache" if variant[1] == "cold" else Path(scratch, "warm")
            return start(command, done, cache, Path(scratch, "bytecode"))

        variants = list(commands(options.batch_size, options.recipe, Path(scratch)))
        for number, variant in enumerate(variants):
            if variant[1] != "cold":
                log(f"untimed: {variant[0]}")
                once(variant, number, "first")
        for repeat in range(options.repeats):
            for number, variant in enumerate(variants[::-1] if repeat % 2 else variants):
                log(f"repeat {repeat + 1} of {options.repeats}: {' '.join(filter(None, variant))}")
                starts.setdefault(variant, []).append(once(variant, number, f"repeat-{repeat}"))
    rows = [
        {"measured": what, "cache": cache, "unit": "s", "cpu_s": median(each.cpu_s for each in values),
         **spread([each.seconds for each in values])}
        for (what, cache), values in starts.items()
    ]  # fmt: skip
    torch = starts["import torch", None]
    ratios = [
        {"what": f"{what} / import torch", "cache": cache,
         **spread([each.cpu_s / one.cpu_s for each, one in zip(values, torch, strict=True)])}
        for (what, cache), values in starts.items() if cache
    ]  # fmt: skip
    return rows, ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="jigsaw", help="a name of `fastpsl train`")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RUNS / "start.json")
    options = parser.parse_args()
    check_positive(options, "batch_size", "repeats")
    check_out(options.out)
    machine = environment()
    with Beton(str(sample_paths().train)) as data, progress() as log:
        record = data_record(data, None)
        rows, ratios = measure(options, log)
    for row in rows:
        what = f"{row['measured']:22} {row['cache'] or '':4}"
        print(f"{what} {row['median']:6.2f} s, {row['cpu_s']:6.2f} s of a core")
    settings = {name: getattr(options, name) for name in ("repeats", "batch_size", "recipe")}
    save_result(
        options.out, "start", machine, data=record, settings=settings, rows=rows, ratios=ratios,
        notes=["ratios are of processor time"],
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
