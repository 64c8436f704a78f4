"""The bytes of an image in a beton, by the options of `fastpsl data write`, and what ImageNet takes.

    python bench/beton_size.py --photos FOLDER

FOLDER holds original JPEGs of ImageNet, such as one of each class. The size of the whole training set is the
mean of these times its number of images. Writes a JSON.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, progress, run_program
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.sources.folder import image_folder

IMAGENET = 1_281_167
TARGETS = {
    "originals": Target(),
    "--max-side 500": Target(max_side=500),
    "--short-side 256": Target(short_side=256),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RUNS / "beton_size.json")
    options = parser.parse_args()
    check_out(options.out)
    if options.photos is None:
        raise ValueError("--photos is missing: give a folder of original JPEGs")

    machine, source, rows = environment(), image_folder(options.photos), []
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        beton = Path(scratch) / "out.beton"
        for name, target in TARGETS.items():
            log(name)
            write_beton(
                source.samples(), beton, num_samples=source.num_samples, class_names=source.class_names,
                target=target, num_workers=options.workers, overwrite=True,
            )  # fmt: skip
            each = beton.stat().st_size / source.num_samples
            rows.append({"measured": name, "unit": "bytes per image", **spread([each])})
            print(
                f"{name}: {each / 1e3:.0f} KB per image, ImageNet {each * IMAGENET / 1e9:.0f} GB", flush=True
            )
    save_result(
        options.out, "beton_size", machine, data={"num_samples": source.num_samples},
        settings={"repeats": 1, "num_images_of_imagenet": IMAGENET}, rows=rows,
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
