"""The check of the data, by a few of its samples."""

import numpy as np

from fastpsl.doctor.report import Check
from fastpsl.engine.options import TrainingOptions
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset, spread_indices
from fastpsl.pipelines.decoders.choose import reason_of
from fastpsl.pipelines.decoders.codes import GOOD
from fastpsl.pipelines.decoders.pillow import decode_whole

_NUM_SAMPLES = 16


def check_data(data: Dataset, options: TrainingOptions) -> Check:
    """Read and decode samples spread over the data; its tables were checked when it was opened."""
    indices = spread_indices(data.num_samples, _NUM_SAMPLES)
    data.wait(indices)
    rows = data.rows(indices)
    codes = np.array([decode_whole(rows, i)[0] for i in range(len(indices))])
    bad = np.flatnonzero(codes != GOOD)
    size = f"{data.num_samples:,} {'images' if data.num_samples > 1 else 'image'}"
    source = f"{size} in {options.data or 'the embedded sample'}"
    if not len(bad):
        return Check("data", "ok", f"{source}, {len(indices)} of them decoded")
    first = int(bad[0])
    text = f"{data.name(int(indices[first]))}: {reason_of(int(codes[first]), rows, first)}"
    text += f" ({len(bad)} bad of {len(indices)} tried)"
    remedy = (
        "fastpsl data verify names all"
        if isinstance(data, Beton)
        else "remove it, or write a dataset file with fastpsl data write"
    )
    if options.on_bad_sample == "skip":
        return Check("data", "warning", text, f"each is skipped; {remedy}")
    return Check("data", "broken", text, f"{remedy}; --on-bad-sample skip leaves them out")


def num_open_files(data: Dataset) -> int:
    """Return the number of files that the data keeps open: a dataset file's shards, or none of a folder."""
    return len(data.shards) if isinstance(data, Beton) else 0
