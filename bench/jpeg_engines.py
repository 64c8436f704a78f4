"""Whether a GPU's JPEG engines work for the decoder `dali`.

    python bench/jpeg_engines.py --data photos.beton

It starts our loader once with nvImageCodec's log, and keeps the lines that tell how many samples of a batch
the engines get. Then it times our loader beside DALI's own reader, by the engines' share of a batch, in turn.
Meanwhile it reads from NVML how busy the engines are. After a minute (--limit-s) no repeat begins, except the
first. It exits with 1 if a GPU's engines stay idle.

Without a GPU there are no engines: shares are left out, and the log tells the size of the first batch alone.

Writes a JSON; see bench/README.md.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench import peers
from bench.interleaved import Rates, measure
from bench.loaders import labels, title
from bench.peers import Work
from bench.peers.ours import why_no_decoder
from bench.program import check_out, check_positive, progress, run_program
from bench.schema import RUNS, data_record, environment, save_result, spread
from bench.tables import show
from fastpsl.doctor.jpeg_engines import IDLE_PERCENT, jpeg_utilisation, sampled
from fastpsl.engine.distributed import choose_device
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders.dali import num_engines, nvjpeg_library, why_slower
from fastpsl.pipelines.decoders.dali_pipeline import HW_DECODER_LOAD
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.command_line import parse

PEER = "dali_whole"
LOG_LIMIT_S = 60.0
# Lines of nvImageCodec 0.9 at level 3, without the colours and the level before them.
_TOLD = re.compile(
    r"[^\]]*selecting max batch size to \d+.*|HW decoder .*|create nvjpeg_\w+.*|decode num_samples=\d+"
)
_FIRST_BATCH = re.compile(r"decode num_samples=(\d+)")
_OF_ENGINES = re.compile(r"nvjpeg_hw\w* selecting max batch size to (\d+)")


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None
    """A dataset file. Without it: the embedded sample, whose images are smaller than photos."""
    shares: tuple[float, ...] = (0.65, HW_DECODER_LOAD)
    """The engines' parts of each batch, 0 to 1."""
    threads: int | None = None
    """Decoding threads. Default: 8, or the cores if there are fewer."""
    size_px: int = 224
    batch_size: int | None = None
    """Default: 256 on a GPU, else 32."""
    repeats: int = 3
    seconds: float = 1.0
    """Length of a timed region."""
    limit_s: float = 60.0
    """No repeat begins after it, except the first."""
    peers: bool = True
    """DALI's own reader."""
    out: Path = RUNS / "jpeg_engines.json"

    def check(self) -> None:
        """Raise ValueError if options are out of range."""
        check_positive(self, "threads", "size_px", "batch_size", "repeats", "seconds", "limit_s")
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"--shares {' '.join(map(str, self.shares))}: give some from 0 to 1")


def told_lines(log: str) -> list[str]:
    """Return the lines of nvImageCodec's log that tell of decoders and batches, each once, in their order."""
    plain = (re.sub(r"\x1b\[[\d;]*m", "", line) for line in log.splitlines())
    texts = (line.rpartition("] ")[2].strip() for line in plain)
    return list(dict.fromkeys(text for text in texts if _TOLD.fullmatch(text)))


def first_number(pattern: re.Pattern[str], lines: Sequence[str]) -> int | None:
    """Return the number of the first line that has one."""
    return next((int(match[1]) for line in lines if (match := pattern.search(line))), None)


def log_of(work: Work) -> list[str]:
    """Start our loader with nvImageCodec's log, read a batch, and return the lines of `told_lines`."""
    try:
        process = subprocess.run(
            [sys.executable, "-m", "bench.peers.serve", json.dumps(asdict(work)), "1"],
            input="", capture_output=True, text=True, errors="replace", timeout=LOG_LIMIT_S, check=False,
            env=os.environ | {"DALI_NVIMGCODEC_LOG_LEVEL": "3"}, cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no batch within {LOG_LIMIT_S:g} s") from None
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"exit {process.returncode}: {''.join(last)}")
    return told_lines(process.stderr)


