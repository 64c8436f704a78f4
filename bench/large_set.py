"""A data set of a hundred million samples: how soon it is open, in order, entered in the middle and resumed.

    python bench/large_set.py --folder /scratch    5 GB of tables for 100 million samples, removed at the end

The shards have true headers, tables and JSONs, and holes for images (bench/sparse_set.py). Each repeat is a
process of its own. `open`: all tables are checked. `digest`: the data's part of the check that a checkpoint
belongs to it. `loader`: a Loader is made. `first batch`: of an epoch. `seek`: the first batch from the middle
of another epoch. `resume`: open, digest, loader and seek. Noise stands in for decoded images. `memory`: the
largest anonymous memory beyond that of the imports, sampled every 2 ms. The mapped tables are no part of it.
The tables are in the page cache, except for `open from disk`. Writes a JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.order import drop_from_cache
from bench.program import check_out, check_positive, progress, run_program
from bench.schema import RUNS, environment, save_result, spread
from bench.sparse_set import write_sparse_set
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import ORDERS, Loader
from fastpsl.pipelines.views import ViewSpec

BATCH_SIZE = 256
SECONDS = ("open", "digest", "loader", "first batch", "seek", "resume")
_EVERY_S = 0.002


def anonymous_mib() -> float:
    """Return this process's resident memory without mapped files."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list that holds, after the block, the largest growth of the anonymous memory in MiB."""
    before, growth, ended = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            growth[0] = max(growth[0], anonymous_mib() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        ended.set()
        thread.join()


def measure(source: str, order: str, rank: int, world: int) -> dict[str, float]:
    """Return the seconds of each part, and the MiB of `memory`."""
    figures: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        figures[name] = time.perf_counter() - start

    view = ViewSpec(ShorterSideCrop(8, 8))
    with peak_memory() as growth:
        with timed("open"):
            data = Beton(source)
        with data:
            with timed("digest"):
                data.digest()
            with timed("loader"):
                loader = Loader(
                    data, [view], batch_size_per_rank=BATCH_SIZE // world, rank=rank, world=world,
                    order=order, decoder="synthetic", num_threads=1,
                )  # fmt: skip
            with loader:
                for name, epoch, step in (("first batch", 0, 0), ("seek", 1, loader.num_steps // 2)):
                    with timed(name):
                        batches = loader.epoch(epoch, step)
                        next(batches)
                    batches.close()
    figures["resume"] = sum(figures[name] for name in ("open", "digest", "loader", "seek"))
    return {**figures, "memory": growth[0]}


def in_a_process(source: str, order: str) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--data", source, "--measure", order]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ValueError(f"the measuring process failed: {process.stderr.strip().splitlines()[-1]}")
    figures: dict[str, float] = json.loads(process.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-samples", type=int, default=100_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--folder", help="where the shards are written, for the time of the measurement")
    parser.add_argument("--data", default="", help="shards that bench/sparse_set.py wrote, as a glob")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=ORDERS, help="print one measurement of --data in this order")
    parser.add_argument("--out", type=Path, default=RUNS / "large_set.json")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.data, options.measure, 0, 1)))
        return
    check_out(options.out)
    check_positive(options, "num_samples", "shards", "repeats")
    machine = environment()
    found: dict[tuple[str, str], list[float]] = {}
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-", dir=options.folder) as scratch:
        source = options.data
        if not source:
            log(f"writing the tables of {options.num_samples:,} samples")
            source = write_sparse_set(Path(scratch), options.num_samples, options.shards)
        with Beton(source) as data:
            paths, num_samples = data.paths, data.num_samples
        for repeat in range(options.repeats):
            log(f"repeat {repeat + 1} of {options.repeats}")
            drop_from_cache(paths)
            found.setdefault(("open from disk", ORDERS[0]), []).append(
                in_a_process(source, ORDERS[0])["open"]
            )
            for order in ORDERS if repeat % 2 else reversed(ORDERS):
                for name, value in in_a_process(source, order).items():
                    found.setdefault((name, order), []).append(value)
    rows = [
        {"measured": name, "order": order, "unit": "MiB" if name == "memory" else "s", **spread(values)}
        for (name, order), values in sorted(found.items(), key=lambda item: item[0][1], reverse=True)
    ]
    for row in rows:
        print(f"{row['order']:13} {row['measured']:15} {row['median']:9.3f} {row['unit']}")
    save_result(
        options.out, "large_set", machine,
        data={"name": "tables and holes", "num_samples": num_samples, "num_shards": len(paths)},
        settings={"repeats": options.repeats, "batch_size": BATCH_SIZE, "lanes": 64},
        rows=rows,
        notes=["whether a host below this machine caches the disk is not known"],
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
