"""Random beside quasi-random order, read from storage: the file is dropped from the page cache before each
epoch.

    python bench/order.py --data 'imagenet/train-*.beton' --lanes 64

`reads`: the samples' bytes and nothing else, by the loader's number of threads. Beside the two orders stands
one thread that reads the file from front to back, a page at a time. `loader`: our Loader, with small crops.
All are interleaved. Without --data it reads raw noise in a temporary folder under --folder, on the disk that
is to be measured.

Before each epoch, mincore says what share of the file is left in the page cache. The bytes that came from
storage are those of /proc/self/io. The size of a request is the disk's own count, of all processes.
`share_waited_for` is that of the samples which a thread did not find in the page cache.

What a host below a virtual machine caches, nothing here shows. A set that fits into memory flatters the
random order: what the kernel reads beside a sample is still there when that one's turn comes. Writes a JSON.
"""

import argparse
import ctypes
import mmap
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, progress, run_program
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.encode import Stored
from fastpsl.pipelines.beton.file import BetonFile
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import DEFAULT_PAGE_BYTES
from fastpsl.pipelines.data.dataset import MODE_RAW, SampleTable, read_bytes
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import epoch_order, num_steps, step_indices
from fastpsl.pipelines.loader.quasi_random import GROUP_PAGES, QuasiRandom
from fastpsl.pipelines.views import ViewSpec

ORDERS = ("random", "quasi_random")
VARIANTS = (
    *(("reads", order) for order in (*ORDERS, "front to back")),
    *(("loader", order) for order in ORDERS),
)
NOISE_SIDE_PX = 192  # raw 111 KB, about the size of an ImageNet JPEG
CROP_PX = 32
PREFETCH_BATCHES = 3