@contextmanager
def engine_readings(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yield NVML's reading of the engines, or on a CPU a function that returns None."""
    if device.type != "cuda":
        yield lambda: None
        return
    with jpeg_utilisation(device) as read:
        yield read


def ratios_of(rates: Sequence[Rates]) -> list[dict[str, Any]]:
    """Return our samples/s over those of DALI's reader with the same share, repeat by repeat."""
    ratios = []
    for ours, theirs in itertools.product(rates, rates):
        same = ours.work.hw_decoder_load == theirs.work.hw_decoder_load
        if ours.work.kind == "dali" and theirs.work.kind == PEER and same:
            values = [a / b for a, b in zip(ours.values, theirs.values, strict=True)]
            what = f"samples/s / {peers.TITLES[PEER]}"
            ratios.append({"what": what, "decoder": "dali", **labels(ours.work), **spread(values)})
    return ratios


def verdict(
    engines: int | None, why: str, lines: Sequence[str], timed: Sequence[Rates], batch_size: int
) -> tuple[str, bool]:
    """Return what was found, in one line, and whether the engines of a GPU work."""
    first, of_engines = first_number(_FIRST_BATCH, lines), first_number(_OF_ENGINES, lines)
    ours = [percent for each in timed if each.work.kind == "dali" for percent in each.highest]
    parts = [
        f"{'?' if engines is None else engines} JPEG engines",
        f"busy {max(ours)}%" if ours else "busy: unknown",
        f"first batch {first or '?'} of {batch_size}",
        f"of which the engines get {'?' if of_engines is None else of_engines}",
    ]
    is_busy = not ours or max(ours) >= IDLE_PERCENT
    return ", ".join(parts) + (f"; {why}" if why else ""), not why and is_busy and first == batch_size


def main() -> int:
    options: Options = parse(Options, description=__doc__)
    options.check()
    check_out(options.out)
    start = time.perf_counter()
    device = choose_device("auto", 0)
    is_cuda, machine = device.type == "cuda", environment(device)
    path = options.data or str(sample_paths().train)
    batch_size = options.batch_size or (256 if is_cuda else 32)
    threads = options.threads or min(8, default_num_threads())
    with Beton(path) as data:
        record, reason = data_record(data, options.data), why_no_decoder("dali", data, device)
    if reason:
        raise ValueError(f"the decoder dali cannot be measured: {reason}")
    if batch_size > record["num_samples"]:
        raise ValueError(
            f"--batch-size {batch_size}: there are {record['num_samples']} samples; "
            "lower it or give more data"
        )
    engines, why = None, ""
    if is_cuda:
        with torch.cuda.device(device):
            engines = num_engines(nvjpeg_library())
        why = why_slower(device)
    shares: tuple[float | None, ...] = options.shares if is_cuda else (None,)
    missing = [] if is_cuda else [{"what": "the engines and their shares", "reason": "no CUDA device"}]
    peer_reason = peers.why_missing(PEER, path) if options.peers else "left out by --no-peers"
    if peer_reason:
        missing.append({"what": peers.TITLES[PEER], "reason": peer_reason})
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as files:
        work = Work("dali", path, files, batch_size, threads, options.size_px, str(device))
        log("nvImageCodec's log")
        lines: list[str] = []
        try:
            lines = log_of(replace(work, hw_decoder_load=shares[-1]))
        except RuntimeError as error:
            missing.append({"what": "nvImageCodec's log", "reason": str(error)})
        kinds = ("dali",) if peer_reason else ("dali", PEER)
        works = [replace(work, kind=kind, hw_decoder_load=share) for share in shares for kind in kinds]
        with engine_readings(device) as read:
            timed, failed, _ = measure(
                {title(each.kind, **labels(each)): each for each in works}, (1,), repeats=options.repeats,
                seconds=options.seconds, deadline=start + options.limit_s, log=log, warms_up=False,
                watch=lambda: sampled(read),
            )  # fmt: skip
    if not timed:
        raise ValueError(f"nothing could be measured; {failed[0]['what']}: {failed[0]['reason']}")
    text, works_well = verdict(engines, why, lines, timed, batch_size)
    result = save_result(
        options.out, "jpeg_engines", machine, data=record,
        settings={
            "repeats": len(timed[0].values), "seconds": options.seconds, "batch_size": batch_size,
            "num_threads": threads, "size_px": options.size_px, "device": device.type,
            "num_engines": engines, "first_batch": first_number(_FIRST_BATCH, lines),
            "samples_of_engines": first_number(_OF_ENGINES, lines), "log": lines,
        },
        rows=[
            each.row(each.measured, **labels(each.work), busy_percent=max(each.highest, default=None))
            for each in timed
        ],
        ratios=ratios_of(timed), not_measured=[*missing, *failed],
        notes=[why] if why else [],
    )  # fmt: skip
    show(result, "decoder", "device", "num_threads", "hw_decoder_load", "busy_percent", "cores_used")
    print(options.out, text, sep="\n")
    return int(is_cuda and not works_well)


if __name__ == "__main__":
    run_program(main)
