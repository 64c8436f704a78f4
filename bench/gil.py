"""At how many cores the interpreter lock holds our Loader back, and what more threads than cores cost.

    python bench/gil.py                    the decoder that `auto` takes on the CPU, batch 256; minutes
    python bench/gil.py --sizes 64 --threads 32

A batch's CPU time under the lock is that of its Python, which has two parts. One is plan, allocation,
hand-over and assembly, measured with a decoder that does nothing. The other is the decoder's own Python, once
per chunk; chunks are those of 32 threads. All else runs without the lock.

The whole over the part under the lock is the number of cores at which the lock is always taken. More cores
add nothing. Threads beyond the cores show what waiting, switching and their memory cost: CPU time, page
faults, switches. Cores that work at once are not simulated. Crops are those of bench/sizes.py. See
bench/README.md.
"""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.gil_tables import SATURATED, gil_table, growth
from bench.photos import write_photos
from bench.program import check_out, check_positive, progress, run_program, wide_console
from bench.schema import RUNS, data_record, environment, save_result, spread
from bench.size_data import crop_px, drawn
from fastpsl.files.workers import default_num_threads
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders.codes import AREA
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.decoders.memory import Arenas
from fastpsl.pipelines.loader.by_chunks import ByChunks, _begin
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import epoch_order, step_indices
from fastpsl.pipelines.loader.pending_batch import PendingBatch, chunk_samples
from fastpsl.pipelines.views import ViewSpec
from fastpsl.scripts.command_line import parse

Size = Literal["64", "160", "224", "256", "500", "originals"]
_MANY = 32  # threads whose chunks are counted
_CALLS = 200  # of the decoder, for the Python around it


@dataclass(frozen=True, kw_only=True)
class Options:
    sizes: tuple[Size, ...] = ("64", "224", "500")
    threads: tuple[int, ...] = (32, 96)
    """Beside one per core."""
    decoder: str = "auto"
    """Of the CPU, by chunks of a batch."""
    batch_size: int = 256
    num: int = 2048
    """Drawn images of a size; a repeat is an epoch of them."""
    drawn: Path = RUNS / "drawn"
    """Folder of the drawn images, kept for the next run."""
    repeats: int = 5
    out: Path = RUNS / "gil.json"

    def check(self) -> None:
        """Raise ValueError if an option is out of range."""
        check_positive(self, "batch_size", "num", "repeats")
        if not self.sizes or min(self.threads, default=1) < 1:
            raise ValueError("--sizes and --threads: give at least one size, threads from 1")
        if self.num < self.batch_size:
            raise ValueError(f"--num {self.num}: it must be --batch-size {self.batch_size} or more")


def open_loader(data: Beton, options: Options, size: str, num_threads: int, decoder: str) -> Loader:
    view = ViewSpec(RandomResizedCrop(crop_px(size)))
    return Loader(
        data, [view], batch_size_per_rank=options.batch_size, decoder=decoder, num_threads=num_threads
    )


def costs(loader: Loader, epoch: int) -> dict[str, float]:
    """Return a batch's CPU milliseconds, page faults and voluntary switches, of the whole process."""
    before, cpu_s = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    num = sum(1 for _ in loader.epoch(epoch))
    after, cpu_s = resource.getrusage(resource.RUSAGE_SELF), time.process_time() - cpu_s
    return {
        "cpu": 1e3 * cpu_s / num,
        "page faults": (after.ru_minflt - before.ru_minflt) / num,
        "switches": (after.ru_nvcsw - before.ru_nvcsw) / num,
    }


def without_decoding(loader: Loader) -> None:
    """Make a loader's decoder do nothing, so that its batches cost their Python alone."""
    loader.decoder.decode_part = lambda request, part: None  # type: ignore[method-assign,union-attr]


def python_parts(loader: Loader, epoch: int) -> dict[str, float]:
    """Return the CPU milliseconds of a batch's plan, allocation and assembly, each the median of an epoch."""
    assert isinstance(loader.decoder, Decoder)
    order = epoch_order(loader.seed, epoch, loader.num_samples)
    arenas = Arenas()
    times: dict[str, list[float]] = {"plan": [], "allocation": [], "assembly": []}
    for step in range(loader.num_steps):
        numbers = step_indices(order, step, loader.batch_size_per_rank, 0, 1)
        pending = PendingBatch(loader._spec, epoch, step, numbers)
        begin = partial(_begin, pending, loader.decoder, arenas)
        works: tuple[Callable[[], None], ...] = (pending.plan, begin, pending.finish)
        for name, work in zip(times, works, strict=True):
            times[name].append(cpu_ms(work))
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - start)


