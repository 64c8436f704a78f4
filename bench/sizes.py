"""Our Loader beside all others, by the size of the images.

    python bench/sizes.py                        64 to 500 px and originals, one crop and two; two hours
    python bench/sizes.py --batches uint8 --sizes 64 --crops 1   one cell
    python bench/sizes.py --sizes originals --data photos/train

Random resized crops to min(size, 224) px on the device, in three tables. uint8: crops from a dataset file.
float32: crops that are flipped at random and normalised, as a network gets them. folder: the same from a
folder of JPEGs. Ours also reads dataset files with packed coefficients of the same images. Images are drawn
as heavy as real ones (SIZES) and kept in --drawn. The result is written after each size and number of crops;
--resume goes on from there. See bench/README.md.
"""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed

from bench.interleaved import Rates, measure
from bench.peers import FLOATS, LOOPS, PACKED, PEERS, TITLES, Work, why_missing
from bench.peers.ours import auto_decoder, decoder_names, why_no_decoder
from bench.photos import QUALITY, SIDES, Side, write_photos
from bench.program import check_positive, counted, options_of, progress, run_program, wide_console
from bench.schema import RUNS, commit, data_record, environment, over, save_result, spread
from bench.tables import (
    ABOUT,
    BATCHES,
    CPU,
    RATE,
    Batches,
    is_of,
    labels_of,
    show,
    size_tables,
    titled,
    without_form,
)  # fmt: skip
from fastpsl.engine.distributed import choose_device
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.encode import Target, require_mode
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.readers.dataset_files import dataset_files

Size = Literal["64", "160", "224", "256", "500", "originals"]


@dataclass(frozen=True, kw_only=True)
class Options:
    sizes: tuple[Size, ...] = ("64", "160", "224", "256", "500", "originals")
    crops: tuple[int, ...] = (1, 2)  # Of each sample.
    batches: tuple[Batches, ...] = BATCHES  # The tables.
    data: str | None = None  # Originals: a dataset file, or a folder. Default: drawn ones.
    num: int = 4000  # Drawn images of a size.
    drawn: Path = RUNS / "drawn"  # Folder of the drawn images, kept for the next run.
    decoders: tuple[str, ...] | None = None
    """Ours; ratios are of the first one, and of coefficients: turbo with packed ones. Default: all but
    resident and synthetic, that of `auto` first; for float32 batches auto and coefficients."""
    peers: tuple[str, ...] = tuple(PEERS | FLOATS)  # Or none.
    batch_size: int | None = None  # Default: 256 for uint8 alone, else 128.
    workers: int | None = None  # Decoding threads (DataLoader, WebDataset: processes). Default: the cores.
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    repeats: int = 5
    seconds: float = 2.0  # Length of a timed region.
    resume: bool = False  # Keep what --out has of the same settings, and measure the rest.
    out: Path = RUNS / "sizes.json"

    def check(self) -> None:
        """Raise ValueError if options are out of range or contradict each other."""
        check_positive(self, "num", "batch_size", "workers", "repeats", "seconds")
        lists = (self.sizes, self.crops, self.batches)
        if not all(lists) or min(self.crops) < 1 or self.decoders == ():
            raise ValueError(
                "--sizes, --crops, --batches and --decoders: give at least one of each, crops from 1"
            )
        for name in self.peers:
            if name not in PEERS | FLOATS and self.peers != ("none",):
                raise ValueError(f"--peers {name}: there are {', '.join(PEERS | FLOATS)}, or none alone")
        if self.data and "originals" not in self.sizes:
            raise ValueError(f"--data {self.data}: it gives originals; add originals to --sizes")
        if self.num < self.batch:
            raise ValueError(f"--num {self.num}: it must be --batch-size {self.batch} or more")

    @property
    def names(self) -> list[str]:
        """The names of the sizes in tables: your own originals have that of their file or folder."""
        own = Path(self.data).stem if self.data else "originals"
        return [own if size == "originals" and own not in SIZES else size for size in self.sizes]

    @property
    def batch(self) -> int:
        return self.batch_size or (256 if self.batches == ("uint8",) else 128)

    @property
    def num_threads(self) -> int:
        return self.workers or default_num_threads()


class Form(NamedTuple):
    """The form of the images of one size."""

    sides: tuple[Side, ...]  # height, width and share
    mean_bytes: int  # mean bytes of a JPEG
    source: str  # whose form that is
    quality: int = QUALITY  # quality of the drawn JPEGs

    @property
    def bytes_per_pixel(self) -> float:
        return self.mean_bytes / sum(height * width * share for height, width, share in self.sides)


