"""Decoding and cropping alone: our `dali` decoder by threads and by the hardware decoder's share, beside DALI's own reader and ffcv's Loader.

    python bench/decode.py                           the embedded sample, under a minute on a CPU
    python bench/decode.py --data photos.beton       photos, such as bench/photos.py makes: on a GPU every row

One and two random resized crops of each sample from one decode (ffcv's Loader decodes for each), uint8 on the device, each variant in
a process of its own, in turn; epochs' ends count. DALI's reader stands there as its users have it for one crop (it decodes only what
the crop needs) and with whole pictures and its own random_resized_crop, which is what ours is held to. On a GPU also the memory that
is in use after each of three epochs. Writes a JSON; see bench/README.md.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench import peers
from bench.peers import Peer, Work
from bench.program import check_out, check_positive, counted, progress, run_program
from bench.schema import RUNS, SCHEMA, command_line, data_record, environment, finish, spread, write_result
from fastpsl.engine.command_line import parse
from fastpsl.engine.distributed import choose_device
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import dali, libffcv
from fastpsl.pipelines.decoders.dali_graph import HW_DECODER_LOAD
from fastpsl.pipelines.loader.workers import default_num_threads
from fastpsl.pipelines.sample.betons import sample_paths

WHOLE = "dali_whole"  # of peer_batches.OPEN
TITLES = peers.TITLES | {WHOLE: "DALI's reader, whole pictures"}
NUM_EPOCHS = 3  # whose memory is asked for


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None
    """A beton, or a quoted glob of shards. Without it: the embedded sample."""
    views: tuple[int, ...] = (1, 2)
    """Crops of each sample."""
    shares: tuple[float, ...] = (0.65, 0.9, 1.0)
    """On a GPU: the part of each batch that its hardware JPEG decoder gets, 0 to 1; CUDA kernels decode the rest."""
    threads: tuple[int, ...] | None = None
    """Decoding threads, at the default share. Default: 4, 8 and 16 on a GPU, as far as there are cores, else the cores."""
    size_px: int = 224
    batch_size: int | None = None
    """Default: 256 on a GPU, else 32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    repeats: int | None = None
    """Default: 5, and 3 for the sample."""
    seconds: float | None = None
    """Length of a timed region. Default: 2, and 0.3 for the sample."""
    limit_s: float | None = None
    """No further repeat begins after it. Default: 420, and 45 for the sample."""
    peers: bool = True
    """ffcv's Loader and DALI's own reader."""
    out: Path = RUNS / "decode.json"

    def check(self) -> None:
        """ValueError where a value cannot be."""
        check_positive(self, "size_px", "batch_size", "repeats", "seconds", "limit_s")
        if (
            not self.views
            or min(self.views) < 1
            or (self.threads is not None and min(self.threads, default=0) < 1)
        ):
            raise ValueError("--views and --threads: give at least one of each, from 1")
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"--shares {' '.join(map(str, self.shares))}: each must be from 0 to 1")


def variants(options: Options, work: Work) -> tuple[list[Work], list[dict[str, str]]]:
    """What is measured here, and what is not, with the reason. `work`: with the most threads."""
    is_cuda, missing = work.device != "cpu", []
    share = HW_DECODER_LOAD if is_cuda else None
    found: list[Work] = []

    def add(what: str, reason: str | None, *works: Work) -> None:
        if reason:
            missing.append({"what": what, "reason": reason})
        else:
            found.extend(works)

    ours = replace(work, kind="dali", hw_decoder_load=share)
    by_threads = [replace(ours, num_threads=num) for num in _threads(options, is_cuda)]
    add("decoder dali", dali.why_missing(torch.device(work.device)), *by_threads)
    others = [replace(ours, hw_decoder_load=each) for each in options.shares if each != share]
    # The fewest threads are the most in need of the hardware's help.
    others += [
        replace(each, num_threads=min(_threads(options, is_cuda)))
        for each in others
        if each.hw_decoder_load == 1
    ]
    add("decoder dali by the hardware decoder's share", None if is_cuda else "no CUDA device", *others)
    add("decoder ffcv", libffcv.why_missing(), replace(work, kind="ffcv"))
    for kind in ("ffcv_loader", "dali_reader", WHOLE):
        reason = _why_no_peer(options, "dali_reader" if kind == WHOLE else kind, work)
        add(TITLES[kind], reason, replace(work, kind=kind, hw_decoder_load=share if kind == WHOLE else None))
    if is_cuda:
        reason = _why_no_peer(options, "dali_reader", work)
        add("DALI's reader on the CPU", reason, replace(work, kind="dali_reader", device="cpu"))
    return list(dict.fromkeys(found)), missing