def decoder_call_ms(decoder: Decoder, data: Beton, num_samples: int) -> float:
    """Return the CPU milliseconds of a decoder's Python around a chunk, by chunks of one and of more samples.

    Args:
        decoder: The decoder.
        data: Images of few pixels.
        num_samples: How many make a chunk.
    """
    rows = data.rows(np.arange(num_samples))
    boxes = np.stack([0 * rows.height, 0 * rows.width, rows.height, rows.width, 0 * rows.height + AREA], 1)
    boxes, out = boxes.astype(np.int32), np.empty((num_samples, 1, 1, 3), np.uint8)
    request = decoder.begin(rows, [boxes], [out])

    def chunk(num: int) -> float:
        times = [cpu_ms(lambda: decoder.decode_part(request, slice(0, num))) for _ in range(_CALLS)]
        return statistics.median(times)

    one, many = chunk(1), chunk(num_samples)
    return max(0.0, one - (many - one) / (num_samples - 1))


def measure_size(
    size: str, data: Beton, tiny: Beton, options: Options, log: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows and ratios of a size; threads are measured in turn, after an epoch to warm up."""
    cores = default_num_threads()
    counts = list(dict.fromkeys((cores, *options.threads)))
    values: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        loaders = {
            num: stack.enter_context(open_loader(data, options, size, num, options.decoder)) for num in counts
        }
        decoder = loaders[cores].decoder
        if not isinstance(decoder, Decoder):
            raise ValueError(  # noqa: TRY004 - of an option
                f"--decoder {options.decoder}: it decodes whole batches; give auto, ffcv or pillow"
            )
        idle = stack.enter_context(open_loader(data, options, size, 1, "synthetic"))
        without_decoding(idle)
        for loader in (*loaders.values(), idle):
            costs(loader, 0)
        assert isinstance(idle._engine, ByChunks)
        idle._engine._workers.num_threads = _MANY  # for the size of its chunks; there is one thread
        samples = tiny.num_samples
        for repeat in range(options.repeats):
            log(f"{size}: repeat {repeat + 1} of {options.repeats}")
            for num in counts[:: -1 if repeat % 2 else 1]:
                for measured, value in costs(loaders[num], 1 + repeat).items():
                    values.setdefault((measured, num), []).append(value)
            parts = python_parts(idle, 1 + repeat)
            parts["decoder's Python"] = -(-options.batch_size // samples) * decoder_call_ms(
                decoder, tiny, samples
            )
            all_python = costs(idle, 1 + repeat)["cpu"] + parts["decoder's Python"]
            parts["hand-over"] = max(1e-6, all_python - sum(parts.values()))
            for measured, value in (parts | {"under the lock": all_python}).items():
                values.setdefault((measured, 1), []).append(value)
    rows = [
        {
            "measured": measured, "size": size, "num_threads": num, "decoder": decoder.name,
            "unit": "a batch" if measured in ("page faults", "switches") else "ms of CPU a batch",
            **spread([max(value, 1e-6) for value in each]),
        }
        for (measured, num), each in values.items()
    ]  # fmt: skip
    whole, locked = values["cpu", cores], values["under the lock", 1]
    labels = {"size": size, "decoder": decoder.name}
    ratios = [
        {"what": growth(num), "num_threads": num, **labels,
         **spread([a / b for a, b in zip(values["cpu", num], whole, strict=True)])}
        for num in counts if num != cores
    ]  # fmt: skip
    saturated = [max(a, b) / b for a, b in zip(whole, locked, strict=True)]
    return rows, [*ratios, {"what": SATURATED, "num_threads": cores, **labels, **spread(saturated)}]


def main() -> None:
    options: Options = parse(Options, description=__doc__)
    options.check()
    check_out(options.out)
    console = wide_console()
    machine = environment()
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    record: dict[str, Any] = {"num_samples": 0, "name": "drawn images"}
    samples = chunk_samples(options.batch_size, _MANY)
    tiny_path = options.drawn / f"16-px-{samples}.beton"
    with progress() as log:
        if not tiny_path.exists():
            options.drawn.mkdir(parents=True, exist_ok=True)
            write_photos(tiny_path, samples, sides=((16, 16, 1.0),))
        with Beton(tiny_path) as tiny:
            for size in options.sizes:
                log(f"{size}: the images")
                path = drawn(size, options.num, options.drawn)
                with Beton(path) as data:
                    about = data_record(data, str(path))
                    record["num_samples"] += about["num_samples"]
                    record[f"mean_bytes_{size}"] = about["mean_bytes"]
                    for all_of, some in zip(
                        (rows, ratios), measure_size(size, data, tiny, options, log), strict=True
                    ):
                        all_of += some
    result = save_result(
        options.out, "gil", machine, data=record,
        settings={
            "repeats": options.repeats, "batch_size": options.batch_size,
            "num_cores": default_num_threads(), "num_views": 1,
            "chunk_samples": samples,
        },
        rows=rows, ratios=ratios,
    )  # fmt: skip
    console.print(gil_table({options.out.name: result}))
    console.print(str(options.out))


if __name__ == "__main__":
    run_program(main)
