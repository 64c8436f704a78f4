"""Our Loader by decoder beside others on the same dataset file, crops, batch and cores, in turn.

    python bench/loaders.py --data photos.beton  `dali` by threads and by the hardware decoder's share

Each loader has a process of its own, and nothing else runs. It makes one and two random resized crops of
each sample, uint8 on the device. Beside ours stand ffcv's Loader and two forms of DALI's own reader. One
decodes only what one crop needs, the other whole images, and ours is held to it. On a GPU it also tells how
busy the JPEG engines are, and the memory in use after each of three epochs. Writes a JSON; see
bench/README.md. bench/sizes.py stands beside more peers.
"""

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench import peers
from bench.charts import publish
from bench.interleaved import Rates, measure
from bench.peers import TITLES, Work
from bench.peers.ours import decoder_names, open_ours, why_no_decoder
from bench.program import check_positive, counted, options_of, progress, run_program
from bench.schema import RUNS, data_record, environment, over
from fastpsl.doctor.loader_rates import jpeg_utilisation, sampled
from fastpsl.engine.distributed import choose_device
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders.dali_pipeline import HW_DECODER_LOAD
from fastpsl.pipelines.embedded.draw_sample import sample_paths

NUM_EPOCHS = 3  # epochs after which device memory is read


LEFT_OUT = ("pillow", "synthetic")  # of ours, unless they are asked for
PEERS = ("ffcv_loader", "dali_reader", "dali_whole")
RATIOS = {kind: f"samples/s / {TITLES[kind]}" for kind in ("ffcv_loader", "dali_whole")}


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None  # A dataset file, or a quoted glob of shards. Without it: the embedded sample.
    decoders: tuple[str, ...] | None = None  # Ours. Default: all but pillow, that of `auto` first.
    views: tuple[int, ...] = (1, 2)  # Crops of each sample.
    shares: tuple[float, ...] = (0.65, 0.9, 1.0)
    """Of `dali` on a GPU: the part of each batch that its hardware JPEG decoder gets, 0 to 1."""
    threads: tuple[int, ...] | None = None
    """At the default share. Default: 4, 8 and 16 on a GPU, as far as there are cores, else the cores."""
    size_px: int = 224
    batch_size: int | None = None  # Default: 256 on a GPU, else 32.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    repeats: int | None = None  # Default: 5, and 3 for the sample.
    seconds: float | None = None  # Length of a timed region. Default: 2, and 0.3 for the sample.
    limit_s: float | None = None  # No further repeat begins after it. Default: 420, and 45 for the sample.
    peers: bool = True  # ffcv's Loader and DALI's own reader.
    out: Path = RUNS / "loaders.json"

    def check(self) -> None:
        """Raise ValueError if options are out of range or contradict each other."""
        check_positive(self, "size_px", "batch_size", "repeats", "seconds", "limit_s")
        value_lists = [self.views, *(each for each in (self.threads, self.decoders) if each is not None)]
        if not all(value_lists) or min((*self.views, *(self.threads or ()))) < 1:
            raise ValueError("--views, --threads and --decoders: give at least one of each, numbers from 1")
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"--shares {' '.join(map(str, self.shares))}: each must be from 0 to 1")


def variants(options: Options, work: Work) -> tuple[list[Work], list[dict[str, str]]]:
    """Return what can be measured on this machine, and what cannot, with the reason."""
    is_cuda, missing = work.device != "cpu", []
    share = HW_DECODER_LOAD if is_cuda else None
    works: list[Work] = []

    def add(what: str, reason: str | None, *these: Work) -> None:
        if reason:
            missing.append({"what": what, "reason": reason})
        else:
            works.extend(these)

    threads = _threads(options, is_cuda)
    device = torch.device(work.device)
    with Beton(work.data) as data:
        names = decoder_names(data, device)
        reasons = {name: why_no_decoder(name, data, device) for name in options.decoders or names}
    for name, reason in reasons.items():
        if options.decoders is None and name in LEFT_OUT:
            continue
        if name != "dali":
            add(f"decoder {name}", reason, replace(work, kind=name))
            continue
        dali_work = replace(work, kind=name, hw_decoder_load=share)
        add("decoder dali", reason, *(replace(dali_work, num_threads=num) for num in threads))
        more_works = [replace(dali_work, hw_decoder_load=each) for each in options.shares if each != share]
        # Few threads profit the most from the hardware decoder.
        more_works += [
            replace(each, num_threads=min(threads)) for each in more_works if each.hw_decoder_load == 1
        ]
        add(
            "decoder dali by the hardware decoder's share",
            reason if is_cuda else "no CUDA device",
            *more_works,
        )
    for kind in PEERS:
        reason = peers.why_missing(kind, work.data) if options.peers else "left out by --no-peers"
        each = replace(work, kind=kind, hw_decoder_load=share if kind == "dali_whole" else None)
        add(TITLES[kind], reason, each)
        if kind == "dali_whole" and is_cuda:
            add("DALI's reader on the CPU", reason, replace(work, kind="dali_reader", device="cpu"))
    return list(dict.fromkeys(works)), missing