def _shorter(side: int) -> tuple[Side, ...]:
    """Return the shapes of images with this shorter side: 4:3 and 3:2, three quarters of them upright."""
    across = ((side, round(side * 4 / 3), 0.6), (side, round(side * 3 / 2), 0.15))
    return *across, *((width, height, share / 3) for height, width, share in across)


# Bytes are of the sets named; drawn JPEGs of bench/photos.py had 55 KB at 500 px, half of what
# `--max-side 500` makes of ImageNet. Where JPEGs of cameras are taken over as they are, as there, quality is
# 96: noise at 90 would need more contrast than 8 bits have to be as heavy.
SIZES = {
    "64": Form(((64, 64, 1.0),), 2_050, "Tiny ImageNet: 248 MB for 120,000 images"),
    "160": Form(_shorter(160), 7_300, "Imagenette of 160 px: 99 MB for 13,394 images"),
    "224": Form(((224, 224, 1.0),), 13_000, "ImageNet's middle squares at quality 75"),
    "256": Form(_shorter(256), 36_900, "ImageNet with --short-side 256, bench/results/beton_size.json"),
    "500": Form(SIDES, 108_600, "ImageNet with --max-side 500, bench/results/beton_size.json", 96),
    # Shapes whose mean is 473 x 386, ImageNet's; the frames of 500 px are its usual ones.
    "originals": Form(
        (
            (375, 500, 0.38), (333, 500, 0.18), (500, 375, 0.09), (500, 333, 0.06), (500, 500, 0.03),
            (281, 500, 0.04), (240, 320, 0.05), (300, 400, 0.04), (200, 260, 0.04), (480, 640, 0.03),
            (768, 1024, 0.03), (1024, 768, 0.01), (150, 200, 0.02),
        ),
        118_500, "ImageNet's training set, bench/results/beton_size.json", 96,
    ),
}  # fmt: skip


def crop_px(size: str) -> int:
    """Return the side of the crops of a size: its own, 224 at most."""
    return min(int(size), 224) if size.isdecimal() else 224


def drawn(size: str, num: int, folder: Path) -> Path:
    """Return the dataset file of the drawn images of a size, which the first call writes."""
    form = SIZES[size]
    path = folder / f"{size}-{form.mean_bytes}-{num}.beton"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_photos(path, num, 0, None, form.bytes_per_pixel, form.sides, form.quality)
    return path


