"""A data set of any size without its images: shards with true tables and JSONs, and holes for data.

A sample takes 48 bytes of disk for its rows in both tables, and about 10 for its path. The headers, tables
and pointers are those that `fastpsl data write` would write for JPEGs of 60 to 112 KB, 75 in a page of 8 MiB.
"""

import os
from pathlib import Path

import numpy as np

from fastpsl.pipelines.beton.shard import ALLOCATION, FIELD, HEADER, IMAGE_TYPE, INT_TYPE, VERSION, row_dtype
from fastpsl.pipelines.beton.sidecar import PathPacker, Sidecar, dump_sidecar, sidecar_path
from fastpsl.pipelines.beton.write import DEFAULT_PAGE_BYTES

PAGE_SAMPLES = 75
NUM_CLASSES = 1000
_ROW = row_dtype((IMAGE_TYPE, INT_TYPE))
_BLOCK = 1 << 18


def write_sparse_set(folder: Path, num_samples: int, num_shards: int) -> str:
    """Write the shards of a data set into a folder, and return their glob."""
    starts = np.linspace(0, num_samples, num_shards + 1).astype(int).tolist()
    for index in range(num_shards):
        path = folder / f"train-{index:05d}.beton"
        _write_shard(path, starts[index + 1] - starts[index], index, num_shards, num_samples)
    return str(folder / "train-*.beton")


def _write_shard(path: Path, num: int, index: int, num_shards: int, num_total: int) -> None:
    random = np.random.default_rng(index)
    page = DEFAULT_PAGE_BYTES
    table_start = HEADER.itemsize + 2 * FIELD.itemsize
    data_start = -(-(table_start + num * _ROW.itemsize) // page) * page
    alloc = data_start + -(-num // PAGE_SAMPLES) * page
    header, fields = np.zeros(1, HEADER), np.zeros(2, FIELD)
    header[0] = (VERSION, 2, page, num, alloc)
    fields["type_id"] = IMAGE_TYPE, INT_TYPE
    with path.open("wb") as file:
        file.write(header.tobytes() + fields.tobytes())
        for start in range(0, num, _BLOCK):
            samples = np.arange(start, min(start + _BLOCK, num))
            rows, allocations = np.zeros(len(samples), _ROW), np.zeros(len(samples), ALLOCATION)
            sizes = random.integers(60_000, page // PAGE_SAMPLES, len(samples))
            # The samples of a page follow each other; its end is a gap.
            place = samples % PAGE_SAMPLES
            before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            offsets = before - before[np.maximum(np.arange(len(samples)) - place, 0)]
            offsets = np.where(samples - place < start, place * (page // PAGE_SAMPLES), offsets)
            pointers = data_start + samples // PAGE_SAMPLES * page + offsets
            rows["f0"]["width"], rows["f0"]["height"] = 500, random.integers(281, 501, len(samples))
            rows["f0"]["data_ptr"], rows["f1"] = pointers, random.integers(0, NUM_CLASSES, len(samples))
            allocations["sample_id"], allocations["ptr"], allocations["size"] = samples, pointers, sizes
            os.pwrite(file.fileno(), rows.tobytes(), table_start + start * _ROW.itemsize)
            os.pwrite(file.fileno(), allocations.tobytes(), alloc + start * ALLOCATION.itemsize)
    paths = PathPacker()
    for number in range(num):
        paths.add(f"{number % NUM_CLASSES:04d}/{index:05d}_{number:08d}.jpg")
    written = {"source": "images", "split": "train", "shard": f"{index}/{num_shards}", "num_total": num_total}
    names = [f"{number:04d}" for number in range(NUM_CLASSES)]
    sidecar = Sidecar(num, names, written, data_start, "0" * 64, paths.finish())
    sidecar_path(path).write_bytes(dump_sidecar(sidecar))
