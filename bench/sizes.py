"""Our Loader beside ffcv's, DALI's, WebDataset, DataLoader and SPDL, by the size of the images.

    python bench/sizes.py                        64 to 500 px and originals, one crop and two; an hour
    python bench/sizes.py --sizes 64 --crops 1   one cell
    python bench/sizes.py --sizes originals --data photos/train

Random resized crops to min(size, 224) px, uint8 on the device. Images are drawn as heavy as real ones
(bench/size_data.py) and kept in --drawn; --data gives originals of your own. Each loader has a process of its
own; repeats of all are interleaved. CPU milliseconds per sample are those of the whole process tree. Ratios
are ours, by the decoder that `auto` takes, over each peer's better form. See bench/README.md.
"""

import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import torch
from rich.console import Console
from rich.markdown import Markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.interleaved import measure
from bench.peers import PEERS, TITLES, Work, why_missing
from bench.peers.ours import decoder_names, why_no_decoder
from bench.program import check_out, check_positive, counted, progress, run_program, wide_console
from bench.schema import RUNS, data_record, environment, save_result
from bench.show import show_missing_and_notes
from bench.size_data import SIZES, crop_px, drawn, own
from bench.size_tables import ratios_of, rows_of, size_tables
from fastpsl.engine.command_line import parse
from fastpsl.engine.distributed import choose_device
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.workers import default_num_threads

Size = Literal["64", "160", "224", "256", "500", "originals"]


@dataclass(frozen=True, kw_only=True)
class Options:
    sizes: tuple[Size, ...] = ("64", "160", "224", "256", "500", "originals")
    crops: tuple[int, ...] = (1, 2)
    """Of each sample."""
    data: str | None = None
    """Originals: a dataset file, or a folder. Default: drawn ones."""
    num: int = 4000
    """Drawn images of a size."""
    drawn: Path = RUNS / "drawn"
    """Folder of the drawn images, kept for the next run."""
    decoders: tuple[str, ...] | None = None
    """Ours; ratios are the first one's. Default: all but resident and synthetic, that of `auto` first."""
    peers: tuple[str, ...] = tuple(PEERS)
    batch_size: int = 256
    workers: int | None = None
    """Decoding threads (DataLoader, WebDataset: processes). Default: the cores."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    repeats: int = 5
    seconds: float = 2.0
    """Length of a timed region."""
    out: Path = RUNS / "sizes.json"

    def check(self) -> None:
        """Raise ValueError if options are out of range or contradict each other."""
        check_positive(self, "num", "batch_size", "workers", "repeats", "seconds")
        if not self.sizes or not self.crops or min(self.crops) < 1 or self.decoders == ():
            raise ValueError("--sizes, --crops and --decoders: give at least one of each, crops from 1")
        for name in self.peers:
            if name not in PEERS:
                raise ValueError(f"--peers {name}: there are {', '.join(PEERS)}")
        if self.data and "originals" not in self.sizes:
            raise ValueError(f"--data {self.data}: it gives originals; add originals to --sizes")
        if self.num < self.batch_size:
            raise ValueError(f"--num {self.num}: it must be --batch-size {self.batch_size} or more")


def works_of(
    options: Options, path: str, files: str, size: str, device: torch.device
) -> tuple[dict[str, Work], list[dict[str, str]], str]:
    """Return a size's loaders by name, what cannot be measured, and the first of our decoders."""
    works: dict[str, Work] = {}
    missing: list[dict[str, str]] = []
    with Beton(path) as data:
        if data.num_samples < options.batch_size:
            raise ValueError(
                f"--batch-size {options.batch_size}: {path} has {counted(data.num_samples, 'sample')}; "
                "lower it or give more images"
            )
        names = options.decoders or tuple(n for n in decoder_names(data, device) if n != "synthetic")
        reasons = {name: why_no_decoder(name, data, device) for name in names}
    for name in (*names, *options.peers):
        reason = reasons[name] if name in reasons else why_missing(name, path)
        title = TITLES.get(name, f"decoder {name}")
        if reason:
            missing.append({"what": f"{size}: {title}", "reason": reason})
            continue
        works[title] = Work(
            name, path, files, options.batch_size, options.workers or default_num_threads(), crop_px(size),
            "cpu" if device.type == "cpu" else str(device),
        )  # fmt: skip
    ours = [name for name in names if not reasons[name]]
    if not ours:
        raise ValueError(f"--decoders {' '.join(names)}: {reasons[names[0]]}")
    return works, missing, ours[0]


def main() -> None:
    options: Options = parse(Options, description=__doc__)
    options.check()
    check_out(options.out)
    console = wide_console()
    device = choose_device(options.device, 0)
    machine = environment(device)
    parts: dict[str, list[Any]] = {"rows": [], "ratios": [], "not_measured": [], "notes": []}
    record: dict[str, Any] = {"num_samples": 0}
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        for size in options.sizes:
            log(f"{size}: the images")
            folder = Path(scratch) / size
            folder.mkdir()
            is_own = size == "originals" and options.data is not None
            path = own(str(options.data), folder) if is_own else str(drawn(size, options.num, options.drawn))
            with Beton(path) as data:
                about = data_record(data, path)
            record["num_samples"] += about["num_samples"]
            record[f"mean_bytes_{size}"] = about["mean_bytes"]
            record[f"mean_pixels_{size}"] = about["mean_pixels"]
            works, missing, ours = works_of(options, path, str(folder / "files"), size, device)
            rates, failed, notes = measure(
                works, options.crops, repeats=options.repeats, seconds=options.seconds, deadline=math.inf,
                log=lambda phase, size=size: log(f"{size}: {phase}"),  # type: ignore[misc]
            )  # fmt: skip
            parts["rows"] += rows_of(rates, size)
            parts["ratios"] += ratios_of(rates, size, ours)
            parts["not_measured"] += [
                *missing,
                *({**each, "what": f"{size}: {each['what']}"} for each in failed),
            ]
            parts["notes"] += [f"{size}: {note}" for note in notes]
    name = Path(options.data).name if options.data else None
    record["name"] = "drawn images" + (f", originals of {name}" if name else "")
    result = save_result(
        options.out, "sizes", machine, data=record,
        settings={
            "repeats": options.repeats, "seconds": options.seconds, "batch_size": options.batch_size,
            "num_threads": options.workers or default_num_threads(), "device": device.type,
            "crop": "RandomResizedCrop",
            **{f"drawn_as_{size}": SIZES[size].source for size in options.sizes},
        },
        **parts,
    )  # fmt: skip
    show(result, console)
    console.print(str(options.out))


def show(result: dict[str, Any], console: Console) -> None:
    console.print(Markdown(size_tables({"this run": result})))
    show_missing_and_notes(result, console)


if __name__ == "__main__":
    run_program(main)