def own(source: str, folder: Path) -> str:
    """Return a dataset file of your own images; those of a folder are taken over as they are."""
    if not Path(source).is_dir():
        return source
    path = folder / "own.beton"
    command = [sys.executable, "-m", "fastpsl.cli", "data", "write", source, str(path)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode:
        raise ValueError(f"--data {source}: {process.stderr.strip().splitlines()[-1]}")
    return str(path)


def packed(path: str, folder: Path) -> str:
    """Return the dataset file of the same images as packed coefficients, which the first call writes."""
    out = folder / f"{Path(path).stem}-packed.beton"
    if not out.exists():
        require_mode(PACKED)
        source = dataset_files(path)
        write_beton(source.samples, out, num_samples=source.num_samples, target=Target(mode=PACKED))
    return str(out)


def packed_over_jpegs(path: str, packed: str) -> float:
    """Return the bytes of packed coefficients over those of the JPEGs."""
    num_bytes = []
    for each in (packed, path):
        with Beton(each) as data:
            num_bytes.append(data.rows(np.arange(data.num_samples)).num_bytes.sum())
    return round(float(num_bytes[0] / num_bytes[1]), 3)


def works_of(
    options: Options, path: str, files: str, size: str, device: torch.device, *, floats: bool
) -> tuple[dict[str, Work], list[dict[str, str]], str]:
    """Return a size's loaders of one dtype, what cannot be measured, and the first of our decoders."""
    works: dict[str, Work] = {}
    missing: list[dict[str, str]] = []
    with Beton(path) as data:
        if data.num_samples < options.batch:
            raise ValueError(
                f"--batch-size {options.batch}: {path} has {counted(data.num_samples, 'sample')}; "
                "lower it or give more images"
            )
        names = options.decoders or (
            ("auto", PACKED)
            if floats
            else tuple(n for n in (*decoder_names(data, device), PACKED) if n != "synthetic")
        )
        reasons = {name: why_no_decoder(name, data, device) for name in names}
    peers = [name for name in options.peers if name in (FLOATS if floats else PEERS)]
    from_folder = [True, False] if floats else [False]
    for name, is_folder in (*itertools.product(names, from_folder), *((name, False) for name in peers)):
        if name in LOOPS and (is_folder or reasons[name]):
            continue
        images = packed(path, Path(files).parent) if name.startswith(PACKED) else path
        work = Work(
            name, images, files, options.batch, options.num_threads, crop_px(size),
            "cpu" if device.type == "cpu" else str(device), floats, is_folder,
        )  # fmt: skip
        if not any(is_of(labels_of(work), batches) for batches in options.batches):
            continue
        reason = reasons[name] if name in reasons else why_missing(name, path)
        title = TITLES.get(name, f"decoder {name}{' from a folder' if is_folder else ''}")
        if reason:
            missing.append({"what": f"{size}, {labels_of(work)['dtype']}: {title}", "reason": reason})
        else:
            works[title] = work
    ours = [name for name in names if not reasons[name]]
    if not ours:
        raise ValueError(f"--decoders {' '.join(names)}: {reasons[names[0]]}")
    return works, missing, ours[0]


def family(kind: str) -> str:
    """Return the peer that a kind is a form of: SPDL for "SPDL, OpenCV"; a decoder of ours is itself."""
    return without_form(titled(kind)) if kind in TITLES else kind


def rows_of(rates: Sequence[Rates], size: str) -> list[dict[str, Any]]:
    """Return two rows for each loader and number of crops: its samples/s, and its CPU time a sample."""
    rows = []
    for each in rates:
        labels = {"size": size, "size_px": each.work.size_px, **labels_of(each.work)}
        faults = round(spread(each.faults)["median"], 1)
        rows.append(each.row(each.measured, **labels, faults_a_sample=faults))
        cpu = {"measured": "cpu", "num_views": each.num_views, **labels}
        rows.append(cpu | {"unit": "ms of all cores a sample", **spread(each.cpu_ms)})
    return rows


def ratios_of(rates: Sequence[Rates], size: str, decoder: str) -> list[dict[str, Any]]:
    """Return the ratios of ours by a decoder over each peer, by rates and by CPU time, repeat by repeat.

    Those of packed coefficients are also over that decoder with JPEGs, by the same loops.

    A peer of several forms stands there with the better one, by rates and by CPU time each.
    """
    ratios: list[dict[str, Any]] = []
    for batches in BATCHES:
        here = [each for each in rates if is_of(labels_of(each.work), batches)]
        for ours in here:
            labels = {"size": size, "batches": batches}
            if ours.work.kind in (decoder, *LOOPS):
                ratios += _over_others(ours, [each for each in here if each.measured == "peer"], labels)
            if ours.work.kind.startswith(PACKED):
                jpegs = decoder if ours.work.kind == PACKED else ours.work.kind.replace(PACKED, "turbo")
                beside = [each for each in here if each.work.kind == jpegs and each is not ours]
                ratios += _over_others(ours, beside, labels)
    return ratios


def _over_others(ours: Rates, rates: Sequence[Rates], labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    forms: dict[str, list[Rates]] = {}
    for each in rates:
        if each.num_views == ours.num_views:
            forms.setdefault(family(each.work.kind), []).append(each)
    for peer, each_form in forms.items():
        by_rate = max(each_form, key=lambda each: spread(each.values)["median"])
        by_cpu = min(each_form, key=lambda each: spread(each.cpu_ms)["median"])
        for what, form, pairs in (
            (RATE, by_rate, (ours.values, by_rate.values)),
            (CPU, by_cpu, (by_cpu.cpu_ms, ours.cpu_ms)),
        ):
            of_whom = {"num_views": ours.num_views, "peer": peer, "form": form.work.kind}
            yield {"what": what, "decoder": ours.work.kind, **labels, **of_whom, **over(*pairs)}


def begun(options: Options, device: torch.device) -> dict[str, Any]:
    """Return a result without cells, or with --resume that of --out."""
    settings = {
        "repeats": options.repeats, "seconds": options.seconds, "batch_size": options.batch,
        "num_threads": options.num_threads, "device": device.type,
        "crop": "RandomResizedCrop", "batches": list(options.batches),
    }  # fmt: skip
    name = "drawn images" + (f", originals of {Path(options.data).name}" if options.data else "")
    result: dict[str, Any] = {part: [] for part in ("rows", "ratios", "not_measured", "notes")}
    result |= {"environment": environment(device), "settings": settings}
    result["data"] = {"num_samples": 0, "name": name}
    if not (options.resume and options.out.exists()):
        return result
    earlier = json.loads(options.out.read_text())
    decides: dict[str, dict[str, Any]] = {"settings": settings, "data": {"name": name}}
    decides["environment"] = {"commit": commit()}
    for part, values in decides.items():
        for key, value in values.items():
            if (was := earlier[part].get(key)) != value:
                raise ValueError(
                    f"--resume: {options.out} has {key} {was}, and this run {value}; give another --out"
                )
    return {key: earlier[key] for key in result}


def describe(result: dict[str, Any], size: str, path: str, *, is_own: bool) -> None:
    """Add a size's images to a result, which are your own or drawn ones."""
    if f"mean_bytes_{size}" in result["data"]:
        return
    with Beton(path) as data:
        about = data_record(data, path)
    result["data"]["num_samples"] += about["num_samples"]
    result["data"] |= {f"{what}_{size}": about[what] for what in ("mean_bytes", "mean_pixels")}
    if not is_own:
        result["settings"][f"drawn_as_{size}"] = SIZES[size].source


def main() -> None:
    options = options_of(Options, __doc__)
    console, started = wide_console(), time.perf_counter()
    device = choose_device(options.device, 0)
    result = begun(options, device)
    done = {(row["size"], row["dtype"], row["num_views"]) for row in result["rows"]}
    dtypes = [name for name in ("uint8", "float32") if name in options.batches]
    dtypes += ["float32"] if "folder" in options.batches and "float32" not in dtypes else []
    cells = [cell for cell in itertools.product(options.names, dtypes, options.crops) if cell not in done]
    if not cells:
        raise ValueError(f"--resume: {options.out} has all these cells; give other --sizes, --crops or --out")
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        for number, (size, dtype, num_views) in enumerate(cells):
            folder, phase = Path(scratch) / size, f"{size}, {dtype}, {counted(num_views, 'crop')}"
            if not folder.exists():
                log(f"{size}: the images")
                folder.mkdir()
                is_own = size not in SIZES or (size == "originals" and options.data is not None)
                path = (
                    own(str(options.data), folder) if is_own else str(drawn(size, options.num, options.drawn))
                )
                describe(result, size, path, is_own=is_own)
            works, missing, ours = works_of(
                options, path, str(folder / "files"), size, device, floats=dtype == "float32"
            )
            for work in (work for work in works.values() if work.kind.startswith(PACKED)):
                result["data"][f"packed_{size}"] = packed_over_jpegs(path, work.data)
            rates, failed, notes = measure(
                works, (num_views,), repeats=options.repeats, seconds=options.seconds, deadline=math.inf,
                log=lambda what, phase=phase: log(f"{phase}: {what}"),  # type: ignore[misc]
            )  # fmt: skip
            missing += [{**each, "what": f"{phase}: {each['what']}"} for each in failed]
            result["rows"] += rows_of(rates, size)
            result["ratios"] += ratios_of(rates, size, ours)
            result["not_measured"] += [each for each in missing if each not in result["not_measured"]]
            result["notes"] += [f"{size}: {note}" for note in notes]
            images = folder / "files" / "images"
            if dtype == "float32" and images.exists():
                result["settings"]["auto_of_a_folder"] = auto_decoder(images, device)
            saved = save(options, result)
            took_s = time.perf_counter() - started
            left = counted(round(took_s / 60 / (number + 1) * (len(cells) - number - 1)), "minute")
            console.print(f"{phase}: done after {took_s:.0f} s; about {left} left")
            if number + 1 == len(cells) or cells[number + 1][0] != size:
                shutil.rmtree(folder)
    show_tables(saved, console)
    console.print(str(options.out))


def save(options: Options, result: dict[str, Any]) -> dict[str, Any]:
    """Write a result as far as it is measured, by size, whatever was measured first."""
    sizes = [*SIZES, *options.names]
    by_size = {
        part: sorted(result[part], key=lambda row: sizes.index(row["size"])) for part in ("rows", "ratios")
    }
    notes = [note for note in dict.fromkeys(result["notes"]) if not note.startswith("the machine was")]
    parts = result | by_size | {"notes": notes}
    return save_result(options.out, "sizes", dict(parts.pop("environment")), **parts)


def show_tables(result: dict[str, Any], console: Console) -> None:
    for batches in result["settings"]["batches"]:
        console.print(Markdown(f"## {ABOUT[batches]}\n\n" + size_tables({"this run": result}, batches)))
    show(result | {"rows": [], "ratios": []})


if __name__ == "__main__":
    run_program(main)