def write_noise(path: Path, num_bytes: int) -> None:
    """Write a dataset file of raw noise images with about `num_bytes` bytes."""
    size = 3 * NOISE_SIDE_PX**2
    noise = memoryview(np.random.default_rng(0).bytes(64 << 20))
    starts = np.random.default_rng(1).integers(0, len(noise) - size, num_bytes // size)
    beton = BetonFile(path, len(starts), DEFAULT_PAGE_BYTES)
    for start in starts.tolist():
        image = bytes(noise[start : start + size])
        beton.add(Stored(image, NOISE_SIDE_PX, NOISE_SIDE_PX, MODE_RAW, "passed"), 0)
    beton.finish()
    beton.file.publish()


def drop_from_cache(paths: Sequence[Path]) -> float:
    """Drop the files from the page cache, and return the share of their pages that remains."""
    resident = pages = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # because only pages that are on disk can be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        is_resident = resident_pages(path)
        resident, pages = resident + int(is_resident.sum()), pages + len(is_resident)
    return resident / pages


def resident_pages(path: Path) -> np.ndarray:
    """Return a bool array: which memory pages of a file are in the page cache (mincore, own files only)."""
    mapped = np.memmap(path, np.uint8, "r")
    flags = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    if libc.mincore(mapped.ctypes.data, len(mapped), flags.ctypes.data):
        raise OSError(ctypes.get_errno(), "mincore failed")
    return (flags & 1).astype(bool)


def fresh_memory_gb_per_s() -> float:
    """Return the rate at which the kernel hands out memory, a bound on reads that miss the page cache."""
    num_bytes = 1 << 30
    with mmap.mmap(-1, num_bytes) as memory:
        start = time.perf_counter()
        for offset in range(0, num_bytes, mmap.PAGESIZE):
            memory[offset] = 1
        return num_bytes / (time.perf_counter() - start) / 1e9


class Storage(NamedTuple):
    """A reading of the counters of bytes that came from storage."""

    num_bytes: int  # of this process, read-ahead included
    disk_bytes: int  # of the file's disk, by all processes
    disk_requests: int

    @classmethod
    def look(cls, path: Path) -> "Storage":
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        device = path.stat().st_dev
        stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        num_requests, _, sectors, *_ = (
            (int(word) for word in stat.read_text().split()) if stat.exists() else (0, 0, 0)
        )
        return cls(int(counters["read_bytes"]), sectors * 512, num_requests)

    def minus(self, before: "Storage") -> "Storage":
        return Storage(*(now - then for now, then in zip(self, before, strict=True)))


def read_part(rows: SampleTable, part: slice) -> int:
    """Read samples, and return how many were not in the page cache (all if the file system cannot tell)."""
    samples, num_waits = rows.part(part), 0
    for i, num_bytes in enumerate(samples.num_bytes.tolist()):
        try:
            num_read = os.preadv(
                int(samples.fd[i]), [bytearray(num_bytes)], int(samples.offset[i]), os.RWF_NOWAIT
            )
        except OSError:
            num_read = 0
        if num_read < num_bytes:
            num_waits += 1
            assert len(read_bytes(samples, i)) == num_bytes
    return num_waits


def reads_by_order(data: Beton, order_name: str, epoch: int, options: argparse.Namespace) -> tuple[int, int]:
    """Read an epoch as the Loader does; return the number of samples, and of those a thread waited for."""
    batch_size = options.batch_size
    if order_name == "quasi_random":
        order, readahead = QuasiRandom(data, lanes=options.lanes, batch_size_per_rank=batch_size).epoch(
            epoch, 0, PREFETCH_BATCHES
        )
    else:
        order, readahead = epoch_order(0, epoch, data.num_samples), None
    steps = num_steps(len(order), batch_size, train=True)
    pending: deque[list[Future[int]]] = deque()
    num_waits = 0
    with ThreadPoolExecutor(options.workers) as pool:
        for step in range(steps):
            if len(pending) == PREFETCH_BATCHES:
                num_waits += sum(future.result() for future in pending.popleft())
            if readahead is not None:
                readahead.advance(step)
            rows = data.rows(step_indices(order, step, batch_size, 0, 1))
            parts = [slice(start, start + 16) for start in range(0, batch_size, 16)]
            pending.append([pool.submit(read_part, rows, part) for part in parts])
        num_waits += sum(future.result() for futures in pending for future in futures)
    if readahead is not None:
        readahead.close()
    return steps * batch_size, num_waits


def reads_from_front_to_back(data: Beton) -> int:
    """Read all files from front to back, a page at a time, and return the number of samples."""
    buffer = bytearray(data.shards[0].page_size)
    for shard in data.shards:
        offset = 0
        while num_read := os.preadv(shard.fd, [buffer], offset):
            offset += num_read
    return data.num_samples


def measure(
    data: Beton, options: argparse.Namespace, log: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure all variants in turn, each from an empty page cache; return rows and ratios."""
    looks_by_variant: dict[tuple[str, str], list[tuple[float, Storage, float]]] = {
        variant: [] for variant in VARIANTS
    }
    shares_waited: dict[str, list[float]] = {name: [] for name in ORDERS}
    with ExitStack() as stack:
        loaders = {
            name: stack.enter_context(
                Loader(
                    data, [ViewSpec(RandomResizedCrop(CROP_PX))], batch_size_per_rank=options.batch_size,
                    order=name, lanes=options.lanes, decoder=options.decoder, num_threads=options.workers,
                    prefetch_batches=PREFETCH_BATCHES,
                )
            )
            for name in ORDERS
        }  # fmt: skip
        for loader in loaders.values():
            next(loader.epoch(0))  # so that compilation is not timed

        def epoch(measured: str, name: str, number: int) -> int:
            if measured == "loader":
                return sum(len(batch.indices) for batch in loaders[name].epoch(number))
            if name == "front to back":
                return reads_from_front_to_back(data)
            num, num_waits = reads_by_order(data, name, number, options)
            shares_waited[name].append(num_waits / num)
            return num

        for repeat in range(options.repeats):
            for variant in VARIANTS if repeat % 2 else VARIANTS[::-1]:
                log(f"repeat {repeat + 1} of {options.repeats}: {variant[0]}, {variant[1]}")
                left_share = drop_from_cache(data.paths)
                before, start = Storage.look(data.paths[0]), time.perf_counter()
                num = epoch(*variant, repeat)
                rate = num / (time.perf_counter() - start)
                looks_by_variant[variant].append(
                    (rate, Storage.look(data.paths[0]).minus(before), left_share)
                )
                print(f"{variant[0]:7} {variant[1]:13} {rate:8,.0f} samples/s", flush=True)
    mean_bytes = data_bytes(data) / data.num_samples
    rows: list[dict[str, Any]] = []
    for (measured, name), values in looks_by_variant.items():
        rates, storage, left_over = zip(*values, strict=True)
        row = {"measured": measured, "order": name, "unit": "samples/s", **spread(rates)}
        row["samples_mb_per_s"] = round(row["median"] * mean_bytes / 1e6, 1)
        row["storage_gb_an_epoch"] = round(float(np.median([one.num_bytes for one in storage])) / 1e9, 3)
        if all(one.disk_requests for one in storage):
            sizes = [one.disk_bytes / one.disk_requests for one in storage]
            row["kib_a_request"] = round(float(np.median(sizes)) / 1024, 1)
        if measured == "reads" and name in ORDERS:
            row["share_waited_for"] = round(float(np.median(shares_waited[name])), 4)
        row["max_left_in_cache"] = round(max(left_over), 6)
        rows.append(row)
    ratios = []
    for measured, name, other in (
        ("reads", "quasi_random", "random"), ("loader", "quasi_random", "random"),
        ("reads", "random", "front to back"), ("reads", "quasi_random", "front to back"),
    ):  # fmt: skip
        pairs = zip(looks_by_variant[measured, name], looks_by_variant[measured, other], strict=True)
        by_repeat = spread([ours[0] / theirs[0] for ours, theirs in pairs])
        ratios.append({"what": f"{name} / {other}", "measured": measured, **by_repeat})
    return rows, ratios


def data_bytes(data: Beton) -> int:
    """Return the bytes of all samples."""
    parts = np.array_split(np.arange(data.num_samples), -(-data.num_samples // (1 << 16)))
    return sum(int(data.rows(part).num_bytes.sum()) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="", help="a dataset file or a glob of shards")
    parser.add_argument("--folder", help="where noise is written without --data")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of noise")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--decoder", default="auto")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RUNS / "order.json")
    options = parser.parse_args()
    check_out(options.out)
    machine = environment()
    memory = [fresh_memory_gb_per_s() for _ in range(3)]
    with (
        progress() as log,
        tempfile.TemporaryDirectory(prefix="fastpsl-bench-", dir=options.folder) as scratch,
    ):
        source = options.data
        if not source:
            log(f"writing {options.gigabytes:g} GB of noise")
            source = str(Path(scratch) / "noise.beton")
            write_noise(Path(source), int(options.gigabytes * 1e9))
        with Beton(source) as data:
            num_bytes = sum(path.stat().st_size for path in data.paths)
            about = {
                "name": Path(source).name, "num_samples": data.num_samples, "num_shards": len(data.paths),
                "gigabytes": round(num_bytes / 1e9, 3), "page_mib": data.shards[0].page_size / (1 << 20),
                "mean_bytes": round(num_bytes / data.num_samples),
            }  # fmt: skip
            ahead = options.lanes * GROUP_PAGES * 2 * data.shards[0].page_size
            rows, ratios = measure(data, options, log)
    for ratio in ratios:
        print(f"{ratio['measured']:7} {ratio['what']} {ratio['median']:.2f}")
    save_result(
        options.out, "order", machine, data=about,
        settings={
            "repeats": options.repeats, "batch_size": options.batch_size, "lanes": options.lanes,
            "num_threads": options.workers, "prefetch_batches": PREFETCH_BATCHES,
            "decoder": options.decoder,
            "crop_px": CROP_PX, "max_asked_ahead_gb": round(ahead / 1e9, 3),
        },
        rows=rows, ratios=ratios,
        notes=[
            ("the file was dropped from this machine's page cache before each epoch; "
             "whether a host below it caches is not known"),
            (f"fresh memory came at {np.median(memory):.1f} GB/s: "
             "rows that are near it say little of the storage"),
        ],
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
