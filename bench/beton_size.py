"""The bytes of an image in a dataset file, by the options of `fastpsl data write`, and what they cost.

    python bench/beton_size.py --photos FOLDER --out bench/results/beton_size.json

FOLDER holds original JPEGs of ImageNet, such as one of each class. The size of the whole training set is the
mean of these times its number of images.

PSNR is the median of the images that are not taken over. Each is compared with its original, which Pillow
decodes in full. The original is shrunk to the same size by the mean of the area.

The time of decoding is CPU time of the `turbo` decoder with one random resized crop to 224 px, in one thread.
All dataset files are read in turn, every other time in reverse order. Writes a JSON.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, check_positive, progress, run_program
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.image.codec import shrink
from fastpsl.pipelines.image.image_file import decode_any, read_image_file
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sources.folder import ImageFolder, image_folder
from fastpsl.pipelines.views import ViewSpec

IMAGENET = 1_281_167
TARGETS = {
    "as is": Target(),
    "--max-side 500": Target(max_side=500),
    "--max-side 500 --quality 90 --reencode all": Target(max_side=500, quality=90, reencode="all"),
    "--short-side 256": Target(short_side=256),
    "--short-side 256 --quality 90 --reencode all": Target(short_side=256, quality=90, reencode="all"),
}
BATCH = 50
DECODING = "CPU time of decoding / as is"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--repeats", type=int, default=5, help="epochs of each dataset file, for the time of decoding"
    )
    parser.add_argument("--out", type=Path, default=RUNS / "beton_size.json")
    options = parser.parse_args()
    check_out(options.out)
    check_positive(options, "workers", "repeats")
    if options.photos is None:
        raise ValueError("--photos is missing: give a folder of original JPEGs")

    machine, source, rows = environment(), image_folder(options.photos), []
    if source.num_samples < BATCH:
        raise ValueError(f"--photos {options.photos}: {source.num_samples} images; give {BATCH} at least")
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        betons = {name: Path(scratch) / f"{i}.beton" for i, name in enumerate(TARGETS)}
        for name, beton in betons.items():
            log(f"{name}: writing")
            report = write_beton(
                source.samples(), beton, num_samples=source.num_samples, class_names=source.class_names,
                target=TARGETS[name], num_workers=options.workers, max_bad="0",
            )  # fmt: skip
            each = report.num_bytes / source.num_samples
            log(f"{name}: comparing with the originals")
            rows.append({
                "measured": name, "unit": "bytes per image", "num_taken_over": report.num_passed,
                "psnr_db": psnr_db(source, beton), **spread([each]),
            })  # fmt: skip
        times = cpu_times(betons, options.repeats, log)
    ratios = []
    for name, values in times.items():
        shares = [here / as_is for here, as_is in zip(values, times["as is"], strict=True)]
        ratios.append({"what": DECODING, "target": name, **spread(shares)})
    result = save_result(
        options.out, "beton_size", machine, data={"num_samples": source.num_samples},
        settings={"repeats": options.repeats, "num_images_of_imagenet": IMAGENET}, rows=rows, ratios=ratios,
    )  # fmt: skip
    print(sizes_table({"": result}))
    print(options.out)


def psnr_db(source: ImageFolder, beton: Path) -> float | None:
    """Return the median PSNR over the images that are not taken over; None where all are."""
    values = []
    with Beton(beton) as data:
        for i, sample in enumerate(source.samples()):
            assert isinstance(sample.image, Path)
            original, stored = read_image_file(sample.image), data.read(i)
            if original == stored:
                continue
            pixels = decode_any(stored)
            wanted = shrink(decode_any(original), *pixels.shape[:2])
            error = np.square(pixels.astype(np.float64) - wanted).mean()
            values.append(10 * np.log10(255**2 / error))
    return round(float(np.median(values)), 2) if values else None


def cpu_times(betons: Mapping[str, Path], repeats: int, log: Callable[[str], None]) -> dict[str, list[float]]:
    """Return the seconds of CPU time of an epoch of each dataset file, one value per repeat."""
    times: dict[str, list[float]] = {name: [] for name in betons}
    with ExitStack() as stack:
        loaders = {
            name: stack.enter_context(
                Loader(
                    stack.enter_context(Beton(path)), [ViewSpec(RandomResizedCrop(224))],
                    batch_size_per_rank=BATCH, decoder="turbo", num_threads=1,
                )
            )
            for name, path in betons.items()
        }  # fmt: skip
        for epoch in range(repeats + 1):  # the first warms up
            log(f"decoding, {epoch} of {repeats}")
            for name in list(betons)[:: 1 if epoch % 2 else -1]:
                started = time.process_time()
                for _ in loaders[name].epoch(epoch):
                    pass
                if epoch:
                    times[name].append(time.process_time() - started)
    return times


def sizes_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of docs/how_to/pack_imagenet.md: a line for each way of writing."""
    lines = [
        "| options | per image | ImageNet-1k | taken over | PSNR of the others | CPU time of decoding |",
        "|---|---|---|---|---|---|",
    ]
    for result in results.values():
        if result["bench"] != "beton_size":
            continue
        times = {ratio["target"]: ratio["median"] for ratio in result["ratios"]}
        for row in result["rows"]:
            name, psnr = row["measured"], row["psnr_db"]
            lines.append(
                f"| {name if name == 'as is' else f'`{name}`'} | {row['median'] / 1e3:.0f} KB "
                f"| {row['median'] * result['settings']['num_images_of_imagenet'] / 1e9:.0f} GB "
                f"| {row['num_taken_over'] / result['data']['num_samples']:.1%} "
                f"| {'-' if psnr is None else f'{psnr:.1f} dB'} | {times[name]:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
