"""`fastpsl data write` beside ffcv's DatasetWriter: the same photos, cores and sizes, interleaved in one
run.

    python bench/beton_write.py --photos FOLDER --repeats 5

Without --photos it takes the embedded sample's images at 640 x 480. Rows: photos taken over as they are, and
photos shrunk by the longer side (both writers at --max-side). ffcv's side is its documented use: an
ImageFolder of PIL images, write_mode "jpg", jpeg_quality 90, max_resolution. Images/s count from the listing
of the folder to the closed file. Ours also checks every JPEG it takes over, hashes and fsyncs. Writes a JSON
(median and interquartile range).
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, progress, run_program
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.pipelines.image.image_file import upright_size

OURS = "fastpsl data write"
THEIRS = "ffcv DatasetWriter"


def draw_photos(folder: Path, num: int) -> None:
    """Write `num` of the sample's images at 640 x 480 as JPEGs in class folders."""
    from fastpsl.pipelines.sample.landscapes import CLASS_NAMES, draw_image

    def draw(index: int) -> None:
        kind = folder / CLASS_NAMES[index % len(CLASS_NAMES)]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_image(1, index, 480, 640)).save(kind / f"{index:05}.jpg", quality=90)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(draw, range(num)))


def write_ours(photos: Path, out: Path, max_side: int | None, num_workers: int) -> float:
    """Write a dataset file with `fastpsl data write`, and return images/s."""
    from fastpsl.pipelines.beton.encode import Target
    from fastpsl.pipelines.beton.write import write_beton
    from fastpsl.pipelines.sources.folder import image_folder

    start = time.perf_counter()
    source = image_folder(photos)
    report = write_beton(
        source.samples(), out, num_samples=source.num_samples, class_names=source.class_names,
        target=Target(max_side=max_side), num_workers=num_workers, overwrite=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    assert report.num_samples == source.num_samples
    return report.num_samples / seconds


def write_theirs(photos: Path, out: Path, max_side: int | None, num_workers: int) -> float:
    """Write a dataset file with ffcv's DatasetWriter, and return images/s."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    start = time.perf_counter()
    dataset = ImageFolder(str(photos))
    image = RGBImageField(write_mode="jpg", max_resolution=max_side, jpeg_quality=90)
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):  # its progress bar
        DatasetWriter(
            str(out), {"image": image, "label": IntField()}, num_workers=num_workers
        ).from_indexed_dataset(dataset)
    return len(dataset) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="ImageFolder tree of JPEGs")
    parser.add_argument("--num-drawn", type=int, default=400, help="images to draw if there are no photos")
    parser.add_argument("--max-side", type=int, default=256, help="px")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RUNS / "beton_write.json")
    options = parser.parse_args()
    check_out(options.out)

    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        photos = options.photos
        if photos is None:
            photos = Path(scratch) / "photos"
            draw_photos(photos, options.num_drawn)
        machine = environment()
        rows: list[dict[str, Any]] = []
        ratios: list[dict[str, Any]] = []
        for title, max_side in (("taken over", None), (f"longer side {options.max_side}", options.max_side)):
            speeds: dict[str, list[float]] = {OURS: [], THEIRS: []}
            for repeat in range(
                options.repeats + 1
            ):  # the first one warms caches and imports, and does not count
                log(f"{title}: repeat {repeat} of {options.repeats}" if repeat else f"{title}: warming up")
                for name, write in ((OURS, write_ours), (THEIRS, write_theirs)):
                    speed = write(photos, Path(scratch) / "out.beton", max_side, options.workers)
                    if repeat:
                        speeds[name].append(speed)
            for name, values in speeds.items():
                rows.append({"measured": name, "photos": title, "unit": "images/s", **spread(values)})
            pairs = zip(speeds[OURS], speeds[THEIRS], strict=True)
            by_repeat = spread([ours / theirs for ours, theirs in pairs])
            ratios.append({"what": f"{OURS} / {THEIRS}", "photos": title, **by_repeat})
            figures = ", ".join(f"{row['measured']} {row['median']:,.0f}" for row in rows[-2:])
            print(f"{title}: {figures} images/s, ratio {by_repeat['median']:.2f}", flush=True)
        files = [path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")]
        height, width = upright_size(str(files[0]))
        size = f"first {width} x {height} px"
        num_bytes = sum(path.stat().st_size for path in files)
        data = {"num_samples": len(files), "mean_bytes": round(num_bytes / len(files)), "size": size}
    save_result(
        options.out, "beton_write", machine, data=data,
        settings={"repeats": options.repeats, "num_workers": options.workers},
        rows=rows, ratios=ratios,
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
