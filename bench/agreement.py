"""How far the crops of the decoders are from exact ones, on your own photos.

    python bench/agreement.py --photos FOLDER --out bench/results/agreement.json

Exact is what the `pillow` decoder makes: the pixels of libjpeg's accurate transform, which are Pillow's,
and the mean of the area under each output pixel, rounded. The photos are copied byte for byte into a dataset
file. Each case is a random resized crop of every photo, the same for all decoders. Writes a JSON.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, progress, run_program
from bench.schema import RUNS, data_record, environment, save_result, spread
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.decoders import dali, libffcv
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sources.folder import image_folder
from fastpsl.pipelines.views import ViewSpec

EXACT = "pillow"
BATCH = 32


def missing_decoders() -> dict[str, str]:
    """Return why decoders cannot run here, empty for those that can."""
    return {
        "turbo": libturbo.why_missing(),
        "ffcv": libffcv.why_missing(),
        "dali": dali.why_missing(torch.device("cpu")),
    }


def crops(data: Beton, decoder: str, size_px: int) -> Iterator[np.ndarray]:
    """Yield batches of crops of all photos, uint8 [n, S, S, 3], in the order of the dataset file."""
    view = ViewSpec(RandomResizedCrop(size_px))
    loader = Loader(data, [view], batch_size_per_rank=BATCH, train=False, decoder=decoder, seed=0)
    with loader:
        for batch in loader.epoch(0):
            yield batch.images[0][batch.indices >= 0].numpy()


def differences(data: Beton, decoder: str, size_px: int) -> np.ndarray:
    """Return how often each difference to the exact crops occurs, int [256]."""
    counts = np.zeros(256, np.int64)
    for ours, exact in zip(crops(data, decoder, size_px), crops(data, EXACT, size_px), strict=True):
        counts += np.bincount(np.abs(ours.astype(np.int16) - exact).reshape(-1), minlength=256)
    return counts


def row_of(decoder: str, size_px: int, counts: np.ndarray) -> dict[str, Any]:
    """Return a row of the result, by how often each difference occurs."""
    levels, total = np.arange(256), counts.sum()
    return {
        "measured": decoder, "unit": "levels of 255", "size_px": size_px,
        "percentile_99": int(np.searchsorted(counts.cumsum(), 0.99 * total)),
        "largest": int(np.flatnonzero(counts).max()), "share_equal": round(float(counts[0] / total), 4),
        **spread([float((levels * counts).sum() / total)]),
    }  # fmt: skip


def measure(data: Beton, sizes_px: list[int], log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row for each size and decoder."""
    rows = []
    for size_px in sizes_px:
        for decoder, why in missing_decoders().items():
            if not why:
                log(f"{decoder}, crops to {size_px} px")
                rows.append(row_of(decoder, size_px, differences(data, decoder, size_px)))
    return rows


def agreement_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of docs/reference/decoders.md: a line for each size, a column for each decoder."""
    rows = [row for result in results.values() if result["bench"] == "agreement" for row in result["rows"]]
    if not rows:
        return "Not measured yet."
    decoders = list(dict.fromkeys(row["measured"] for row in rows))
    cells = {(row["size_px"], row["measured"]): row for row in rows}
    lines = [
        f"| crops to | {' | '.join(f'`{name}`' for name in decoders)} |",
        "|---" * (len(decoders) + 1) + "|",
    ]
    for size_px in dict.fromkeys(row["size_px"] for row in rows):
        each = (cells[size_px, name] for name in decoders)
        texts = (
            f"{row['median']:.2f}, {row['percentile_99']}, {row['largest']}; {row['share_equal']:.0%} equal"
            for row in each
        )
        lines.append(f"| {size_px} px | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of JPEGs")
    parser.add_argument(
        "--sizes-px", type=int, nargs="+", default=[64, 112, 224, 448], help="sides of the crops"
    )
    parser.add_argument("--out", type=Path, default=RUNS / "agreement.json")
    options = parser.parse_args()
    check_out(options.out)
    if min(options.sizes_px) < 1:
        raise ValueError(f"--sizes-px {min(options.sizes_px)}: give 1 or more")
    if options.photos is None:
        raise ValueError("--photos is missing: give a folder of JPEGs")
    machine, source = environment(), image_folder(options.photos)
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        beton = Path(scratch, "photos.beton")
        log("writing the photos")
        write_beton(source.samples(), beton, num_samples=source.num_samples, class_names=source.class_names)
        with Beton(beton) as data:
            record = data_record(data, str(options.photos))
            rows = measure(data, options.sizes_px, log)
    missing = [{"what": name, "reason": why} for name, why in missing_decoders().items() if why]
    result = save_result(
        options.out, "agreement", machine, data=record, rows=rows, not_measured=missing,
        settings={"repeats": 1, "sizes_px": options.sizes_px},
    )  # fmt: skip
    print(agreement_table({"": result}))
    print(options.out)


if __name__ == "__main__":
    run_program(main)