def _why_no_peer(options: Options, kind: str, work: Work) -> str | None:
    return peers.why_missing(kind, work.data) if options.peers else "left out by --no-peers"


def _threads(options: Options, is_cuda: bool) -> list[int]:
    cores = default_num_threads()
    wanted = options.threads or ((4, 8, 16) if is_cuda else (cores,))
    return sorted({num if options.threads else min(num, cores) for num in wanted})


def title(work: Work) -> str:
    share = "" if work.hw_decoder_load is None else f", share {work.hw_decoder_load:g}"
    on_cpu = ", on the CPU" if work.kind.startswith("dali") and work.device == "cpu" else ""
    return (
        f"{TITLES.get(work.kind, f'ours, {work.kind}')}{on_cpu}, {counted(work.num_threads, 'thread')}{share}"
    )


def measure(
    works: Sequence[Work],
    views: Sequence[int],
    repeats: int,
    seconds: float,
    deadline: float,
    say: Callable[[str], None],
) -> tuple[dict[tuple[Work, int], list[tuple[float, float]]], list[dict[str, str]]]:
    """(samples/s, cores used) by variant and number of views, all in turn, every other time backwards; and what failed.

    deadline: of time.perf_counter(); one repeat is made at least.
    """
    values: dict[tuple[Work, int], list[tuple[float, float]]] = {}
    running: dict[Work, Peer] = {}
    missing = []
    try:
        for work in works:
            say(f"{title(work)}: starting")
            try:
                running[work] = Peer(work)
                for num in views:
                    running[work].samples_per_s(num, 0.0)
            except RuntimeError as error:
                missing.append({"what": title(work), "reason": f"failed: {error}"})
                continue
            values |= {(work, num): [] for num in views}
        keys = sorted(values, key=lambda key: key[1])  # what is compared stands side by side
        for number in range(repeats):
            if number and time.perf_counter() > deadline:
                break
            say(f"repeat {number + 1} of {repeats}")
            for work, num in keys if number % 2 else keys[::-1]:
                rate = running[work].samples_per_s(num, seconds)
                values[work, num].append((rate, running[work].cores_used or 0.0))
    finally:
        for peer in running.values():
            peer.close()
    return values, missing


