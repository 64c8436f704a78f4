"""`fastpsl beton write` beside ffcv's DatasetWriter: the same photos, cores and sizes, interleaved in one
run.

    python bench/beton_write.py --photos FOLDER --repeats 5

Without --photos: the embedded sample's pictures at 640 x 480. Rows: photos taken over as they are, shrunk by
the longer side (both writers at --max-side). ffcv's side is its documented use: an ImageFolder of PIL images,
write_mode "jpg", jpeg_quality 90, max_resolution. Images/s from the listing of the folder to the closed file;
ours also checks every JPEG it takes over, hashes and fsyncs. Writes bench/results/beton_write.json (median
and interquartile range).
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from PIL import Image

OURS = "fastpsl beton write"
THEIRS = "ffcv DatasetWriter"


def draw_photos(folder: Path, num: int) -> None:
    """The sample's pictures, larger, as JPEGs in class folders."""
    from fastpsl.sample_pictures import CLASS_NAMES, draw_picture

    def draw(index: int) -> None:
        kind = folder / CLASS_NAMES[index % len(CLASS_NAMES)]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_picture(1, index, 480, 640)).save(kind / f"{index:05}.jpg", quality=90)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(draw, range(num)))


def write_ours(photos: Path, out: Path, max_side: int | None, num_workers: int) -> float:
    from fastpsl.pipelines.beton_convert import Target
    from fastpsl.pipelines.beton_write import write_beton
    from fastpsl.pipelines.sources import image_folder

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


def machine() -> dict[str, object]:
    names = ("fastpsl", "ffcv", "torch", "torchvision", "numpy", "pillow", "opencv-python")
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": cpu, "num_cores": len(os.sched_getaffinity(0)), "load_1min_before": os.getloadavg()[0],
        "python": platform.python_version(), "commit": commit, "versions": versions,
    }  # fmt: skip


def spread(values: list[float]) -> dict[str, object]:
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": round(quarters[1], 1),
        "iqr": [round(quarters[0], 1), round(quarters[2], 1)],
        "values": [round(v, 1) for v in values],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="ImageFolder tree of JPEGs")
    parser.add_argument("--num-drawn", type=int, default=400, help="pictures drawn where there are no photos")
    parser.add_argument("--max-side", type=int, default=256, help="px")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "beton_write.json")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos
        if photos is None:
            photos = Path(scratch) / "photos"
            draw_photos(photos, options.num_drawn)
        before, rows = machine(), []
        for title, max_side in (("taken over", None), (f"longer side {options.max_side}", options.max_side)):
            speeds: dict[str, list[float]] = {OURS: [], THEIRS: []}
            for repeat in range(
                options.repeats + 1
            ):  # the first warms caches and imports, and is not counted
                for name, write in ((OURS, write_ours), (THEIRS, write_theirs)):
                    speed = write(photos, Path(scratch) / "out.beton", max_side, options.workers)
                    if repeat:
                        speeds[name].append(speed)
            ratio = statistics.median(speeds[OURS]) / statistics.median(speeds[THEIRS])
            rows.append(
                {
                    "row": title,
                    "unit": "images/s",
                    **{name: spread(values) for name, values in speeds.items()},
                    "ratio": round(ratio, 2),
                }
            )
            told = ", ".join(f"{name} {statistics.median(values):,.0f}" for name, values in speeds.items())
            print(f"{title}: {told} images/s, ratio {ratio:.2f}", flush=True)
        files = [path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")]
        with Image.open(files[0]) as first:
            size = f"first {first.width} x {first.height} px"
        result = {
            "bench": "beton_write", "command": " ".join(["python", *sys.argv]), "machine": before,
            "photos": {"num": len(files), "mean_kb": round(sum(p.stat().st_size for p in files) / len(files) / 1000, 1), "size": size},
            "num_workers": options.workers, "repeats": options.repeats, "rows": rows,
        }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
