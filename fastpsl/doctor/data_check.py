"""Whether the data is sound, by a few samples of it."""

import numpy as np

from fastpsl.doctor.checks import Check
from fastpsl.engine.options import RunOptions
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.decoders import reason_of
from fastpsl.pipelines.decoders.codes import GOOD
from fastpsl.pipelines.decoders.torchvision import TorchvisionDecoder

_NUM_TRIED = 16


def check_data(data: Dataset, options: RunOptions) -> Check:
    """Tables were checked when the data was opened; here samples from front to end are read and decoded."""
    tried = np.unique(
        np.linspace(0, data.num_samples - 1, min(_NUM_TRIED, data.num_samples)).astype(np.int64)
    )
    rows = data.rows(tried)
    decoder = TorchvisionDecoder()
    codes = np.array([decoder.picture(rows, i)[0] for i in range(len(tried))])
    bad = np.flatnonzero(codes != GOOD)
    size = f"{data.num_samples:,} {'pictures' if data.num_samples > 1 else 'picture'}"
    where = f"{size} in {options.data or 'the embedded sample'}"
    if not len(bad):
        return Check("data", "ok", f"{where}, {len(tried)} of them decoded")
    first = int(bad[0])
    text = f"{data.name(int(tried[first]))}: {reason_of(decoder, int(codes[first]), rows, first)}"
    text += f" ({len(bad)} bad of {len(tried)} tried)"
    remedy = "fastpsl beton verify names all" if isinstance(data, Beton) else "remove it, or write a beton"
    if options.on_bad_sample == "skip":
        return Check("data", "warning", text, f"each is skipped; {remedy}")
    return Check("data", "broken", text, f"{remedy}; --on-bad-sample skip leaves them out")


def num_open_files(data: Dataset) -> int:
    """That the data holds open: a beton's shards; a folder's files are opened one by one."""
    return len(data.shards) if isinstance(data, Beton) else 0