def _threads(options: Options, is_cuda: bool) -> list[int]:
    cores = default_num_threads()
    counts = options.threads or ((4, 8, 16) if is_cuda else (cores,))
    return sorted({num if options.threads else min(num, cores) for num in counts})


def labels(work: Work) -> dict[str, Any]:
    """Return a row's labels of a loader, besides its name."""
    return {"device": work.device, "num_threads": work.num_threads, "hw_decoder_load": work.hw_decoder_load}


def title(kind: str, device: str, num_threads: int, hw_decoder_load: float | None) -> str:
    """Return a loader's name for people."""
    share = "" if hw_decoder_load is None else f", share {hw_decoder_load:g}"
    on_cpu = ", on the CPU" if kind.startswith("dali") and device == "cpu" else ""
    return f"{TITLES.get(kind, f'ours, {kind}')}{on_cpu}, {counted(num_threads, 'thread')}{share}"


def tabulate(rates: list[Rates]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows, and the ratios to the peers of RATIOS, repeat by repeat."""
    rows, ratios = [], []
    for ours in rates:
        row = ours.row("decode", **labels(ours.work))
        row |= {"busy_percent": max(ours.highest)} if ours.highest else {}
        rows.append(row | {"views_per_s": round(ours.num_views * row["median"], 1)})
        for theirs in rates if ours.work.kind not in TITLES else ():
            ratio_name = RATIOS.get(theirs.work.kind)
            if ratio_name and theirs.num_views == ours.num_views:
                about = {"decoder": ours.work.kind, **labels(ours.work), "num_views": ours.num_views}
                ratios.append({"what": ratio_name, **about, **over(ours.values, theirs.values)})
    return rows, ratios


def memory_by_epoch(work: Work, num_views: int) -> list[dict[str, int]]:
    """Return `Loader.device_memory()` after each of NUM_EPOCHS epochs."""
    memory = []
    with open_ours(work, num_views) as loader:
        for epoch in range(NUM_EPOCHS):
            for _ in loader.epoch(epoch):
                pass
            memory.append(loader.device_memory())
    return memory


def main() -> None:
    options = options_of(Options, __doc__)
    start, is_sample = time.perf_counter(), options.data is None
    device = choose_device(options.device, 0)
    is_cuda, machine = device.type == "cuda", environment(device)
    path = options.data or str(sample_paths().train)
    repeats = options.repeats or (3 if is_sample else 5)
    seconds = options.seconds or (0.3 if is_sample else 2.0)
    batch_size = options.batch_size or (256 if is_cuda else 32)
    limit_s = options.limit_s or (45.0 if is_sample else 420.0)
    with Beton(path) as data:
        record = data_record(data, options.data)
    num_samples = record["num_samples"]
    if batch_size > num_samples:
        raise ValueError(
            f"--batch-size {batch_size}: there are {num_samples} samples; lower it or give more data"
        )
    memory: list[dict[str, int]] = []
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as files:
        num_threads = max(_threads(options, is_cuda))
        work = Work(
            "", path, files, batch_size, num_threads, options.size_px, str(device) if is_cuda else "cpu"
        )  # fmt: skip
        works, missing = variants(options, work)
        if is_cuda and works and works[0].kind == "dali":
            log("device memory")
            dali_work = replace(works[0], num_threads=num_threads)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memory = pool.submit(memory_by_epoch, dali_work, max(options.views)).result()
        else:
            missing.append({"what": "device memory by epoch", "reason": "no CUDA device, or no DALI for it"})
        with jpeg_utilisation(device) if is_cuda else nullcontext() as read:
            rates, failed, notes = measure(
                {title(each.kind, **labels(each)): each for each in works}, options.views, repeats=repeats,
                seconds=seconds, deadline=start + limit_s, log=log,
                watch=partial(sampled, read) if read else None,
            )  # fmt: skip
    missing += failed
    if not rates:
        raise ValueError(f"nothing could be measured; {missing[0]['what']}: {missing[0]['reason']}")
    rows, ratios = tabulate(rates)
    publish(
        options.out, "decode", machine,
        "decoder device num_threads hw_decoder_load busy_percent num_views cores_used first_batch_s",
        data=record,
        settings={
            "repeats": len(rates[0].values), "seconds": seconds, "batch_size": batch_size,
            "num_threads": num_threads,
            "size_px": options.size_px, "device": device.type, "crop": "RandomResizedCrop",
            **{f"device_memory_{name}": [each[name] for each in memory] for name in (memory or [{}])[0]},
        },
        rows=rows, ratios=ratios, not_measured=missing, notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