def tabulate(
    values: dict[tuple[Work, int], list[tuple[float, float]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows, and the ratios to DALI's reader and ffcv's Loader, repeat by repeat."""
    rows, ratios = [], []
    for (work, num), measured in values.items():
        rates, cores = [rate for rate, _ in measured], [each for _, each in measured]
        labels = {
            "decoder": work.kind, "device": work.device, "num_threads": work.num_threads,
            "hw_decoder_load": work.hw_decoder_load, "num_views": num,
        }  # fmt: skip
        row = {"measured": "decode", **labels, "unit": "samples/s", **spread(rates)}
        row |= {"views_per_s": round(num * row["median"], 1), "cores_used": round(spread(cores)["median"], 3)}
        rows.append(row)
        if work.kind in TITLES:
            continue
        for (other, other_num), others in values.items():
            if other.kind in (WHOLE, "ffcv_loader") and other_num == num:
                pairs = zip(rates, (rate for rate, _ in others), strict=True)
                what = f"samples/s / {TITLES[other.kind]}"
                ratios.append({"what": what, **labels, **spread([ours / theirs for ours, theirs in pairs])})
    return rows, ratios


def memory_by_epoch(work: Work, num_views: int) -> list[dict[str, int]]:
    """`Loader.device_memory()` after each of a few epochs."""
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    views, found = [ViewSpec(RandomResizedCrop(work.size_px))] * num_views, []
    with (
        Beton(work.data) as data,
        Loader(
            data, views, batch_size=work.batch_size, decoder=work.kind, num_threads=work.num_threads,
            device=work.device, hw_decoder_load=work.hw_decoder_load,
        ) as loader,
    ):  # fmt: skip
        for epoch in range(NUM_EPOCHS):
            for _ in loader.epoch(epoch):
                pass
            found.append(loader.device_memory())
    return found


def show(result: dict[str, Any], console: Console) -> None:
    views = sorted({row["num_views"] for row in result["rows"]})
    table = Table(
        "decode and crop",
        *(counted(num, "view") for num in views),
        *(["views/s"] if max(views) > 1 else []),  # of one view it is samples/s again
        "cores",
        title="samples/s (medians)",
    )
    by_variant: dict[str, dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        work = Work(row["decoder"], "", "", 0, row["num_threads"], 0, row["device"], row["hw_decoder_load"])
        by_variant.setdefault(title(work), {})[row["num_views"]] = row
    for name, found in by_variant.items():
        most = found[max(found)]
        rates = (f"{found[num]['median']:,.0f}" if num in found else "" for num in views)
        of_views = [f"{most['views_per_s']:,.0f}"] if max(views) > 1 else []
        table.add_row(name, *rates, *of_views, f"{most['cores_used']:.1f}")
    console.print(table)
    for ratio in result["ratios"]:
        if ratio["decoder"] == "dali":
            work = Work("dali", "", "", 0, ratio["num_threads"], 0, ratio["device"], ratio["hw_decoder_load"])
            where = f"{title(work)}, {counted(ratio['num_views'], 'view')}"
            other = ratio["what"].removeprefix("samples/s / ")
            console.print(f"{where}: {ratio['median']:.2f} times as fast as {other}")
    for missing in result["not_measured"]:
        console.print(f"{missing['what']}: {missing['reason']}")
    for note in result["notes"]:
        console.print(note)


def main() -> None:
    options: Options = parse(Options, description=__doc__)
    options.check()
    check_out(options.out)
    console = Console(highlight=False, soft_wrap=True)
    device, is_sample, start = choose_device(options.device, 0), options.data is None, time.perf_counter()
    machine = environment(device)
    path = options.data or str(sample_paths().train)
    repeats = options.repeats or (3 if is_sample else 5)
    seconds = options.seconds or (0.3 if is_sample else 2.0)
    batch_size = options.batch_size or (256 if device.type == "cuda" else 32)
    with Beton(path) as data:
        record = data_record(data, options.data)
        num_samples = data.num_samples
    if batch_size > num_samples:
        raise ValueError(
            f"--batch-size {batch_size}: there are {num_samples} samples; lower it or give more data"
        )
    memory: list[dict[str, int]] = []
    notes = []
    with progress() as say, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as files:
        work = Work(
            "dali", path, files, batch_size, max(_threads(options, device.type == "cuda")), options.size_px,
            "cpu" if device.type == "cpu" else str(device),
        )  # fmt: skip
        works, missing = variants(options, work)
        if device.type == "cuda" and works[0].kind == "dali":
            say("device memory")
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                ours = replace(work, hw_decoder_load=HW_DECODER_LOAD)
                memory = pool.submit(memory_by_epoch, ours, max(options.views)).result()
        if {each.kind for each in works} & {"dali_reader", WHOLE}:
            num_files = peers.copy_out(path, Path(files), num_shards=1)
            if num_files < num_samples:
                notes.append(f"DALI's reader reads {num_files:,} of the pictures, taken in even steps")
        deadline = start + (options.limit_s or (45.0 if is_sample else 420.0))
        values, failed = measure(works, options.views, repeats, seconds, deadline, say)
    if not values:
        raise ValueError(
            f"nothing could be measured; {(missing + failed)[0]['what']}: {(missing + failed)[0]['reason']}"
        )
    rows, ratios = tabulate(values)
    result: dict[str, Any] = {
        "schema": SCHEMA, "bench": "decode", "command": command_line(), "environment": machine, "data": record,
        "settings": {
            "repeats": len(next(iter(values.values()))), "seconds": seconds, "batch_size": batch_size, "size_px": options.size_px,
            "device": device.type, "crop": "RandomResizedCrop",
            **{f"device_memory_{name}": [each[name] for each in memory] for name in (memory[0] if memory else ())},
        },
        "rows": rows, "ratios": ratios, "not_measured": missing + failed, "notes": notes + finish(machine),
    }  # fmt: skip
    if not memory:
        result["not_measured"].append(
            {"what": "device memory by epoch", "reason": "no CUDA device, or no DALI for it"}
        )
    write_result(options.out, result)
    show(result, console)
    console.print(str(options.out))


if __name__ == "__main__":
    run_program(main)
